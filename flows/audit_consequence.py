"""What differences between masks come to: measured masks beside the mask of all the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from flows.audit_chain import Audited, Measured
from flows.audit_findings import Findings
from moeprune.masks import Mask
from tasks import comparison
from tasks.artifacts import Store
from tasks.resample import MASK, WHOLE

Metrics = dict[str, dict[str, Any]]
PERPLEXITY, ACCURACY = "log_perplexity/", "/acc"
"""How metrics of differences begin or end."""


@dataclass(frozen=True)
class MeasuredMask:
    """One mask: how far it agrees above chance with the mask of all the data, and what it costs.

    `damage` are paired differences from the unpruned model, `change` from the mask of all the data.
    """

    label: str
    agreement: float
    damage: Metrics
    change: Metrics

    @property
    def resampled(self) -> bool:
        """Whether it is that of a bootstrap resample."""
        return self.label.startswith("resample ")


@dataclass(frozen=True)
class Consequence:
    """All masks measured for one criterion and ratio; the first is that of all the data.

    `spread` is the standard deviation, over resamples, of the mean log perplexity, `accuracy_spread` that of the mean
    accuracy. `correlation` is Spearman's between a mask's disagreement with that of all the data and the absolute
    change of mean log perplexity, over resamples and corpora; `p` its p-value. They are None where nothing varies or
    nothing of the kind was measured.
    """

    criterion: str
    ratio: float
    index: float
    halves: float
    masks: list[MeasuredMask]
    spread: float | None
    accuracy_spread: float | None
    correlation: float | None
    p: float | None

    @property
    def cost(self) -> float | None:
        """What the mask of all the data costs in mean log perplexity."""
        return mean_perplexity(self.masks[0].damage)


def consequences(made: Audited, findings: Findings, store: Store) -> list[Consequence]:
    """Every consequence that was measured."""
    return [_consequence(one, made, findings, store) for one in made.measured]


def _consequence(measured: Measured, made: Audited, findings: Findings, store: Store) -> Consequence:
    from moeprune.comparing import rank_test

    def folder(artifact: Any) -> Path:
        return store.folder(artifact)

    base, first = folder(made.report), folder(measured.reports[WHOLE])
    whole = _read(folder(measured.masks[WHOLE]))
    masks = [
        MeasuredMask(
            label,
            _agreement(whole, _read(folder(mask))),
            comparison.compare(base, folder(measured.reports[label])),
            comparison.compare(first, folder(measured.reports[label])),
        )
        for label, mask in measured.masks.items()
    ]
    asked = measured.asked
    row = findings.row("masks", scope=findings.whole, criterion=asked.criterion, ratio=asked.ratio)
    drawn = [mask.damage for mask in masks if mask.resampled]
    changes = [change for mask in masks[1:] if (change := mean_perplexity(mask.change)) is not None]
    rho = p = float("nan")
    if changes:
        rho, p = rank_test([1 - mask.agreement for mask in masks[1:]], [abs(change) for change in changes])
    return Consequence(
        asked.criterion,
        asked.ratio,
        row["index"],
        row["halves"],
        masks,
        _spread([mean_perplexity(damage) for damage in drawn]),
        _spread([mean_accuracy(damage) for damage in drawn]),
        None if rho != rho else rho,
        None if rho != rho else p,
    )


def mean_perplexity(metrics: Metrics) -> float | None:
    """Mean over corpora of a difference in log perplexity, in nats per token."""
    found = [float(metric["value"]) for name, metric in metrics.items() if name.startswith(PERPLEXITY)]
    return mean(found) if found else None


def mean_accuracy(metrics: Metrics) -> float | None:
    """Mean over tasks of a difference in accuracy."""
    found = [float(metric["value"]) for name, metric in metrics.items() if name.endswith(ACCURACY)]
    return mean(found) if found else None


def across(consequences: Sequence[Consequence]) -> tuple[float, float] | None:
    """Whether what is less stable in the audit spreads more in perplexity, over consequences.

    Spearman's correlation and its p-value; None for fewer than four, or where nothing varies.
    """
    from moeprune.comparing import rank_test

    pairs = [(1 - (one.halves + one.index) / 2, one.spread) for one in consequences if one.spread is not None]
    if len(pairs) < 4:
        return None
    rho, p = rank_test([unstable for unstable, _ in pairs], [spread for _, spread in pairs])
    return None if rho != rho else (rho, p)


def _spread(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return stdev(known) if len(known) > 1 else None


def _read(folder: Path) -> Mask:
    return Mask.from_json((folder / MASK).read_text())


def _agreement(one: Mask, other: Mask) -> float:
    """Mean over layers of the agreement above chance."""
    import torch

    from moeprune.agreement import chance_corrected

    def rows(mask: Mask) -> torch.Tensor:
        return torch.tensor([[expert in kept for expert in range(mask.experts)] for kept in mask.kept.values()])

    return float(chance_corrected(rows(one), rows(other)).mean())
