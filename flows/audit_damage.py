"""The parts of an audit's report that tell what masks cost."""

from collections.abc import Sequence

from flows.audit_consequence import ACCURACY, PERPLEXITY, Consequence, MeasuredMask, mean_perplexity
from flows.audit_findings import percent
from flows.page_table import Cell
from flows.pages import Column, Interval, Intervals, Measured, Part, Table

Z = 1.96
"""Standard errors from the middle of a 95% interval to its ends."""


def damage(found: Consequence, name: str) -> list[Part]:
    """A plot and a table of all masks measured for one criterion and ratio."""
    kinds = sorted({key for mask in found.masks for key in mask.damage if key.startswith(PERPLEXITY)})
    groups = [key.removeprefix(PERPLEXITY) for key in kinds]
    values = [
        Interval(mask.label, group, metric["value"], metric["value"] - Z * metric["stderr"],
                 metric["value"] + Z * metric["stderr"])
        for mask in found.masks
        for key, group in zip(kinds, groups, strict=True)
        for metric in [mask.damage[key]]
    ]  # fmt: skip
    accuracies = sorted({key for mask in found.masks for key in mask.damage if key.endswith(ACCURACY)})
    columns = [
        Column("mask"), Column("above chance", ".3f"), Column("Δ ln ppl, mean", "+.3f"),
        Column("against all data", "+.4f"),
        *(Column(f"Δ ln ppl {group}", "+.3f") for group in groups),
        *(Column(f"Δ acc {key.removesuffix(ACCURACY)}", "+.3f") for key in accuracies),
    ]  # fmt: skip
    rows = [_measured(mask, [*kinds, *accuracies]) for mask in found.masks]
    note = (
        "Differences from the unpruned model, paired, ±: 95% interval. Above chance: agreement with the mask of all "
        "the data. Against all data: difference of mean log perplexity (nats per token) from that mask. Masks were "
        "applied to the model in memory."
    )
    table = Table("Measured masks", columns, rows, f"{name}-{found.criterion}-{found.ratio}.csv", note)
    if not values:
        return [table]
    return [Intervals("Damage of each mask", values, groups, "Δ log perplexity (nats per token)"), table]


def _measured(mask: MeasuredMask, keys: Sequence[str]) -> list[Cell]:
    cells: list[Cell] = [mask.label, mask.agreement, mean_perplexity(mask.damage), mean_perplexity(mask.change)]
    for key in keys:
        if metric := mask.damage.get(key):
            error = metric["stderr"]
            cells.append(Measured(metric["value"], None if error is None else Z * error))
        else:
            cells.append(None)
    return cells


def side_by_side(consequences: Sequence[Consequence]) -> Table:
    """How stable masks are in the audit, and how far resamples of them spread when measured."""
    rows: list[list[Cell]] = [
        [one.criterion, percent(one.ratio), one.halves, one.index, one.cost, one.spread, one.accuracy_spread]
        for one in consequences
    ]
    columns = [
        Column("criterion"),
        Column("removed"),
        Column("agreement, from", ".2f"),
        Column("to", ".2f"),
        Column("Δ ln ppl", "+.3f"),
        Column("spread of ln ppl", ".4f"),
        Column("spread of accuracy", ".4f"),
    ]
    note = (
        "Agreement: the bracket of masks of all the data. Δ ln ppl: what the mask of all the data costs in nats per "
        "token. Spreads: standard deviations over measured resamples, means over corpora and tasks."
    )
    return Table("Stability and spread", columns, rows, "consequences.csv", note)
