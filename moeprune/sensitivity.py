"""What of scores and masks depends on which calibration text was drawn: the audit's numbers, without the model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from moeprune.agreement import chance_corrected
from moeprune.intervals import Ends, bca, studentised
from moeprune.linearised import Linear, linear, standard_errors
from moeprune.replicates import bootstrap, halves, leave_one_out, once, stacked
from moeprune.resampling import Block, Score, prepare
from moeprune.routing import Routing
from moeprune.stability import Stability, joined, kept, places, stability
from moeprune.statistics import Statistics

SPLITS = 100
"""Random splits of the calibration data into halves."""


@dataclass(frozen=True)
class MaskSensitivity:
    """How sure the experts are that one criterion keeps at one ratio.

    `kept` is the mask of all the data, `stability` that of bootstrap resamples, `halves` the mean chance-corrected
    agreement (`agreement.chance_corrected`) in each layer of masks from two halves of the data.

    Resamples share the data, so their masks agree even where experts differ by chance alone: about a third above
    chance at half the experts. Halves share nothing: they are at chance then, but are half as large. What masks of
    independent data of the size at hand would agree lies between the two.
    """

    kept: Bool[Tensor, "L E"]
    stability: Stability
    halves: Float64[Tensor, "L"]


@dataclass(frozen=True)
class CriterionSensitivity:
    """The scores of all the data with their confidence intervals, and masks by the number of experts kept."""

    scores: Float64[Tensor, "L E"]
    lower: Float64[Tensor, "L E"]
    upper: Float64[Tensor, "L E"]
    masks: dict[int, MaskSensitivity]


@dataclass(frozen=True)
class Edge:
    """An expert whose fate depends on the sample: the probability that it is kept is neither 0 nor 1."""

    layer: int
    expert: int
    probability: float


@dataclass(frozen=True)
class Sensitivity:
    """Everything by criterion; `layer` are the numbers of the layers, `chunks` those of each corpus."""

    layer: Int64[Tensor, "L"]
    chunks: tuple[int, ...]
    resamples: int
    level: float
    criteria: dict[str, CriterionSensitivity]

    def edge(self, criterion: str, keep: int, least: float = 0.05, most: float = 0.95) -> list[Edge]:
        """The experts kept in more than `least` and less than `most` of the resamples, the least certain first."""
        found = self.criteria[criterion].masks[keep].stability
        rows = [
            Edge(int(self.layer[layer]), expert, float(found.probability[layer, expert]))
            for layer, expert in found.edge(least, most).nonzero().tolist()
        ]
        return sorted(rows, key=lambda row: abs(row.probability - 0.5))


def sensitivity(
    corpora: Mapping[str, Statistics],
    criteria: Mapping[str, Score],
    keeps: Sequence[int],
    routing: Routing,
    *,
    resamples: int = 1000,
    seed: int = 0,
    how: str = "pooled",
    weights: Sequence[float] | None = None,
    level: float = 0.9,
    progress: Callable[[int], None] = lambda layers: None,
) -> Sensitivity:
    """Resample the chunks of every corpus and see how scores, and the experts kept by uniform selection, vary.

    `how` and `weights` combine the corpora as in `moeprune.combining.combine`. Intervals of scores are studentised
    where corpora are pooled and the delta method holds (`moeprune.linearised.linear`), BCa elsewhere and for experts
    used by so few chunks that a studentised one is not finite. `progress` is told of layers.

    Raises BadInput, before the work, for a corpus of one chunk, a number of experts that the router cannot work with,
    and a criterion that cannot be resampled.
    """
    for keep in keeps:
        routing.check(keep)
    data = list(corpora.values())
    chunks = [len(corpus.tokens) for corpus in data]
    half, other = halves(chunks, SPLITS, seed)
    kinds = {"bootstrap": bootstrap(chunks, resamples, seed), "data": once(chunks), "left_out": leave_one_out(chunks)}
    replicates, rows = stacked({**kinds, "half": half, "other": other})
    resampling = prepare(criteria, data, how, weights)
    straight = {name: linear(score, resampling.corpora[0]) for name, score in criteria.items() if how == "pooled"}
    ends: dict[str, list[Ends]] = {name: [] for name in criteria}
    masks: dict[str, dict[int, list[MaskSensitivity]]] = {name: {keep: [] for keep in keeps} for name in criteria}
    for block in resampling.blocks(replicates):
        for name in criteria:
            every = resampling.block_scores(name, block)
            scores = {kind: every[where] for kind, where in rows.items()}
            point = resampling.scores[name][block.layers]
            ends[name].append(_ends(scores, point, _errors(straight.get(name), block, chunks, rows), chunks, level))
            for keep, mask in _masks(scores, point, keeps, routing).items():
                masks[name][keep].append(mask)
        progress(block.chunks[0].count.shape[1])
    found = {
        name: CriterionSensitivity(
            scores=resampling.scores[name],
            lower=torch.cat([lower for lower, _ in ends[name]]),
            upper=torch.cat([upper for _, upper in ends[name]]),
            masks={keep: _joined(parts) for keep, parts in masks[name].items()},
        )
        for name in criteria
    }
    return Sensitivity(data[0].layer, tuple(chunks), resamples, level, found)


def _errors(
    criterion: Linear | None, block: Block, chunks: Sequence[int], rows: Mapping[str, slice]
) -> tuple[Tensor, Tensor] | None:
    """Standard errors of the scores of each resample, and of all the data, if the criterion has them."""
    if criterion is None:
        return None
    resamples = standard_errors(criterion, block.rows(rows["bootstrap"]), chunks, [size - 1 for size in chunks])
    return resamples, standard_errors(criterion, block.rows(rows["data"]), chunks, chunks)[0]


def _ends(
    scores: Mapping[str, Tensor],
    point: Float64[Tensor, "l E"],
    errors: tuple[Tensor, Tensor] | None,
    chunks: Sequence[int],
    level: float,
) -> Ends:
    lower, upper = bca(scores["bootstrap"], point, scores["left_out"], chunks, level)
    if errors is None:
        return lower, upper
    low, high = studentised(scores["bootstrap"], errors[0], point, errors[1], level)
    finite = low.isfinite() & high.isfinite()
    return low.where(finite, lower), high.where(finite, upper)


def _masks(
    scores: Mapping[str, Tensor], point: Float64[Tensor, "l E"], keeps: Sequence[int], routing: Routing
) -> dict[int, MaskSensitivity]:
    place = {kind: places(scores[kind], routing) for kind in ("bootstrap", "half", "other")}
    by_all = places(point, routing)
    found = {}
    for keep in keeps:
        masks = {kind: kept(value, keep, routing) for kind, value in place.items()}
        agreed = chance_corrected(masks["half"], masks["other"]).mean(0)
        found[keep] = MaskSensitivity(kept(by_all, keep, routing), stability(masks["bootstrap"]), agreed)
    return found


def _joined(parts: Sequence[MaskSensitivity]) -> MaskSensitivity:
    return MaskSensitivity(
        torch.cat([part.kept for part in parts]),
        joined([part.stability for part in parts]),
        torch.cat([part.halves for part in parts]),
    )
