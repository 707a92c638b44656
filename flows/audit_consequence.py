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

    `spread` is the standard deviation of log perplexity over resamples, mean over corpora; `accuracy_spread` that of
    accuracy, mean over tasks. `correlation` is Spearman's, over `different` masks beside that of all the data, between
    how much they disagree with it and how much log perplexity changes; `p` its p-value. They are None where nothing
    varies or nothing of the kind was measured.
    """

    criterion: str
    ratio: float
    index: float
    halves: float
    masks: list[MeasuredMask]
    spread: float | None
    accuracy_spread: float | None
    different: int
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
    read = {label: Mask.from_json((folder(mask) / MASK).read_text()) for label, mask in measured.masks.items()}
    masks = [
        MeasuredMask(
            label,
            _agreement(read[WHOLE], mask),
            comparison.compare(base, folder(measured.reports[label])),
            comparison.compare(first, folder(measured.reports[label])),
        )
        for label, mask in read.items()
    ]
    asked = measured.asked
    row = findings.row("masks", scope=findings.whole, criterion=asked.criterion, ratio=asked.ratio)
    # Resamples often give the same mask: one that is measured once must not count as several.
    different = {read[mask.label].to_json(): mask for mask in masks if mask.agreement < 1}.values()
    changes = [change for mask in different if (change := _change(mask)) is not None]
    rho = p = float("nan")
    if len(changes) > 1:
        rho, p = rank_test([1 - mask.agreement for mask in different], changes)
    drawn = [mask.damage for mask in masks if mask.resampled]
    return Consequence(
        asked.criterion,
        asked.ratio,
        row["index"],
        row["halves"],
        masks,
        _spread(drawn, PERPLEXITY),
        _spread(drawn, ACCURACY),
        len(different),
        None if rho != rho else rho,
        None if rho != rho else p,
    )


def mean_perplexity(metrics: Metrics) -> float | None:
    """Mean over corpora of a difference in log perplexity, in nats per token."""
    found = list(_of_kind(metrics, PERPLEXITY).values())
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


def _of_kind(metrics: Metrics, kind: str) -> dict[str, float]:
    """Values of the metrics whose names begin or end like that."""
    return {
        name: float(metric["value"]) for name, metric in metrics.items() if name.startswith(kind) or name.endswith(kind)
    }


def _spread(drawn: Sequence[Metrics], kind: str) -> float | None:
    """Standard deviation over resamples, mean over metrics of a kind."""
    values = [_of_kind(metrics, kind) for metrics in drawn]
    found = [stdev(one[name] for one in values) for name in values[0]]
    return mean(found) if found else None


def _change(mask: MeasuredMask) -> float | None:
    """Absolute change of log perplexity from the mask of all the data, mean over corpora."""
    found = _of_kind(mask.change, PERPLEXITY).values()
    return mean(map(abs, found)) if found else None


def _agreement(one: Mask, other: Mask) -> float:
    """Mean over layers of the agreement above chance."""
    import torch

    from moeprune.agreement import chance_corrected

    def rows(mask: Mask) -> torch.Tensor:
        return torch.tensor([[expert in kept for expert in range(mask.experts)] for kept in mask.kept.values()])

    return float(chance_corrected(rows(one), rows(other)).mean())
