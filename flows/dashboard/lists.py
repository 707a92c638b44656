"""Runs in rows, page by page, and the words above them."""

from collections.abc import Sequence
from typing import Any

from dash import dcc, html

from flows.dashboard import comparing
from flows.dashboard.index import Entry, Index
from flows.dashboard.marks import Marks
from flows.dashboard.parts import plain_table
from flows.dashboard.watching import Watcher

PAGE = 15
"""Runs in a page of the list."""
NOTE = "Change: from the base model, ±: half of the 95% interval. MB: of the weights in memory, or of the files."
SORTS = {"newest": "newest first", "method": "criterion", "memory": "least memory", "name": "name"}


def ordered(entries: Sequence[Entry], by: str) -> list[Entry]:
    """Runs in the order asked for, newest first among equals."""
    if by == "method":
        return sorted(entries, key=lambda one: (one.method, one.budget))
    if by == "memory":
        sized = {one.id: comparing.weights(one, one.final) for one in entries}
        return sorted(entries, key=lambda one: sized[one.id] or float("inf"))
    if by == "name":
        return sorted(entries, key=lambda one: one.lineage.run.name)
    return list(entries)


def marked(entries: Sequence[Entry], marks: Marks, wanted: str) -> list[Entry]:
    """The runs that have a result with this mark: stale, missing, or any run for an empty word."""
    if wanted == "stale":
        return [one for one in entries if any(stage.path in marks.stale for stage in one.lineage.stages)]
    if wanted == "missing":
        return [one for one in entries if any(marks.missing(stage.path) for stage in one.lineage.stages)]
    return list(entries)


def page(entries: Sequence[Entry], number: int) -> tuple[int, Sequence[Entry]]:
    """The number of a page, brought within what there is, and the runs on it."""
    number = max(0, min(number, (len(entries) - 1) // PAGE))
    return number, entries[number * PAGE : (number + 1) * PAGE]


def said(entries: Sequence[Entry]) -> list[list[str]]:
    """What rows say but for their marks: they are made anew, and lose the reader's focus, only if that has changed."""
    return [[one.id, one.lineage.run.status, _change(one)] for one in entries]


def turning(found: int, number: int, chosen: int) -> list[Any]:
    """Which page of how many runs it is, and buttons to turn it."""
    first = number * PAGE
    last = min(first + PAGE, found)
    told = f"{first + 1:,} to {last:,} of {found:,} runs" if found else "No run fits"

    def turn(text: str, by: int, possible: bool) -> Any:
        return html.Button(text, id={"type": "turn", "by": by}, type="button", disabled=not possible)

    return [
        turn("Previous", -1, first > 0),
        html.Span(f"{told}; {chosen} chosen", role="status"),
        turn("Next", 1, last < found),
        html.Button("Choose none", id={"type": "forget"}, type="button", disabled=not chosen),
    ]


def table(entries: Sequence[Entry], chosen: Sequence[str], marks: Marks) -> Any:
    """Runs with a box to choose each by."""
    heads = ["", "began (UTC)", "run", "criterion", "removed or kept", "corpora", "change", "MB", "state", "marks"]
    kinds = ["", "date", *[""] * 4, "number", "number", "", ""]
    rows = [_row(one, one.id in chosen, marks) for one in entries]
    return html.Div([plain_table(heads, rows, kinds), html.P(NOTE, className="note")])


def _row(entry: Entry, chosen: bool, marks: Marks) -> list[Any]:
    run = entry.lineage.run
    size = comparing.weights(entry, entry.final)
    return [
        dcc.Checklist(
            id={"type": "pick", "run": entry.id},
            options=[{"label": html.Span(f"choose {run.name} {run.id[:8]}", className="hidden"), "value": run.id}],
            value=[run.id] if chosen else [],
        ),
        f"{run.start:%Y-%m-%d %H:%M}",
        f"{run.name} ({run.id[:8]})",
        f"audit: {entry.method}" if entry.audit else entry.method,
        entry.budget,
        ", ".join(entry.corpora),
        _change(entry),
        "" if size is None else f"{size:,.1f}",
        run.status.lower(),
        html.Span(marks_of(entry, marks), id={"type": "marks", "run": entry.id}),
    ]


def _change(entry: Entry) -> str:
    """Of the first accuracy, else of the first perplexity."""
    begin = comparing.delta(entry)
    names = comparing.measures([entry], begin)
    found = comparing.measured(entry, begin + names[0]) if names else None
    if found is None:
        return ""
    return f"{names[0]} {found.value:+.3f}" + (f" ± {found.spread:.3f}" if found.spread is not None else "")


def marks_of(entry: Entry, marks: Marks) -> str:
    """How many of a run's results are stale or missing, in words, and whether that is known of all."""
    paths = [stage.path for stage in entry.lineage.stages]
    counts = {
        "stale": sum(path in marks.stale for path in paths),
        "missing": sum(marks.missing(path) for path in paths),
    }
    unsure = {
        "stale": any(path in marks.unknown for path in paths),
        "missing": any(path in marks.unseen for path in paths),
    }
    found = [f"{count} {name}" for name, count in counts.items() if count]
    return ", ".join(found + [f"not known whether {name}" for name, any_ in unsure.items() if any_])


def status(watcher: Watcher) -> str:
    """How much is known, and what is in the way of knowing more."""
    index: Index = watcher.index
    if watcher.trouble:
        return f"The tracker could not be read: {watcher.trouble}"
    if index.read is None:
        return "Reading the tracker ..."
    read = f"{len(index.entries):,} runs, {len(index.nodes):,} results, read {index.read:%H:%M:%S} UTC"
    if damaged := tuple(watcher.damaged.values()):
        read += f"; {len(damaged):,} {'run' if len(damaged) == 1 else 'runs'} cannot be shown: {damaged[0]}"
    if not watcher.whole:
        return f"{read}; older runs are still being read ..."
    return f"{read}; {watcher.unchecked:,} runs still to be checked for stale results" if watcher.unchecked else read
