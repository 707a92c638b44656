"""All that is known of one node: where it came from, where its bytes are, who read it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.dashboard.index import Index, Node
from flows.dashboard.marks import Marks
from tasks.artifacts import MANIFEST, Store
from tasks.lineage import read_manifest
from tasks.tracking import Tracker


@dataclass(frozen=True)
class Details:
    """A node told to a reader."""

    node: Node
    facts: Mapping[str, str]
    """Short values by what they are."""
    marks: tuple[str, ...]
    """What is wrong with it, or cannot be told of it, in words; empty if it is known to be well."""
    origins: tuple[str, ...]
    """Paths of the results it was made from."""
    products: tuple[str, ...]
    """Paths of the results that were made from it."""


def details(path: str, index: Index, marks: Marks) -> Details:
    """What the index knows of a node. Raises KeyError for one that it does not have."""
    node = index.nodes[path]
    stage, maker = node.stage, node.maker
    made = index.entries[maker.run].lineage.run if maker else None
    by = maker.stage if maker else stage
    facts = {
        "what": node.label,
        "produced by run": f"{made.name} ({made.id})" if made else "a run that the tracker does not have",
        "made": f"{by.start:%Y-%m-%d %H:%M:%S} UTC" if maker else "not known",
        "git commit": _commit(by.git_commit, by.git_dirty),
        "flow run": by.flow_run,
        "digest (sha256)": stage.digest,
        "key": stage.key,
        "DVC md5": stage.md5 or "not versioned by DVC",
        "store": path,
        "bytes found in": _place(marks, path),
        "cache": f"hit in {_hits(node)} of {len(node.uses)} runs",
        "seconds": f"{by.metrics['seconds']:.1f}" if "seconds" in by.metrics else "not known",
    }
    return Details(
        node,
        facts,
        marks_in_words(path, marks),
        tuple(dict.fromkeys(stage.inputs.values())),
        tuple(index.read_by.get(path, ())),
    )


def marks_in_words(path: str, marks: Marks) -> tuple[str, ...]:
    """A node's marks in words, and why there may be others."""
    unsure = []
    if path in marks.unknown:
        unsure.append(f"not known whether stale: {marks.unknown[path]}")
    if path in marks.unseen:
        unsure.append(f"not known whether missing: {marks.unseen[path]}")
    return (*wrong(path, marks), *unsure)


def wrong(path: str, marks: Marks) -> tuple[str, ...]:
    """A node's marks in words."""
    found = []
    if path in marks.stale:
        found.append(f"stale: {marks.stale[path]}")
    if marks.missing(path):
        found.append("missing: neither the store nor DVC has its bytes; `moeprune restore` may bring them back")
    return tuple(found)


def _hits(node: Node) -> int:
    return sum(use.stage.cache == "hit" for use in node.uses)


def _commit(commit: str | None, dirty: bool | None) -> str:
    return "not in git" if commit is None else f"{commit}{' with changes of its own' if dirty else ''}"


def _place(marks: Marks, path: str) -> str:
    if path in marks.unseen:
        return f"not known: {marks.unseen[path]}"
    if path not in marks.places:
        return "not looked at yet"
    return marks.places[path] or "nowhere"


def manifest(node: Node, tracker: Tracker) -> dict[str, Any]:
    """The store's manifest, else the one the tracker kept. Raises BadInput if neither has it."""
    content = _of_store(node, tracker.store)
    return read_manifest(tracker, node.stage) if content is None else content


def _of_store(node: Node, store: Store) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((store.place(node.path) / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return content
