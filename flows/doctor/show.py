"""What people see of a doctor's findings, and the JSON of them."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from flows.doctor.health import Finding

COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
console = Console()


def each(findings: Iterable[Finding]) -> list[Finding]:
    """Show findings as they come, each with how to mend it; returns them."""
    found = []
    for finding in findings:
        found.append(finding)
        line = Text(f"{finding.health:4}", COLOURS[finding.health]).append(f"  {finding.subject:10}  ", "bold")
        console.print(line.append(finding.what, "default"), soft_wrap=True)
        if finding.mend:
            console.print(Text(f"{'':18}{finding.mend}", "dim"), soft_wrap=True)
    return found


def error(found: list[Finding]) -> str | None:
    """One line that says what must be mended."""
    ill = [finding.subject for finding in found if finding.health == "fail"]
    return f"to be mended before a run: {', '.join(ill)}" if ill else None


def as_json(found: list[Finding]) -> dict[str, Any]:
    """For programs."""
    ill = error(found)
    return {"status": "failed" if ill else "done", "error": ill, "findings": [asdict(finding) for finding in found]}
