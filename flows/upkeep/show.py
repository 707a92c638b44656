"""What people see of runs that were restored or verified, and of a store that was cleared; and the JSON of each."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from flows.show import console, size
from flows.upkeep.collect import KEY, Collection
from flows.upkeep.restore import Restoration
from flows.upkeep.verify import Verification


def restoration(done: Restoration) -> None:
    """Each result and where it came from."""
    table = Table(title=f"run {done.run[:8]}")
    table.add_column("result", no_wrap=True)
    table.add_column("how", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for result in done.results:
        table.add_row(result.title, result.how or "not restored", _short(result.place))
    console.print(table)
    for error in done.errors:
        console.print(f"not restored: {error}", highlight=False, soft_wrap=True)
    if done.checkpoint:
        console.print(f"checkpoint, as it was: {done.checkpoint}", highlight=False, soft_wrap=True)
    console.print(f"recipe: {done.recipe}", highlight=False, soft_wrap=True)
    if any(result.how == "left out" for result in done.results):
        console.print("what was left out is not needed by these; --everything makes it again, too", style="dim")


def restoration_error(done: Restoration) -> str | None:
    """One line that says what could not be brought back and why."""
    if not done.errors:
        return None
    more = f" ({len(done.errors) - 1} more above)" if len(done.errors) > 1 else ""
    return f"run {done.run[:8]} is not whole: {done.errors[0]}{more}"


def restoration_as_json(done: Restoration) -> dict[str, Any]:
    """For programs."""
    return {
        "run_id": done.run,
        "status": "failed" if done.errors else "done",
        "error": restoration_error(done),
        "results": [asdict(result) | {"place": str(result.place)} for result in done.results],
        "checkpoint": str(done.checkpoint) if done.checkpoint else None,
        "recipe": str(done.recipe),
    }


def verification(found: Verification) -> None:
    """What each run names and whether it is there; of several runs, how much is, and what is not."""
    if len(found.runs) == 1:
        console.print(_things(found.things, f"run {found.runs[0].id[:8]}"))
        return
    table = Table(title="runs")
    table.add_column("run", no_wrap=True)
    table.add_column("name", overflow="fold")
    for state in ("ok", "missing", "changed"):
        table.add_column(state, justify="right")
    for run in found.runs:
        counts = found.counts(run.id)
        table.add_row(run.id[:8], run.name, *(str(counts[state]) for state in ("ok", "missing", "changed")))
    console.print(table)
    if found.faults:
        console.print(_things(found.faults, "not ok", whose=True))


def _short(folder: Path) -> str:
    """A folder of the store, its key cut, as people need no more of it; programs are told all."""
    return str(folder.with_name(folder.name[:12]) if KEY.fullmatch(folder.name) else folder)


def _things(things: list[Any], title: str, whose: bool = False) -> Table:
    table = Table(title=title)
    for column in (["run"] if whose else []) + ["where", "what", "state"]:
        table.add_column(column, no_wrap=column != "what")
    table.add_column("how to mend", overflow="fold")
    for thing in things:
        own = [thing.run[:8]] if whose else []
        table.add_row(*own, thing.where, thing.name, thing.state, thing.mend)
    return table


def verification_error(found: Verification) -> str | None:
    """One line that says how much is not ok."""
    if not found.faults:
        return None
    first = found.faults[0]
    return (
        f"{len(found.faults)} of {len(found.things)} things are not ok, such as {first.name} ({first.where}), "
        f"{first.state}: {first.mend}"
    )


def verification_as_json(found: Verification) -> dict[str, Any]:
    """For programs."""
    return {
        "run_id": found.runs[0].id if len(found.runs) == 1 else None,
        "status": "failed" if found.faults else "done",
        "error": verification_error(found),
        "runs": {run.id: dict(found.counts(run.id)) for run in found.runs},
        "things": [asdict(thing) for thing in found.things],
    }


def collection(found: Collection) -> None:
    """What went or would go, what must stay and why, and what that comes to."""
    if found.items:
        table = Table(title="removed" if found.removed else "would be removed")
        for column in ("what", "last used"):
            table.add_column(column, no_wrap=True)
        table.add_column("frees", justify="right", no_wrap=True)
        table.add_column("folder", overflow="fold")
        for item in found.items:
            table.add_row(
                item.what, f"{item.used:%Y-%m-%d %H:%M}", f"{size(item.bytes)}B", _short(found.root / item.path)
            )
        console.print(table)
    for reason, held in found.stays.items():
        console.print(f"stays, {reason}: {size(held)}B", highlight=False, soft_wrap=True)
    done = "were" if found.removed else "would be"
    console.print(
        f"{found.root} held {size(found.held)}B; {len(found.items)} folders, {size(found.freed)}B, {done} removed",
        highlight=False,
        soft_wrap=True,
    )
    if found.items and not found.removed:
        console.print("nothing was removed: --delete does it", style="dim")


def collection_error(found: Collection) -> str | None:
    """One line that says by how much the budget is missed."""
    if not found.beyond:
        return None
    return (
        f"the budget of {size(found.budget or 0)}B is missed by {size(found.beyond)}B: what stays is needed: let go of "
        "a run with `moeprune runs unkeep RUN`, delete a version of the registry, or wait for runs under way"
    )


def collection_as_json(found: Collection) -> dict[str, Any]:
    """For programs; sizes in bytes."""
    return {
        "status": "failed" if found.beyond else "done",
        "error": collection_error(found),
        "removed": found.removed,
        "held": found.held,
        "freed": found.freed,
        "items": [
            {"path": str(item.path), "what": item.what, "bytes": item.bytes, "used": item.used.isoformat()}
            for item in found.items
        ],
        "stays": dict(found.stays),
    }
