"""Deployments as a table."""

from typing import Any

from prefect.client.schemas.objects import DeploymentSchedule
from rich.console import Console
from rich.table import Column, Table

from flows.deployment.deploy import Deployed


def deployed(found: list[Deployed]) -> None:
    """What the server holds: when each runs, where, how many at once."""
    table = Table(Column("deployment", no_wrap=True), "schedule", "at once", "work pool", "tags", "")
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


def _schedule(each: DeploymentSchedule) -> str:
    """A cron expression, an rrule or an interval, and its time zone."""
    schedule: Any = each.schedule
    when = getattr(schedule, "cron", None) or getattr(schedule, "rrule", None) or f"every {schedule.interval}"
    return f"{when} {schedule.timezone or 'UTC'}" + ("" if each.active else " (paused)")
