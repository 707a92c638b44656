"""What is wrong with a node: stale, if its recipe would come to another result now; missing, if its bytes are lost."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flows.dashboard.index import Node
from moeprune.errors import BadInput
from tasks import versioning
from tasks.artifacts import MANIFEST, Store

STORE, CACHE = "store", "cache"


@dataclass(frozen=True)
class Marks:
    """What is known so far of all nodes, by their paths."""

    stale: Mapping[str, str] = field(default_factory=dict)
    """Why a node is stale; not in here: it is not, or that is not known."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Why it cannot be told."""
    places: Mapping[str, str | None] = field(default_factory=dict)
    """Where a node's bytes are to be had; None: nowhere."""
    unseen: Mapping[str, str] = field(default_factory=dict)
    """Why it cannot be told where they are."""

    def missing(self, path: str) -> bool:
        """Whether neither the store nor DVC has a node's bytes; False while that is not known."""
        return path in self.places and self.places[path] is None


def places(nodes: Iterable[Node], store: Store, project: Path) -> tuple[dict[str, str | None], dict[str, str]]:
    """Where the bytes of nodes are: the store, DVC's cache, a remote of DVC by its name, or None, nowhere.

    Nodes that may be in a remote that could not be asked are among the second, with the reason. Files are looked at by
    name and size, not hashed.
    """
    listed = list(nodes)
    found: dict[str, str | None] = {node.path: STORE if _whole(store.place(node.path)) else None for node in listed}
    wanted = {node.path: node.stage.md5 for node in listed if found[node.path] is None and node.stage.md5}
    if not wanted:
        return found, {}
    try:
        survey = versioning.survey(wanted.values(), project)
    except BadInput:  # no DVC project: nothing can be there
        return found, {}
    silent = "; ".join(f"DVC remote {name!r} cannot be asked: {why}" for name, why in survey.silent.items())
    unseen = {path: silent for path, md5 in wanted.items() if silent and not survey.places[md5]}
    for path, md5 in wanted.items():
        if survey.places[md5]:
            place = min(survey.places[md5], key=lambda one: (one != CACHE, one))
            found[path] = "DVC cache" if place == CACHE else f"DVC remote {place!r}"
    return {path: place for path, place in found.items() if path not in unseen}, unseen


def _whole(folder: Path) -> bool:
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        return all((folder / name).stat().st_size == file["bytes"] for name, file in files.items())
    except (OSError, ValueError, KeyError):
        return False
