"""The results of a sweep: one row a method, in the terminal, as Markdown and as a plot."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from flows import plots
from flows.grid import budget
from flows.outcome import DELTA, Outcome, Sweep
from flows.recipe import Recipe
from flows.show import console, size
from moeprune.errors import BadInput
from tasks.tracked import flatten

BEGIN, END = "<!-- sweep:begin -->", "<!-- sweep:end -->"
CHOOSING = ("score", "mask", "prune", "distill")
WEIGHTS = "weights (computed)"
"""Column of bytes in memory where masks are virtual and the peak of a forward pass is not measured."""


@dataclass(frozen=True)
class Row:
    """One measured model: what was removed, how, and the paired differences from the base."""

    budget: str
    method: str
    recipe: dict[str, str]
    """The recipe's keys and values, without seeds."""
    random: bool
    delta: dict[str, dict[str, Any]]
    memory: int | None
    """Bytes: the peak of a forward pass; None where that is not measured, as of virtual masks."""
    weights: int
    """Bytes of the weights in memory."""
    seconds: float


def show(result: Sweep) -> None:
    """Every combination in one table."""
    lines = table_of(result)
    if not lines:
        console.print("the recipe has no section evaluate: nothing was measured")
        return
    table = Table(title=f"sweep {result.name}")
    for column in lines[0]:
        table.add_column(column, justify="left" if column in ("removed", "method") else "right")
    for line in lines:
        table.add_row(*line.values())
    console.print(table)


def rows_of(result: Sweep) -> Iterator[Row]:
    """Every model a sweep has measured against its base, once."""
    corpora = {_corpora(recipe) for recipe in result.recipes}
    seen = set()
    for recipe, one in zip(result.recipes, result.outcomes, strict=True):
        for of, memory in one.memory.items():
            delta = one.metrics.get(DELTA if of == "pruned" else f"{DELTA}_{of}")
            if of == "base" or not delta:
                continue
            method = recipe.method + {"distilled": ", distilled", "skipped": ", skipping"}.get(of, "")
            if len(corpora) > 1 and recipe.uses_corpora:
                method += f" on {_corpora(recipe)}"
            report = one.made.reports[of]
            if (budget(recipe), method, report) in seen:  # several recipes may have the same model on their way
                continue
            seen.add((budget(recipe), method, report))
            done = ("score", "mask", "prune") if of == "pruned" else CHOOSING
            yield Row(
                budget(recipe),
                method,
                without_seeds(recipe),
                recipe.uses_scores and recipe.score.criterion == plots.RANDOM and of == "pruned",
                delta,
                memory.get("forward_peak_anonymous"),
                memory["weights"],
                _work(one, done),
            )


def without_seeds(recipe: Recipe) -> dict[str, str]:
    """A recipe's keys and values, but for seeds and the runtime."""
    keys = flatten(recipe.model_dump(mode="json", exclude={"runtime"}))
    return {key: value for key, value in keys.items() if key.rpartition(".")[2] != "seed"}


def _corpora(recipe: Recipe) -> str:
    return "+".join(corpus.name for corpus in recipe.calibrate.corpora) if recipe.calibrate else ""


def _work(one: Outcome, stages: tuple[str, ...]) -> float:
    return sum(record.work for record in one.records if record.step.stage in stages)


def table_of(result: Sweep) -> list[dict[str, str]]:
    """One line per method; runs of the same method with other seeds are one line, mean ± their deviation.

    Lines are sorted by budget, then by the mean log-perplexity increase. Differences are paired against the base. A
    value whose interval lies below or above every random draw of its budget is marked so.
    """
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in told_apart(list(rows_of(result))):
        groups[row.budget, row.method].append(row)
    measured = all(row.memory is not None for rows in groups.values() for row in rows)
    column = "memory" if measured else WEIGHTS  # the same quantity of all
    lines = []
    for (removed, method), rows in groups.items():
        shown = [name for name in rows[0].delta if name.startswith("log_perplexity/") or name.endswith("/acc")]
        draws = [row.delta for key, others in groups.items() if key[0] == removed for row in others if row.random]
        cells = {
            _short(name): _cell(
                [row.delta[name] for row in rows], [draw[name]["value"] for draw in draws if name in draw]
            )
            for name in shown
        }
        order = mean(_damage(row, shown) for row in rows)
        label = method + (f" ({len(rows)} seeds)" if len(rows) > 1 else "")
        taken = mean(row.weights if column == WEIGHTS else row.memory or 0 for row in rows)
        costs = {column: f"{size(taken)}B", "s": f"{mean(row.seconds for row in rows):.1f}"}
        lines.append((removed, order, {"removed": removed, "method": label, **cells, **costs}))
    columns = dict.fromkeys(["removed", "method", *(name for *_, line in lines for name in line)])
    for last in (column, "s"):
        columns[last] = columns.pop(last, None)
    ordered = [line for *_, line in sorted(lines, key=lambda entry: entry[:2])]
    return [{name: line.get(name, "") for name in columns} for line in ordered]


def _damage(row: Row, shown: list[str]) -> float:
    """The mean increase of log perplexity; the mean loss of accuracy where no text was read."""
    by_text = [float(row.delta[name]["value"]) for name in shown if name.startswith("log_")]
    return mean(by_text or [-float(row.delta[name]["value"]) for name in shown] or [0.0])


def told_apart(rows: list[Row]) -> Iterator[Row]:
    """Rows of equal method whose recipes differ in more than seeds, with what differs added to their method."""
    for row in rows:
        alike = [other.recipe for other in rows if (other.budget, other.method) == (row.budget, row.method)]
        keys = sorted({key for other in alike for key in other.keys() | row.recipe.keys()})
        differing = [key for key in keys if len({other.get(key) for other in alike}) > 1]
        yield replace(row, method=" ".join([row.method, *(f"{key}={row.recipe.get(key)}" for key in differing)]))


def _short(name: str) -> str:
    return name.replace("log_perplexity/", "Δ ln ppl ").replace("/acc", " Δ acc")


def _cell(metrics: list[dict[str, Any]], draws: list[float]) -> str:
    values = [metric["value"] for metric in metrics]
    if len(values) > 1:  # over seeds: the spread of the draw, not the error of the measurement
        return f"{mean(values):+.3f} ± {stdev(values):.3f} s.d."
    spread = 1.96 * (metrics[0]["stderr"] or 0)
    mark = ""
    if draws and values[0] + spread < min(draws):
        mark = " ▼"
    elif draws and values[0] - spread > max(draws):
        mark = " ▲"
    return f"{values[0]:+.3f} ± {spread:.3f}{mark}"


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
    note = (
        f"Made by `{command}`. ▼ below, ▲ above every random draw, with its interval. memory: peak of a forward pass. "
        "s: seconds of scoring, masking and pruning (and distilling), without observing, which is shared."
    )
    path.write_text(f"{before}{BEGIN}\n{note}\n\n{markdown(lines)}\n{END}{after}")


def write_plot(result: Sweep, path: Path) -> None:
    """Draw the sweep's results into a file."""
    if measured := [(row.budget, row.method, row.delta) for row in rows_of(result)]:
        plots.sweep(measured, path)
