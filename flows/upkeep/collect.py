"""Housekeeping: what of a store may go, and making it go.

A result goes only for a disk budget, the least recently used first, and never if `needing` knows who needs it. Folders
that processes now gone have not finished always go; their progress goes first for a budget, else after a week. What
went can be made again; which takes what it took, so nothing goes unless that is asked for.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError

from flows.upkeep.needing import needed_of
from moeprune.errors import BadInput
from tasks.artifacts import MANIFEST, Store
from tasks.tracking import open_tracker

WEEK = timedelta(weeks=1)
"""So long progress waits for its run to go on."""
PROGRESS = "progress"
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
    freed: int = 0
    """Bytes of all that went."""
    stays: Counter[str] = field(default_factory=Counter)
    """Bytes of results that must not go, by the reason."""

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
    tracker = open_tracker(store)
    needed = needed_of(tracker)
    found = Collection(root, _held(root), budget, delete)
    for item in waste_of(store):
        if item.what != PROGRESS or found.beyond or item.used < datetime.now(UTC) - WEEK:
            take(item, store, found)
        else:
            found.stays["progress of killed runs, which would go on from it"] += item.bytes
    for item in sorted(results_of(store), key=lambda item: item.used):
        reason = needed.reason(str(item.path), item.used)
        if reason:
            found.stays[reason] += item.bytes
        elif str(item.path) not in needed.named:
            if unnamed:
                take(item, store, found)
            else:
                found.stays["named by no run of this tracker"] += item.bytes
        elif found.beyond:
            take(item, store, found)
    return found


def results_of(store: Store) -> Iterator[Item]:
    """All results but those that are only other names of files elsewhere, and when each was used last."""
    for folder in store.root.glob("*/*"):
        if KEY.fullmatch(folder.name):
            with suppress(FileNotFoundError):  # another gc has taken it
                path, held = folder.relative_to(store.root), _held(folder)
                if not _is_links(folder, held):
                    yield Item(path, "result", held, _time(folder / MANIFEST), f"{path.parent}-{path.name}")


def waste_of(store: Store) -> Iterator[Item]:
    """Progress of stages, folders of results and restores that are not finished, and what a killed gc left behind."""
    for pattern, what in (("partial/*", PROGRESS), ("*/.*.building", "unfinished"), (f"{TRASH}/*", "waste")):
        for folder in sorted(store.root.glob(pattern)):
            path = folder.relative_to(store.root)
            lock = f"{path.parent}-{path.name.removesuffix('.building')[1:]}" if what == "unfinished" else path.name
            restored = lock.startswith("restore-")
            with suppress(FileNotFoundError):
                used = max(map(_time, [folder, *folder.rglob("*")]))
                kind = "unfinished" if restored else what
                yield Item(path, kind, _held(folder), used, lock.removeprefix("restore-"))


def take(item: Item, store: Store, found: Collection) -> None:
    """Count an item as gone and, if that is what is wanted, remove it; not if somebody is at it."""
    with store.try_lock(item.lock) as free:
        if not free:
            found.stays["in somebody's hands"] += item.bytes
        elif not found.removed or _remove(item, store):
            found.items.append(item)
            found.freed += item.bytes


def _remove(item: Item, store: Store) -> bool:
    """False if it was used since it was looked at, or is gone already."""
    folder, gone = store.root / item.path, store.root / TRASH / item.lock
    try:
        if item.what == "result":
            gone.parent.mkdir(exist_ok=True)
            with store.lock("collecting"):  # whoever finds a result notes it under this lock
                if _time(folder / MANIFEST) != item.used:
                    return False
                shutil.rmtree(gone, ignore_errors=True)
                folder.rename(gone)
            (store.root / "results" / item.lock).unlink(missing_ok=True)
            folder = gone
        shutil.rmtree(folder)
    except FileNotFoundError:  # another gc was quicker
        return False
    return True


def _time(path: Path) -> datetime:
    return datetime.fromtimestamp(path.lstat().st_mtime, UTC)


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
