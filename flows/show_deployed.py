"""Deployments as a table."""

from rich.console import Console
from rich.table import Table

from flows.deploying import Deployed


def deployed(found: list[Deployed]) -> None:
    """What the server holds: when each runs, where, how many at once."""
    table = Table("deployment", "schedule", "at once", "work pool", "tags", "")
    for one in found:
        limit = one.found.global_concurrency_limit
        table.add_row(
            one.wanted.name,
            ", ".join(_schedule(each) for each in one.found.schedules) or "on demand",
            str(limit.limit) if limit else "any number",
            str(one.found.work_pool_name),
            ", ".join(one.found.tags),
            "registered" if one.changed else "unchanged",
        )
    Console().print(table)


def _schedule(each: object) -> str:
    schedule = each.schedule  # type: ignore[attr-defined]
    text = getattr(schedule, "cron", None) or str(getattr(schedule, "interval", schedule))
    return f"{text} {schedule.timezone}" + ("" if each.active else " (paused)")  # type: ignore[attr-defined]
