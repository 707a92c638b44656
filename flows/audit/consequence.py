"""What differences between masks come to: measured masks beside the mask of all the data."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from flows.audit.chain import Audited, Measured
from flows.audit.findings import Findings
from flows.differences import PERPLEXITY, headline, pooled
from moeprune.agreement import chance_corrected
from moeprune.comparing import RankTest, rank_test
from moeprune.masks import Mask
from tasks import comparison
from tasks.artifacts import Store
from tasks.resample import MASK, WHOLE

LEAST = 4
"""Pairs of which a relation is told at all."""
Metrics = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class MeasuredMask:
    """One mask: how far it agrees above chance with the mask of all the data, and what it costs.

    `damage` are paired differences from the unpruned model, `change` from the mask of all the data: headline metrics.
    """

    label: str
    agreement: float
    again: bool
    """Whether a mask before it is the same."""
    damage: Metrics
    change: Metrics

    @property
    def resampled(self) -> bool:
        """Whether it is that of a bootstrap resample."""
        return self.label.startswith("resample ")


@dataclass(frozen=True)
class Consequence:
    """All masks measured for one criterion and ratio; the first is that of all the data.

    `index` and `halves` are the audit's bracket. `spread` is the standard deviation of log perplexity over resamples,
    mean over corpora; `accuracy_spread` that of accuracy, mean over tasks; None where nothing of the kind was measured.
    """

    criterion: str
    ratio: float
    index: float
    halves: float
    masks: list[MeasuredMask]
    spread: float | None
    accuracy_spread: float | None

    @property
    def unstable(self) -> float:
        """How far masks disagree in the audit: 1 minus the middle of the bracket."""
        return 1 - (self.halves + self.index) / 2

    @property
    def moves(self) -> list[tuple[float, float]]:
        """Of each different resample, how far it disagrees with the mask of all the data and changes log perplexity.

        Resamples often give the same mask: one that is measured once does not count as several. Masks of single corpora
        are another population, which would make two clusters of one relation.
        """
        pairs = [(1 - mask.agreement, _change(mask)) for mask in self.masks if mask.resampled and not mask.again]
        return [(disagreement, change) for disagreement, change in pairs if change is not None]

    @property
    def cost(self) -> float | None:
        """What the mask of all the data costs in mean log perplexity."""
        return mean_perplexity(self.masks[0].damage)


def consequences(made: Audited, findings: Findings, store: Store) -> list[Consequence]:
    """Every consequence that was measured."""
    return [_consequence(one, made, findings, store) for one in made.measured]


def _consequence(measured: Measured, made: Audited, findings: Findings, store: Store) -> Consequence:
    def folder(artifact: Any) -> Path:
        return store.folder(artifact)

    def differences(one: Path, other: Path) -> Metrics:
        return headline(comparison.compare(one, other), pooled(one))

    base, first = folder(made.report), folder(measured.reports[WHOLE])
    read = {label: Mask.from_json((folder(mask) / MASK).read_text()) for label, mask in measured.masks.items()}
    texts = [mask.to_json() for mask in read.values()]
    masks = [
        MeasuredMask(
            label,
            _agreement(read[WHOLE], mask),
            mask.to_json() in texts[:place],
            differences(base, folder(measured.reports[label])),
            differences(first, folder(measured.reports[label])),
        )
        for place, (label, mask) in enumerate(read.items())
    ]
    asked = measured.asked
    row = findings.row("masks", scope=findings.whole, criterion=asked.criterion, ratio=asked.ratio)
    perplexities, accuracies = zip(*(by_kind(mask.damage) for mask in masks if mask.resampled), strict=True)
    return Consequence(
        asked.criterion,
        asked.ratio,
        row["index"],
        row["halves"],
        masks,
        _spread(perplexities),
        _spread(accuracies),
    )


def mean_perplexity(metrics: Metrics) -> float | None:
    """Mean over corpora of a difference in log perplexity, in nats per token."""
    found = by_kind(metrics)[0].values()
    return mean(found) if found else None


def by_kind(metrics: Metrics) -> tuple[dict[str, float], dict[str, float]]:
    """Differences of log perplexity, and of accuracy, by metric."""
    values = {name: float(metric["value"]) for name, metric in metrics.items()}
    perplexities = {name: value for name, value in values.items() if name.startswith(PERPLEXITY)}
    return perplexities, {name: value for name, value in values.items() if name not in perplexities}


def between_criteria(consequences: Sequence[Consequence]) -> RankTest | None:
    """Whether criteria that are less stable in the audit spread more in perplexity, at the same ratio.

    At a larger ratio both are larger whatever the criterion, so ratios are strata. None for fewer than four pairs.
    """
    known = [(one.unstable, one.spread, one.ratio) for one in consequences if one.spread is not None]
    return _test(known)


def between_resamples(consequences: Sequence[Consequence]) -> RankTest | None:
    """Whether resamples that disagree more with the mask of all the data change perplexity more.

    Each criterion and ratio is a stratum. None for fewer than four pairs.
    """
    return _test([(*pair, (one.criterion, one.ratio)) for one in consequences for pair in one.moves])


def _test(pairs: Sequence[tuple[float, float, Hashable]]) -> RankTest | None:
    one, other, strata = zip(*pairs, strict=True) if pairs else ((), (), ())
    found = rank_test(one, other, strata)
    return found if found and found.pairs >= LEAST else None


def _spread(drawn: Sequence[Mapping[str, float]]) -> float | None:
    """Standard deviation over resamples, mean over metrics."""
    found = [stdev(one[name] for one in drawn) for name in drawn[0]]
    return mean(found) if found else None


def _change(mask: MeasuredMask) -> float | None:
    """Absolute change of log perplexity from the mask of all the data, mean over corpora."""
    found = by_kind(mask.change)[0].values()
    return mean(map(abs, found)) if found else None


def _agreement(one: Mask, other: Mask) -> float:
    """Mean over layers of the agreement above chance."""

    def rows(mask: Mask) -> torch.Tensor:
        return torch.tensor([[expert in kept for expert in range(mask.experts)] for kept in mask.kept.values()])

    return float(chance_corrected(rows(one), rows(other)).mean())
