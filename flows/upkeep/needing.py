"""What of a store must stay: what kept runs, registered models and runs under way need."""

import json
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tasks.artifacts import MANIFEST, Artifact, Store
from tasks.lineage import PLACE, Lineage, lineage_of
from tasks.registry import Registry
from tasks.tracked import KEPT
from tasks.tracking import Tracker

MARGIN = timedelta(hours=1)
"""A run finds what there is before it is on record."""
USED = "used since the oldest run under way began, or this"


@dataclass(frozen=True)
class Needed:
    """Which results of a store must stay, by their places in it."""

    reasons: Mapping[str, str]
    named: frozenset[str]
    """All that runs on record name."""
    since: datetime
    """Whatever was used then or later stays."""

    def reason(self, path: str, used: datetime) -> str | None:
        """Why this result must stay, or None."""
        return self.reasons.get(path) or (USED if used >= self.since else None)


@dataclass(frozen=True)
class Stored:
    """A result in the store, by its own manifest."""

    digest: str
    inputs: tuple[str, ...]


def needed_of(tracker: Tracker) -> Needed:
    """What the tracker's runs, of all its experiments, and its registry need of its store.

    What comes to be needed meanwhile has been used meanwhile: a run notes that, and so do `runs keep` and `promote`.
    """
    begun = datetime.now(UTC)  # first: a run may begin, or come to its end, while all this is read
    experiments = tracker.experiments()
    under_way = [run for one in experiments for run in one.under_way()]
    stored = read_stored(tracker.store)
    registered = {
        version.digest: f"{version.name}@{version.aliases[0]}" if version.aliases else str(version)
        for version in Registry(tracker).versions()
    }
    reasons: dict[str, str] = {}
    for path, result in stored.items():  # whether or not there is still a run that made it
        if result.digest in registered:
            reasons |= dict.fromkeys(_with_inputs([path], stored), f"needed by {registered[result.digest]}")
    named: set[str] = set()
    ids = {run.id for run in under_way}
    for run in (lineage_of(record) for one in experiments for record in one.runs_with_stages()):
        paths = _with_inputs(_paths(run), stored)
        named |= paths
        if reason := _reason(run, registered, ids):
            reasons |= dict.fromkeys(paths, reason)
    return Needed(reasons, frozenset(named), min([begun, *(run.start - MARGIN for run in under_way)]))


def note_use(run: Lineage, store: Store) -> list[str]:
    """Note that all results of a run are used now: a gc that is under way sees that. Titles of those not there."""
    return [
        stage.title
        for stage in run.stages
        if not store.touch(Artifact(stage=stage.stage, key=stage.key, digest=stage.digest))
    ]


def read_stored(store: Store) -> dict[str, Stored]:
    """All results by their places in the store; what has no readable manifest is left out."""
    found = {}
    for manifest in store.root.glob(f"*/*/{MANIFEST}"):
        path = str(manifest.parent.relative_to(store.root))
        if PLACE.fullmatch(path):
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                content = json.loads(manifest.read_text())
                inputs = tuple(f"{entry['stage']}/{entry['key']}" for entry in content["inputs"].values())
                found[path] = Stored(content["digest"], inputs)
    return found


def _paths(run: Lineage) -> set[str]:
    """What a run names, in its stages' records and, should one of those have been deleted, in its own."""
    own = (value for tag, value in run.run.tags.items() if tag.startswith("artifact."))
    return {*own, *(path for stage in run.stages for path in (stage.path, *stage.inputs.values()))}


def _with_inputs(paths: Iterable[str], stored: Mapping[str, Stored]) -> set[str]:
    found = set(paths)
    waiting = deque(found)
    while waiting:
        result = stored.get(waiting.popleft())
        for path in result.inputs if result else ():
            if path not in found:
                found.add(path)
                waiting.append(path)
    return found


def _reason(run: Lineage, registered: Mapping[str, str], under_way: set[str]) -> str | None:
    if KEPT in run.run.tags:
        return f"needed by kept run {run.run.id[:8]}"
    made = (registered.get(stage.digest) for stage in run.stages if stage.stage in ("prune", "distill"))
    if model := next(filter(None, made), None):
        return f"needed by {model}"
    return f"needed by run {run.run.id[:8]}, under way" if run.run.id in under_way else None
