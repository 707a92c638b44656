"""Housekeeping: what of a store may go, and making it go.

A result goes only for a disk budget, the least recently used first, and never if a run that is kept, a run whose model
an alias of the registry names, or a run under way needs it. Progress and folders of processes that are gone always go.
What went can be made again; which takes what it took, so nothing goes unless that is asked for.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError

from moeprune.errors import BadInput
from tasks.artifacts import MANIFEST, Store
from tasks.lineage import Lineage, read_lineages
from tasks.registry import Registry
from tasks.tracked import KEPT
from tasks.tracking import Tracker

MARGIN = timedelta(hours=1)
"""A run finds what there is before it is on record."""
TRASH = "trash"
"""The folder of a store where results lie while they are removed."""
KEY = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Item:
    """A folder of the store that may go."""

    path: Path
    """In the store."""
    what: str
    """A result, progress, an unfinished folder or waste."""
    bytes: int
    """What its going frees: bytes of files that have no other name elsewhere."""
    used: datetime
    lock: str
    """Held by whoever is working on it."""


@dataclass
class Collection:
    """What went, or would go."""

    root: Path
    held: int
    """Bytes that the store alone held before."""
    budget: int | None
    removed: bool
    """Whether anything was removed; else this is what would be."""
    items: list[Item] = field(default_factory=list)
    stays: Counter[str] = field(default_factory=Counter)
    """Bytes of results that must not go, by the reason."""

    @property
    def freed(self) -> int:
        """Bytes of all that went."""
        return sum(item.bytes for item in self.items)

    @property
    def beyond(self) -> int:
        """Bytes by which the budget is missed."""
        return 0 if self.budget is None else max(0, self.held - self.freed - self.budget)


def read_budget(text: str) -> int:
    """Bytes such as 50GB or 200MiB. Raises BadInput."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise BadInput(f"--budget {text}: give bytes, such as 50GB") from error


def collect(root: Path, budget: int | None = None, unnamed: bool = False, delete: bool = False) -> Collection:
    """Clear a store until it holds no more than `budget` bytes, or see what that would take; without, only waste.

    Results that no run of the tracker names, such as those of runs deleted there, go with `unnamed` only: they may be
    of another tracker. Raises BadInput if the tracker cannot be asked.
    """
    store = Store(root)
    if not root.is_dir():
        raise BadInput(f"--store {root}: there is no such folder: give a store, such as .moeprune")
    tracker = Tracker(store)
    tracker.check()
    found = Collection(root, _held(root), budget, delete)
    guard = _Guard(tracker)
    for item in _waste(store):
        take(item, store, found)
    for item in sorted(results_of(store), key=lambda item: item.used):
        reason = guard.reason(item)
        if reason:
            found.stays[reason] += item.bytes
        elif str(item.path) not in guard.named:
            if unnamed:
                take(item, store, found)
            else:
                found.stays["named by no run of this tracker"] += item.bytes
        elif found.beyond:
            take(item, store, found)
    return found


class _Guard:
    """What must not go."""

    def __init__(self, tracker: Tracker) -> None:
        running = tracker.under_way()  # first: what comes to its end meanwhile counts as under way
        self._since = min((run.start for run in running), default=datetime.max.replace(tzinfo=UTC)) - MARGIN
        self._reasons: dict[str, str] = {}
        self.named: set[str] = set()
        aliases = {
            version.digest: f"{version.name}@{version.aliases[0]}"
            for version in Registry(tracker).versions()
            if version.aliases
        }
        ids = {run.id for run in running}
        for run in read_lineages(tracker):
            paths = {path for stage in run.stages for path in (stage.path, *stage.inputs.values())}
            self.named |= paths
            if reason := _reason(run, aliases, ids):
                self._reasons |= dict.fromkeys(paths, reason)

    def reason(self, item: Item) -> str | None:
        """Why this result must stay, or None."""
        used = "used since the oldest run under way began" if item.used >= self._since else None
        return self._reasons.get(str(item.path)) or used


def _reason(run: Lineage, aliases: Mapping[str, str], under_way: set[str]) -> str | None:
    if KEPT in run.run.tags:
        return f"needed by kept run {run.run.id[:8]}"
    made = (aliases.get(stage.digest) for stage in run.stages if stage.stage in ("prune", "distill"))
    if alias := next(filter(None, made), None):
        return f"needed by {alias}"
    return f"needed by run {run.run.id[:8]}, under way" if run.run.id in under_way else None


def results_of(store: Store) -> Iterator[Item]:
    """All results but those that are only other names of files elsewhere, and when each was used last."""
    for folder in store.root.glob("*/*"):
        manifest = folder / MANIFEST
        if KEY.fullmatch(folder.name) and manifest.is_file():
            path = folder.relative_to(store.root)
            used, held = datetime.fromtimestamp(manifest.stat().st_mtime, UTC), _held(folder)
            if not _is_links(folder, held):
                yield Item(path, "result", held, used, f"{path.parent}-{path.name}")


def _waste(store: Store) -> Iterator[Item]:
    """Progress of stages nobody is working on, results that were never finished, and what a killed gc left behind."""
    kinds = (("partial/*", "progress"), ("*/.*.building", "unfinished"), (f"{TRASH}/*", "waste"))
    for pattern, what in kinds:
        for folder in sorted(store.root.glob(pattern)):
            path = folder.relative_to(store.root)
            stage = f"{path.parent}-{path.name.removesuffix('.building')[1:]}" if what == "unfinished" else path.name
            used = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
            yield Item(path, what, _held(folder), used, stage.removeprefix("restore-"))


def take(item: Item, store: Store, found: Collection) -> None:
    """Count an item as gone and, if that is what is wanted, remove it; not if somebody is at it."""
    with store.try_lock(item.lock) as free:
        if not free:
            found.stays["in somebody's hands"] += item.bytes
        elif not found.removed or _remove(item, store):
            found.items.append(item)


def _remove(item: Item, store: Store) -> bool:
    """False if it was used since it was looked at."""
    folder, gone = store.root / item.path, store.root / TRASH / item.lock
    if item.what == "result":
        gone.parent.mkdir(exist_ok=True)
        with store.lock("collecting"):  # whoever finds a result notes it under this lock
            if datetime.fromtimestamp((folder / MANIFEST).stat().st_mtime, UTC) != item.used:
                return False
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
        (store.root / "results" / item.lock).unlink(missing_ok=True)
        folder = gone
    shutil.rmtree(folder)
    return True


def _held(folder: Path) -> int:
    """Bytes of the files in a folder that have no other name elsewhere: what their going would free."""
    names: Counter[tuple[int, int]] = Counter()
    files: dict[tuple[int, int], os.stat_result] = {}
    for state in _files(folder):
        names[state.st_dev, state.st_ino] += 1
        files[state.st_dev, state.st_ino] = state
    return sum(state.st_size for one, state in files.items() if state.st_nlink <= names[one])


def _is_links(folder: Path, held: int) -> bool:
    """Whether most of it has another name elsewhere, as a base model from a folder or the Hub's cache has."""
    return 2 * held < sum(path.stat().st_size for path in folder.iterdir() if path.exists())


def _files(folder: Path) -> Iterator[os.stat_result]:
    for place, _, inside in os.walk(folder):
        for name in inside:
            with suppress(FileNotFoundError):  # somebody is working here
                yield os.lstat(Path(place, name))
