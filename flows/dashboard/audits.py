"""Audit reports: the page kept with the run, or one made again from what the store has."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.dashboard.index import Entry, Index
from flows.pages import Column, Measured, Part, Table
from flows.pages.table import Cell
from moeprune.errors import BadInput
from tasks.tracking import Tracker


def audits_of(index: Index) -> list[Entry]:
    """The audits, newest first."""
    return [entry for entry in index.entries.values() if entry.audit]


def report(entry: Entry, tracker: Tracker) -> str:
    """An audit's report, one HTML file. Raises BadInput if neither the tracker nor the store has what it takes.

    Made again it tells of the masks' stability, not of what was measured for single masks.
    """
    from flows.audit.findings import read_findings
    from flows.audit.flow import REPORT
    from flows.audit.report import page_of

    with TemporaryDirectory() as folder:
        kept = tracker.fetch(entry.id, REPORT, Path(folder))
        if kept is not None:
            return kept.read_text(encoding="utf-8")
    stage, run = entry.lineage.find("audit"), entry.lineage.run
    if stage is None:
        raise BadInput(f"audit {run.id[:8]} did not come to its end: run its recipe again")
    there = tracker.store.root / stage.path
    if not there.is_dir():
        raise BadInput(
            f"audit {run.id[:8]}: neither the tracker has its {REPORT} nor the store {stage.path}: run its recipe again"
        )
    return page_of(read_findings(there), [], run.name).html()


def overview(entries: Sequence[Entry]) -> Part:
    """The stability of every mask of every audit, from what the tracker keeps of them."""
    rows: list[list[Cell]] = []
    for entry in entries:
        metrics = entry.lineage.run.metrics
        for name in sorted(metrics):
            if name.startswith("audit/") and name.endswith("/stability"):
                _, criterion, ratio, scope, _ = name.split("/")
                base = name.removesuffix("stability")
                rows.append([
                    f"{entry.lineage.run.name} ({entry.id[:8]})", criterion, ratio, scope,
                    metrics.get(f"{base}stability_halves"), metrics[name], metrics.get(f"{base}edge_experts"),
                    _suffice(entry, base, scope),
                ])  # fmt: skip
    columns = [
        Column("audit"), Column("criterion"), Column("removed"), Column("corpora"), Column("agreement from", ".3f"),
        Column("to", ".3f"), Column("experts on the edge", ".0f"), Column("tokens that suffice", ",.0f"),
    ]  # fmt: skip
    note = (
        "Agreement above chance: how alike masks from other text of the same kind are, 1 if they are the same. From: "
        "masks of separate halves of the text; to: masks of resamples of all of it. Tokens that suffice: for masks of "
        "separate texts to agree as the audit asked (audit.stability); what is not enough is half of the text at hand. "
        "Empty: the criterion reads no text."
    )
    return Table("Stability of masks", columns, rows, "audits.csv", note)


def _suffice(entry: Entry, base: str, scope: str) -> Cell:
    """Tokens that suffice, or half of those at hand, which do not; None if neither is known."""
    metrics = entry.lineage.run.metrics
    budget, halves = metrics.get(f"{base}budget"), metrics.get(f"{base}stability_halves")
    if budget is not None:
        return budget
    if halves == 1:  # reached whatever was asked for, yet by no number of tokens
        return None
    names = [scope] if scope in entry.corpora else entry.corpora
    stages = [stage for name in names if (stage := entry.lineage.find("calibrate", name))]
    tokens = sum(stage.metrics.get("tokens", 0) for stage in stages)
    return Measured(tokens // 2, remark="not enough") if tokens else None
