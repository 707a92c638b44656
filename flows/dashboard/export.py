"""The dashboard as one self-contained HTML file, kept in the tracker, too."""

from collections.abc import Sequence
from pathlib import Path

from flows.dashboard import comparing
from flows.dashboard.audits import audits_of, overview
from flows.dashboard.details import details, manifest, wrong
from flows.dashboard.graph import graph_of
from flows.dashboard.index import Entry
from flows.dashboard.lists import NOTE
from flows.dashboard.svg import Descriptions, Picture
from flows.dashboard.watching import Watcher, watcher_of
from flows.pages import Column, Measured, Page, Paragraph, Part, Section, Table
from flows.pages.table import Cell
from moeprune.errors import BadInput

DRAWN = 6
"""Runs drawn and compared where none is named."""
PATIENCE = 120.0
"""Seconds for holding results against their recipes."""
NAME = "lineage"
"""Of the run in the tracker that keeps the file."""


def export(path: Path, runs: Sequence[str], store: Path) -> str:
    """Write the file, keep it in the tracker, and return the id of the run that has it there.

    `runs`, ids or their beginnings, are drawn and compared; none: the newest that finished, then others. Raises
    BadInput for a run that is not there, and where nothing has been recorded.
    """
    if path.suffix != ".html":
        raise BadInput(f"--export {path}: a page is an HTML file: give a name that ends in .html")
    watcher = watcher_of(store)
    watcher.read()
    chosen = _chosen(watcher, runs)
    watcher.ask([entry.id for entry in reversed(chosen)])
    watcher.check(PATIENCE)
    page_of(watcher, chosen).write(path)
    return watcher.tracker.keep_page(path, NAME)


def _chosen(watcher: Watcher, runs: Sequence[str]) -> list[Entry]:
    entries = list(watcher.index.entries.values())
    if not entries:
        raise BadInput("--export: the tracker has no run yet: `moeprune run params/demo.yaml` makes one")
    if not runs:
        return newest(entries)
    found = []
    for run in runs:
        fitting = [one for one in entries if one.id.startswith(run)]
        if len(fitting) != 1:
            raise BadInput(f"--run {run}: {len(fitting)} runs begin like that: `moeprune runs list` lists them")
        found += fitting
    return found


def newest(entries: Sequence[Entry]) -> list[Entry]:
    """Of runs, newest first, those to draw: the newest that finished, then others; an audit if there is no run."""
    pruning = [one for one in entries if not one.audit]
    return sorted(pruning, key=lambda one: one.lineage.run.status != "FINISHED")[:DRAWN] or list(entries[:1])


def page_of(watcher: Watcher, chosen: Sequence[Entry]) -> Page:
    """The page; `chosen` runs are drawn and compared, all are listed."""
    index, marks = watcher.index, watcher.marks
    entries = list(index.entries.values())
    nodes = index.graph([entry.id for entry in chosen])
    measured = comparing.measures(chosen) or comparing.measures(entries)
    every = comparing.overview(entries, measured[0]) if measured else []
    checked = f"; {watcher.unchecked} runs were not checked for stale results" if watcher.unchecked else ""
    damaged = f"; {len(watcher.damaged)} runs cannot be shown" if watcher.damaged else ""
    names = ", ".join(f"{entry.lineage.run.name} ({entry.id[:8]})" for entry in chosen)
    return Page(
        "Lineage",
        f"{len(entries):,} runs with {len(index.nodes):,} results. Drawn and compared: {names}.\n"
        f"{len(marks.stale):,} results are stale: their recipes would come to others now. "
        f"{sum(map(marks.missing, index.nodes)):,} are missing: neither the store nor DVC has them. "
        f"Of {len(marks.unknown.keys() | marks.unseen.keys()):,} one or the other is not known{checked}{damaged}.",
        [
            Section("Graph", [Picture(graph_of(nodes), marks)]),
            Section("Stale and missing", [_wrong(watcher)]),
            *every,
            *comparing.beside(chosen, watcher.tracker),
            Section("Runs", [_runs(entries)]),
            *([Section("Audits", [overview(audits_of(index))])] if audits_of(index) else []),
            Section("Results", [_described(watcher, list(nodes))]),
        ],
        f"Made by `moeprune dashboard --export` on {index.read:%Y-%m-%d at %H:%M} UTC.",
    )


def _described(watcher: Watcher, paths: Sequence[str]) -> Part:
    return Descriptions([(details(path, watcher.index, watcher.marks), _manifest(watcher, path)) for path in paths])


def _manifest(watcher: Watcher, path: str) -> dict[str, object] | None:
    try:
        return manifest(watcher.index.nodes[path], watcher.tracker)
    except BadInput:
        return None


def _wrong(watcher: Watcher) -> Part:
    nodes, marks = watcher.index.nodes, watcher.marks
    rows: list[list[Cell]] = [
        [nodes[path].label, nodes[path].stage.digest[:8], path[:20], "; ".join(said)]
        for path in nodes
        if (said := wrong(path, marks))
    ]
    columns = [Column("result"), Column("digest"), Column("place in the store"), Column("what is wrong")]
    return Table("Stale and missing results", columns, rows, "wrong.csv") if rows else Paragraph("None is known.")


def _runs(entries: Sequence[Entry]) -> Part:
    rows: list[list[Cell]] = [
        [
            f"{entry.lineage.run.start:%Y-%m-%d %H:%M}", f"{entry.lineage.run.name} ({entry.id[:8]})",
            entry.method, entry.budget, ", ".join(entry.corpora), _change(entry),
            comparing.weights(entry, entry.final), entry.lineage.run.status.lower(),
        ]
        for entry in entries
    ]  # fmt: skip
    columns = [
        Column("began (UTC)"), Column("run"), Column("criterion"), Column("removed or kept"), Column("corpora"),
        Column("change of the first measure", "+.3f"), Column("memory (MB)", ",.1f"), Column("state"),
    ]  # fmt: skip
    return Table("All runs, newest first", columns, rows, "runs.csv", NOTE)


def _change(entry: Entry) -> Measured | None:
    names = comparing.measures([entry], comparing.delta(entry))
    return comparing.measured(entry, comparing.delta(entry) + names[0]) if names else None
