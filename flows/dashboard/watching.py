"""The index and the marks kept up to date in the background while pages are looked at."""

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic, sleep

from flows.dashboard.index import Index
from flows.dashboard.marks import Marks, places
from moeprune.errors import BadInput
from tasks.artifacts import Store
from tasks.lineage import Lineage, read_lineages, recipe_text
from tasks.registry import Registry
from tasks.tracked import LoggedModel
from tasks.tracking import Tracker, open_tracker

FIRST = 30
"""Newest runs and sweeps read first, so that there is something to look at."""
AGAIN = 10.0
"""Seconds between looks for new runs."""
STILL = 0.2
"""Seconds that checking waits after a request: pages are answered first."""
WHOLE = 600.0
"""Seconds after which everything is read and checked again: tags, code, sources and files may have changed."""
OPEN = timedelta(days=2)
"""How long a run that has not ended is read again and again; by then its process is gone."""


def watcher_of(store: Path) -> "Watcher":
    """Of a store and its tracker, seen from the working directory. Raises BadInput if there is nothing to look at."""
    found = Store(store)
    if not Tracker(found).is_there:
        raise BadInput(
            f"there is neither {store / 'mlflow.db'} nor MLFLOW_TRACKING_URI: start it in a project that "
            "has runs, or name the store with --store or the team's tracker"
        )
    return Watcher(open_tracker(found), found, Path.cwd())


class Watcher:
    """What pages read: `index` and `marks` are replaced as a whole, never changed, so that readers need no lock."""

    def __init__(self, tracker: Tracker, store: Store, project: Path) -> None:
        self.tracker, self.store, self.project = tracker, store, project
        self.index = Index()
        self.marks = Marks()
        self.version = 0
        """Counts the changes of either."""
        self.registered: dict[str, tuple[str, ...]] = {}
        """What models are called in the registry, with their aliases, by their digests."""
        self.whole = False
        """Whether all runs have been read."""
        self.trouble = ""
        """Why the last look at the tracker failed; empty if it did not."""
        self.damaged: dict[str, str] = {}
        """Why runs cannot be shown, by their ids."""
        self._models: Mapping[str, LoggedModel] = {}
        """All that have been read, by their digests."""
        self._waiting: deque[str] = deque()
        self._looked_at: set[str] = set()
        self._placed: set[str] = set()
        """Nodes whose bytes have been looked for since everything was read."""
        self._lock = Lock()
        self._wake = Event()
        self._ended = False
        self._asked = -STILL
        self._all_read = -WHOLE

    def start(self) -> None:
        """Keep it up to date until `stop`."""
        Thread(target=self._run, name="dashboard", daemon=True).start()

    def stop(self) -> None:
        """Come to an end after what is being done."""
        self._ended = True
        self._wake.set()

    def refresh(self) -> None:
        """Read and check everything again, soon."""
        self._all_read = -WHOLE
        self._wake.set()

    def give_way(self) -> None:
        """Somebody waits for a page: check later."""
        self._asked = monotonic()

    def ask(self, runs: Iterable[str]) -> None:
        """Check the results of these runs before others."""
        with self._lock:
            self._looked_at = set(runs) & set(self._waiting)
            for run in runs:
                if run in self._looked_at:
                    self._waiting.remove(run)
                    self._waiting.appendleft(run)

    @property
    def unchecked(self) -> int:
        """Runs whose results have not been held against their recipes yet."""
        return len(self._waiting)

    def read(self) -> None:
        """Read the tracker: the newest runs first, then all; later what is new or not ended."""
        now = datetime.now(UTC)
        if monotonic() - self._all_read >= WHOLE:
            self._all_read = monotonic()
            try:
                self._read_all(now)
            except Exception:
                self._all_read = -WHOLE
                raise
        else:
            runs = [entry.lineage.run for entry in self.index.entries.values()]
            opened = [run.start for run in runs if run.status == "RUNNING" and run.start > now - OPEN]
            since = min([*opened, *(run.start for run in runs[:1])], default=None)
            known = self.index.entries.keys()
            self._add(updated := self.index.updated(self._lineages(since), now))
            with self._lock:
                self._waiting.extendleft(updated.entries.keys() - known)

    def _read_all(self, now: datetime) -> None:
        self._models = {}  # those of deleted runs go
        if not self.whole and len(newest := self.tracker.list_runs(FIRST)) == FIRST:
            self._add(Index.of(self._lineages(newest[-1].start), now))
        self._add(Index.of(self._lineages(), now))
        self.registered = _registered(Registry(self.tracker))
        self.whole = True
        self._placed.clear()
        with self._lock:
            self._waiting = deque(self.index.entries)

    def _lineages(self, since: datetime | None = None) -> list[Lineage]:
        found = read_lineages(self.tracker, since, self._models)
        self._models = found.models
        read = {one.run.id for one in found.whole}
        before = {} if since is None else {run: why for run, why in self.damaged.items() if run not in read}
        self.damaged = before | {run.id: f"run {run.id[:8]}: {why}" for run, why in found.damaged}
        return found.whole

    def _add(self, index: Index) -> None:
        _ = index.nodes, index.read_by, [entry.words for entry in index.entries.values()]  # not while a page waits
        changed = index.entries != self.index.entries
        self.index = index
        self.version += changed

    def _mark(self, marks: Marks) -> None:
        changed = marks != self.marks
        self.marks = marks
        self.version += changed

    def check(self, seconds: float = AGAIN) -> None:
        """Look where bytes are, and hold runs against their recipes, for about so long."""
        until = monotonic() + seconds
        unplaced = [node for path, node in self.index.nodes.items() if path not in self._placed]
        if unplaced:
            found, unseen = places(unplaced, self.store, self.project)
            looked = {*found, *unseen}
            self._placed |= looked
            known = {path: place for path, place in self.marks.places.items() if path not in looked}
            before = {path: why for path, why in self.marks.unseen.items() if path not in looked}
            self._mark(replace(self.marks, places=known | found, unseen=before | unseen))
        stale, unknown = dict(self.marks.stale), dict(self.marks.unknown)

        def show() -> None:
            self._mark(replace(self.marks, stale=dict(stale), unknown=dict(unknown)))

        while self._waiting and monotonic() < until and not self._ended:
            sleep(max(0.0, self._asked + STILL - monotonic()))
            with self._lock:
                run = self._waiting.popleft()
            if run in self.index.entries:
                self._hold(run, stale, unknown)
            if run in self._looked_at:
                self._looked_at.discard(run)
                if not self._looked_at:  # of the others it is told at the end: what is told has pages drawn anew
                    show()
        show()

    def _hold(self, run: str, stale: dict[str, str], unknown: dict[str, str]) -> None:
        from flows.dashboard.staleness import Stale, hold

        lineage = self.index.entries[run].lineage
        try:
            found = hold(lineage, recipe_text(self.tracker, run), self.store)
        except BadInput as error:
            found = Stale(unknown=str(error))
        except Exception as error:  # one recipe, of another version or another hand, must not end the round
            found = Stale(unknown=" ".join(f"{type(error).__name__}: {error}".split()))
        for path in (one.path for one in lineage.stages):
            if self.index.nodes[path].uses[0].run == run:  # runs share results: the newest says whether one is stale
                for told, why in ((stale, found.reasons.get(path)), (unknown, found.unknown)):
                    told.pop(path, None)
                    if why:
                        told[path] = why

    def _run(self) -> None:
        while not self._ended:
            self._wake.clear()
            try:
                self.read()
                self.check()
                self.trouble = ""
            except Exception as error:  # a tracker or a disk that is away may come back
                self.trouble = f"{type(error).__name__}: {error}".splitlines()[0]
                logging.getLogger("moeprune").warning("dashboard: %s", self.trouble)
            if not self._waiting:
                self._wake.wait(AGAIN)


def _registered(registry: Registry) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for version in registry.versions():
        aliases = f": {', '.join(version.aliases)}" if version.aliases else ""
        found.setdefault(version.digest, []).append(f"{version}{aliases}")
    return {digest: tuple(names) for digest, names in found.items()}
