"""What people see of sweeps, and the JSON that programs get."""

import sys
from typing import Any

from rich.table import Table

from flows import show
from flows.outcome import Entry, Sweep
from flows.show import console
from flows.sweep import table as sweep_table
from flows.sweep.flow import failure
from flows.sweep.grid import budget, label
from flows.sweep.planning import Count, SweepPlan


def plan(result: SweepPlan) -> None:
    """How many stages are wanted and how few they are."""
    console.print(stages(result, "plan of a sweep"))
    total = result.total
    if result.repeated:
        console.print(f"listed twice and run once: {result.repeated} of {result.recipes + result.repeated} recipes")
    console.print(
        f"{result.recipes} recipes want {total.wanted} stages, which come to {total.distinct} at most: {total.stored} "
        f"are in the store, {total.to_run} are to be run. Recipes whose masks turn out to be the same share what "
        "follows, too.",
        highlight=False,
        soft_wrap=True,
    )


def stages(result: SweepPlan, title: str) -> Table:
    """A row for each kind of stage, and one for all."""
    table = Table(title=title)
    for column in ("stage", "wanted", "distinct", "in the store", "to run"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for word, count in result.stages.items():
        table.add_row(word, *_numbers(count))
    table.add_section()
    table.add_row("all", *_numbers(result.total))
    return table


def _numbers(count: Count) -> list[str]:
    return [str(number) for number in (count.wanted, count.distinct, count.stored, count.to_run)]


def failures(result: Sweep) -> None:
    """Which recipes failed, and why."""
    for entry in result.failed:
        print(f"recipe {entry.number} ({label(entry.recipe)}): {entry.error}", file=sys.stderr)
    if result.failed:
        print(f"error: {failure(result)}", file=sys.stderr)


def as_json(result: Sweep) -> dict[str, Any]:
    """The one JSON object of `sweep --json`: `runs` are as of `run --json`, with number, method and budget."""
    return {
        "run_id": result.run_id,
        "status": "failed" if result.failed else "done",
        "error": failure(result) if result.failed else None,
        "runs": [_run(entry) for entry in result.entries],
        "table": sweep_table.table_of(result),
    }


def _run(entry: Entry) -> dict[str, Any]:
    named = {"number": entry.number, "method": entry.recipe.method, "budget": budget(entry.recipe)}
    if entry.outcome is not None:
        return named | show.as_json(entry.recipe, entry.outcome)
    ended = {"run_id": None, "status": "failed", "error": entry.error}
    return named | ended | {"stages": {}, "metrics": {}, "checkpoint": None}
