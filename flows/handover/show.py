"""What people see of promotions and of models that are handed over, and the JSON that programs get."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from flows.handover.hand_over import Package
from flows.handover.promote import Promotion, percent
from flows.show import console
from tasks.hub_push import Pushed


def promotion(done: Promotion) -> None:
    """The rules with what was measured, and what the alias names now."""
    rules = done.rules
    table = Table(title=f"{done.version}: {done.version.kind} against its base")
    table.add_column("metric", no_wrap=True)
    for column in ("lost", f"end of the {rules.level:.0%} interval", "limit", "of"):
        table.add_column(column, justify="right")
    for one in done.verdicts:
        worst = "" if one.worst is None else percent(one.worst)
        table.add_row(one.metric, percent(one.loss), worst, percent(one.limit), str(one.n))
    console.print(table)
    how = {"interval": "the end of the interval", "value": "the value, whatever its error"}[rules.judge]
    console.print(f"judged: {how}. Differences are paired; a loss below zero is a gain.", style="dim", soft_wrap=True)
    before = done.before
    moved = "" if before is None or before.number == done.version.number else f", before it version {before.number}"
    console.print(
        f"{done.alias} is {done.version} (run {done.version.run[:8]}{moved})", highlight=False, soft_wrap=True
    )


def promotion_as_json(done: Promotion) -> dict[str, Any]:
    """The promotion for programs."""
    return {
        "run_id": done.version.run,
        "status": "done",
        "error": None,
        "model": done.version.name,
        "version": done.version.number,
        "alias": done.alias,
        "before": done.before and done.before.number,
        "digest": done.version.digest,
        "rules": [asdict(one) for one in done.verdicts],
    }


def exported(package: Package, folder: Path) -> None:
    """Where the model is, and what is known of its licence."""
    console.print(f"{package.made.model.name} is in {folder}: {_contents(package)}", highlight=False, soft_wrap=True)
    _licence(package)


def exported_as_json(package: Package, folder: Path) -> dict[str, Any]:
    """The same for programs."""
    return {**_as_json(package), "folder": str(folder.absolute())}


def pushed(package: Package, done: Pushed) -> None:
    """Where the model is on the Hub, who may see it, and what is known of its licence."""
    seen = "private" if done.private else "public"
    console.print(
        f"{package.made.model.name} is at {done.url} ({seen}), commit {done.commit}: "
        + (_contents(package) if done.changed else "all of it was there already, nothing was changed"),
        highlight=False,
        soft_wrap=True,
    )
    if done.removed:
        console.print(f"removed there: {', '.join(done.removed)}", highlight=False, soft_wrap=True)
    _licence(package)


def pushed_as_json(package: Package, done: Pushed) -> dict[str, Any]:
    """The same for programs."""
    return {**_as_json(package), **asdict(done)}


def _contents(package: Package) -> str:
    return f"checkpoint, {', '.join([*package.texts, *package.facts.base.files])}"


def _licence(package: Package) -> None:
    if not package.facts.base.licence:
        console.print("The base model's licence is not known, and the card says so.", style="yellow", soft_wrap=True)


def _as_json(package: Package) -> dict[str, Any]:
    return {
        "run_id": package.made.run,
        "status": "done",
        "error": None,
        "digest": package.made.stage.digest,
        "files": sorted([*package.files, *package.texts]),
    }
