"""The parts of an audit's report that tell what masks cost."""

from collections.abc import Sequence

from flows.audit.consequence import Consequence, MeasuredMask, by_kind, mean_perplexity
from flows.differences import label
from flows.pages import Column, Interval, Intervals, Measured, Part, Table
from flows.pages.table import Cell
from flows.sweep.grid import percent
from moeprune.quantiles import half_width


def damage(found: Consequence, name: str) -> list[Part]:
    """A plot and a table of all masks measured for one criterion and ratio."""
    perplexities, accuracies = map(sorted, by_kind(found.masks[0].damage))
    cells = {mask.label: {key: _cell(mask, key) for key in (*perplexities, *accuracies)} for mask in found.masks}
    values = [
        Interval(mask, label(key), cell.value, *ends)
        for mask, row in cells.items()
        for key in perplexities
        for cell in [row[key]]
        for ends in [(None, None) if cell.spread is None else (cell.value - cell.spread, cell.value + cell.spread)]
    ]
    columns = [
        Column("mask"), Column("agreement", ".3f"), Column("change of ln perplexity, mean", "+.3f"),
        Column("from the mask of all data", "+.4f"),
        *(Column(f"ln perplexity {label(key)}", "+.3f") for key in perplexities),
        *(Column(f"accuracy {label(key)}", "+.3f") for key in accuracies),
    ]  # fmt: skip
    rows: list[list[Cell]] = [
        [one.label, one.agreement, mean_perplexity(one.damage), mean_perplexity(one.change), *cells[one.label].values()]
        for one in found.masks
    ]
    note = (
        "Agreement: above chance, with the mask of all the data. Differences are from the unpruned model, paired, ±: "
        "95% interval; but for that from the mask of all the data. Natural logarithms, nats per token. Masks were "
        "applied to the model in memory."
    )
    whose = f"{found.criterion} at {percent(found.ratio)} removed"
    table = Table(f"Measured masks: {whose}", columns, rows, f"{name}-{found.criterion}-{found.ratio}.csv", note)
    if not values:
        return [table]
    groups = list(map(label, perplexities))
    title = f"Change of perplexity by each mask: {whose}"
    return [Intervals(title, values, groups, "change of log perplexity (nats per token)"), table]


def _cell(mask: MeasuredMask, key: str) -> Measured:
    """A difference with its 95% interval, if it has one: few documents have none."""
    metric = mask.damage[key]
    return Measured(metric["value"], half_width(metric["stderr"], metric["n"]))


def side_by_side(consequences: Sequence[Consequence]) -> Table:
    """How stable masks are in the audit, and how far resamples of them spread when measured."""
    rows: list[list[Cell]] = [
        [one.criterion, percent(one.ratio), one.halves, one.index, one.cost, one.spread, one.accuracy_spread]
        for one in consequences
    ]
    columns = [
        Column("criterion"),
        Column("removed"),
        Column("agreement of halves", ".2f"),
        Column("agreement of resamples", ".2f"),
        Column("cost in ln perplexity", "+.3f"),
        Column("spread of ln perplexity", ".4f"),
        Column("spread of accuracy", ".4f"),
    ]
    note = (
        "Agreement above chance of masks of all the data, as bracketed by the audit. Cost: of the mask of all the "
        "data, in nats per token, mean over corpora. Spreads: standard deviations over measured resamples, means over "
        "corpora and tasks."
    )
    return Table("Stability in the audit, and spread when measured", columns, rows, "consequences.csv", note)
