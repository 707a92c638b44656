"""The audit of calibration data: all that is told of how masks depend on them, as rows and arrays.

`moeprune.sensitivity`, `learning_curve` and `comparing` hold the numbers; here they are asked for every corpus alone
and for all of them as they are combined.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moeprune.combining import combine
from moeprune.comparing import claimed, left_out, mask_agreement, masks_of, mean_of_pairs, rank_agreement
from moeprune.learning_curve import FRACTIONS, LearningCurve, learning_curves, smallest_budget
from moeprune.resampling import Score
from moeprune.routing import Routing
from moeprune.sensitivity import Sensitivity, sensitivity
from moeprune.statistics import Statistics

ALL = "all corpora"
"""What the corpora together are called: no corpus can have that name."""
MEASURES = ("corrected", "jaccard", "tau", "overlap")
"""What learning curves are told by: agreement above chance, Jaccard, Kendall's tau and rank-biased overlap."""
ENOUGH = 32
"""Chunks below which intervals cover less than they promise."""

Corpora = Mapping[str, Statistics]


@dataclass(frozen=True)
class Design:
    """What is asked, but for the data.

    `keeps` are numbers of experts to keep by the ratio removed. `fixed` are scores [L, E] of criteria that do not
    depend on data, by name. `target` is the agreement that the smallest budget is to reach. `how` and `weights`
    combine corpora as in `moeprune.combining.combine`.
    """

    criteria: Mapping[str, Score]
    keeps: Mapping[float, int]
    routing: Routing
    fixed: Mapping[str, Tensor] = field(default_factory=dict)
    how: str = "pooled"
    weights: Sequence[float] | None = None
    resamples: int = 1000
    level: float = 0.9
    seed: int = 0
    fractions: Sequence[float] = FRACTIONS
    repeats: int = 20
    target: float = 0.9

    def scores(self, corpora: Corpora) -> dict[str, Tensor]:
        """The scores [L, E] of these corpora together by every criterion that depends on them."""
        alone = len(corpora) == 1
        how, weights = ("pooled", None) if alone else (self.how, self.weights)
        return {name: combine(score, list(corpora.values()), how, weights)[0] for name, score in self.criteria.items()}


@dataclass
class Audit:
    """Rows by what they tell of, and arrays by names such as `masks/wiki/reap/0.25/probability`.

    Rows:
      masks      a scope (a corpus, or `ALL`), criterion and ratio: stability, experts on the edge, smallest budgets
      curves     a scope, criterion, ratio and kind: agreement by `moeprune.learning_curve.Curve` for numbers of tokens
      corpora    a criterion and ratio: agreement of every two corpora's masks, which experts only one of them keeps
      left_out   a criterion, ratio and corpus: what changes without it
      criteria   a scope and ratio: agreement of every two criteria's masks
      seeds, sequence_lengths   a scope, criterion and ratio: agreement of masks of other observations
    """

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    arrays: dict[str, Tensor] = field(default_factory=dict)

    def add(self, kind: str, row: dict[str, Any], name: str, arrays: Mapping[str, Tensor]) -> None:
        """Add a row, and arrays under `<kind>/<name>/`."""
        self.rows.setdefault(kind, []).append({key: _plain(value) for key, value in row.items()})
        self.arrays |= {f"{kind}/{name}/{key}": value for key, value in arrays.items()}


def audit(
    corpora: Corpora,
    design: Design,
    again: Mapping[str, Mapping[int, Corpora]] | None = None,
    progress: Callable[[int], None] = lambda steps: None,
) -> Audit:
    """Everything an audit tells. `progress` is told `steps` of work in all.

    `again` holds other observations of the same corpora by seed or sequence length, the first of each being the one at
    hand. Raises BadInput as `sensitivity` and `learning_curves` do.
    """
    found = Audit()
    for scope, data in scopes(corpora).items():
        _scope(found, scope, data, design, progress)
    _curves(found, design)
    if len(corpora) > 1:
        _between_corpora(found, corpora, design)
    _between_criteria(found, corpora, design)
    for kind, observations in (again or {}).items():
        _again(found, kind, observations, design)
    return found


def scopes(corpora: Corpora) -> dict[str, Corpora]:
    """Every corpus alone, and all of them if there are several."""
    alone: dict[str, Corpora] = {name: {name: statistics} for name, statistics in corpora.items()}
    return alone | ({ALL: corpora} if len(corpora) > 1 else {})


def steps(corpora: Corpora, design: Design) -> int:
    """What `progress` is told in all."""
    return len(scopes(corpora)) * 2 * len(next(iter(corpora.values())).layer)


def warnings(corpora: Corpora) -> list[str]:
    """What a reader must know of the data, each in a sentence."""
    few = {name: len(corpus.tokens) for name, corpus in corpora.items() if len(corpus.tokens) < ENOUGH}
    if not few:
        return []
    told = ", ".join(f"{name} has {size}" for name, size in few.items())
    return [
        f"Few chunks ({told}): with fewer than {ENOUGH} intervals cover less than they promise and stability is known "
        f"roughly: set calibrate.chunks to {ENOUGH} or more."
    ]


def _scope(found: Audit, scope: str, data: Corpora, design: Design, progress: Callable[[int], None]) -> None:
    """Stability, intervals and learning curves of one scope."""
    how, weights = ("pooled", None) if len(data) == 1 else (design.how, design.weights)
    keeps = list(dict.fromkeys(design.keeps.values()))
    sensitive = sensitivity(
        data, design.criteria, keeps, design.routing, resamples=design.resamples, seed=design.seed, how=how,
        weights=weights, level=design.level, progress=progress,
    )  # fmt: skip
    curves = learning_curves(
        design.criteria, data, keeps, design.routing, fractions=design.fractions, repeats=design.repeats,
        seed=design.seed, how=how, weights=weights, progress=progress,
    )  # fmt: skip
    for name in design.criteria:
        of = sensitive.criteria[name]
        ends = {"scores": of.scores, "lower": of.lower, "upper": of.upper}
        found.arrays |= {f"scores/{scope}/{name}/{end}": value for end, value in ends.items()}
        for ratio, keep in design.keeps.items():
            row, arrays = _mask(sensitive, name, keep)
            budgets, points = _budgets(curves[name][keep], design.target)
            row = {"scope": scope, "criterion": name, "ratio": ratio, "keep": keep} | row | budgets
            found.add("masks", row, f"{scope}/{name}/{ratio}", arrays | points)
    for name in design.fixed:
        for ratio, keep in design.keeps.items():
            row = {"scope": scope, "criterion": name, "ratio": ratio, "keep": keep, "fixed": True, "index": 1.0}
            found.add("masks", row | {"halves": 1.0, "jaccard": 1.0, "edge": 0}, f"{scope}/{name}/{ratio}", {})


def _budgets(curve: LearningCurve, target: float) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The smallest budgets of a learning curve, and its points."""
    parts = {"full": curve.full, "disjoint": curve.disjoint}
    points = {f"{which}.{key}": value for which, part in parts.items() for key, value in vars(part).items()}
    return {f"budget_{which}": smallest_budget(part, "corrected", target) for which, part in parts.items()}, points


def _curves(found: Audit, design: Design) -> None:
    """The learning curves' points as means over orders of the chunks."""
    for row in found.rows["masks"]:
        of = {key: row[key] for key in ("scope", "criterion", "ratio")}
        for kind in ("disjoint", "full") if row["criterion"] in design.criteria else ():
            where = f"masks/{row['scope']}/{row['criterion']}/{row['ratio']}/{kind}"
            means = {measure: found.arrays[f"{where}.{measure}"].mean(0) for measure in MEASURES}
            found.add("curves", {**of, "kind": kind, "tokens": found.arrays[f"{where}.tokens"], **means}, "", {})


def _mask(sensitive: Sensitivity, name: str, keep: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    mask = sensitive.criteria[name].masks[keep]
    row = {
        "fixed": False,
        "index": mask.stability.index.mean(),
        "halves": mask.halves.mean(),
        "jaccard": mask.stability.jaccard.mean(),
        "edge": int(mask.stability.edge().sum()),
    }
    arrays = {
        "kept": mask.kept,
        "probability": mask.stability.probability,
        "edge": mask.stability.edge(),
        "index": mask.stability.index,
        "halves": mask.halves,
        "jaccard": mask.stability.jaccard,
    }
    return row, arrays


def _between_corpora(found: Audit, corpora: Corpora, design: Design) -> None:
    names = list(corpora)
    alone = [design.scores({name: data}) for name, data in corpora.items()]
    whole = design.scores(corpora)
    for name, score in design.criteria.items():
        scores = torch.stack([one[name] for one in alone])
        without = left_out(score, list(corpora.values()), design.how, design.weights)
        ranks = rank_agreement(scores)
        for ratio, keep in design.keeps.items():
            masks = masks_of(scores, keep, design.routing)
            corrected, overlap = mask_agreement(masks)
            only = claimed(masks)
            row = {
                "criterion": name, "ratio": ratio, "names": names, **_means(corrected, overlap, ranks),
                "claimed": {corpus: int(own.sum()) for corpus, own in zip(names, only, strict=True)},
            }  # fmt: skip
            arrays = {"corrected": corrected, "overlap": overlap, "spearman": ranks, "kept": masks, "claimed": only}
            found.add("corpora", row, f"{name}/{ratio}", arrays)
            _without(found, names, name, ratio, masks_of(whole[name], keep, design.routing), without, keep, design)


def _without(
    found: Audit,
    names: Sequence[str],
    criterion: str,
    ratio: float,
    mask: Tensor,
    without: Tensor,
    keep: int,
    design: Design,
) -> None:
    """What changes in the mask of all corpora if one of them is left out."""
    for corpus, scores in zip(names, without, strict=True):
        other = masks_of(scores, keep, design.routing)
        corrected, overlap = (matrix[0, 1] for matrix in mask_agreement(torch.stack([mask, other])))
        row = {
            "criterion": criterion, "ratio": ratio, "corpus": corpus, "corrected": corrected.mean(),
            "overlap": overlap.mean(), "changed": (mask & ~other).double().sum() / mask.sum(),
        }  # fmt: skip
        found.add("left_out", row, f"{criterion}/{ratio}/{corpus}", {"corrected": corrected, "kept": other})


def _between_criteria(found: Audit, corpora: Corpora, design: Design) -> None:
    for scope, data in scopes(corpora).items():
        named = {**design.scores(data), **design.fixed}
        if len(named) < 2:
            return
        scores = torch.stack([value.to(torch.float64) for value in named.values()])
        ranks = rank_agreement(scores)
        for ratio, keep in design.keeps.items():
            corrected, overlap = mask_agreement(masks_of(scores, keep, design.routing))
            row = {"scope": scope, "ratio": ratio, "names": list(named), **_means(corrected, overlap, ranks)}
            found.add("criteria", row, f"{scope}/{ratio}", {"corrected": corrected, "overlap": overlap})


def _again(found: Audit, kind: str, observations: Mapping[int, Corpora], design: Design) -> None:
    """Masks of whole observations, which differ in a seed or the length of sequences."""
    for scope in scopes(next(iter(observations.values()))):
        every = [design.scores(scopes(data)[scope]) for data in observations.values()]
        for name in design.criteria:
            scores = torch.stack([one[name] for one in every])
            ranks = rank_agreement(scores)
            for ratio, keep in design.keeps.items():
                masks = masks_of(scores, keep, design.routing)
                corrected, overlap = mask_agreement(masks)
                row = {"scope": scope, "criterion": name, "ratio": ratio, "names": list(observations)}
                row |= _means(corrected, overlap, ranks)
                found.add(kind, row, f"{scope}/{name}/{ratio}", {"corrected": corrected, "kept": masks})


def _means(corrected: Tensor, overlap: Tensor, spearman: Tensor) -> dict[str, Any]:
    """Means over layers: of every two as a matrix, and over all pairs."""
    found: dict[str, Any] = {}
    for key, matrix in (("corrected", corrected), ("overlap", overlap), ("spearman", spearman)):
        found |= {key: mean_of_pairs(matrix), f"{key}_matrix": matrix.nanmean(-1)}
    return found


def _plain(value: Any) -> Any:
    """As JSON can hold it: NaN is None."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and value != value else value
