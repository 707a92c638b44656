"""The results of a sweep: one row a method, in the terminal, as Markdown and as a plot."""

from pathlib import Path
from statistics import mean

from rich.table import Table

from flows.outcome import Sweep
from flows.pages.table import Measured
from flows.show import console, size
from flows.sweep import plots
from flows.sweep.findings import Measure, Method, cell, measures_of, methods_of
from flows.sweep.rows import rows_of
from moeprune.errors import BadInput

BEGIN, END = "<!-- sweep:begin -->", "<!-- sweep:end -->"
PEAK, WEIGHTS = "memory", "weights (computed)"
MEANING = {PEAK: f"{PEAK}: peak of a forward pass", WEIGHTS: "weights: bytes in memory, computed"}
"""Columns of bytes. The weights', where not all models have the peak measured: those of virtual masks have not."""


def show(result: Sweep) -> None:
    """Every combination in one table."""
    lines = table_of(result)
    if not lines:
        why = "" if result.failed else ": the recipe has no section evaluate"
        console.print(f"nothing was measured{why}")
        return
    table = Table(title=f"sweep {result.name}")
    for column in lines[0]:
        table.add_column(column, justify="left" if column in ("model", "removed", "method") else "right")
    for line in lines:
        table.add_row(*line.values())
    console.print(table)


def table_of(result: Sweep) -> list[dict[str, str]]:
    """One line per method; runs of the same method with other seeds are one line, mean ± their deviation.

    Lines are sorted by budget, then by the mean log-perplexity increase. Differences are paired against the base. A
    value whose interval lies below or above every random draw of its budget is marked so.
    """
    methods, measures = _measured(result)
    rows = [row for method in methods for row in method.rows]
    column = PEAK if all(row.memory is not None for row in rows) else WEIGHTS  # the same quantity of all
    lines = []
    for method in methods:
        taken = mean(row.weights if column == WEIGHTS else row.memory or 0 for row in method.rows)
        lines.append(
            ({"model": method.base} if any(one.base for one in methods) else {})
            | {"removed": method.budget, "method": method.title}
            | {_short(measure): _written(cell(methods, method, measure)) for measure in measures}
            | {column: f"{size(taken)}B", "s": f"{mean(row.seconds for row in method.rows):.1f}"}
        )
    return lines


def _measured(result: Sweep) -> tuple[list[Method], list[Measure]]:
    """The methods of a sweep, the best of each budget first, and what they were measured by, one by one."""
    rows = rows_of(result)
    perplexity, accuracy = measures_of(rows)
    measures = [*perplexity, *accuracy]
    methods = methods_of(rows, measures[0] if measures else None)
    return methods, [measure for measure in measures if len(measure.names) == 1]


def _short(measure: Measure) -> str:
    (name,) = measure.names
    task, _, metric = name.rpartition("/")
    return f"Δ ln ppl {measure.of}" if measure.sign < 0 else f"{task} Δ {metric}"


def _written(found: Measured | None) -> str:
    if found is None:
        return ""
    spread = "" if found.spread is None else f" ± {found.spread:.3f}"
    return f"{found.value:+.3f}{spread} {found.remark}".rstrip()


def markdown(lines: list[dict[str, str]]) -> str:
    """The lines of a table, which all have the same columns, as Markdown."""
    head = list(lines[0])
    written = [f"| {' | '.join(head)} |", f"|{'|'.join(' --- ' for _ in head)}|"]
    return "\n".join([*written, *(f"| {' | '.join(line.values())} |" for line in lines)])


def check_table(path: Path) -> str:
    """The text of a file that a table can be put into. BadInput if it has no place for one."""
    text = path.read_text() if path.is_file() else ""
    if BEGIN not in text or END not in text:
        raise BadInput(f"--table {path}: the file has no lines {BEGIN} and {END} to put the table between: add them")
    return text


def write_table(result: Sweep, path: Path, command: str) -> None:
    """Put the sweep's table, as Markdown, between the markers of a file, if anything was measured."""
    text = check_table(path)
    if not (lines := table_of(result)):
        return
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    (meaning,) = (MEANING[column] for column in lines[0] if column in MEANING)
    note = (
        f"Made by `{command}`. ▼ below, ▲ above every random draw, with its interval. {meaning}. "
        "s: seconds of scoring, masking and pruning (and distilling), without observing, which is shared."
    )
    path.write_text(f"{before}{BEGIN}\n{note}\n\n{markdown(lines)}\n{END}{after}")


def write_plot(result: Sweep, path: Path) -> None:
    """Draw the sweep's results into a file, if perplexity or accuracy was measured."""
    methods, measures = _measured(result)
    if measures:
        plots.sweep(methods, measures, path)
