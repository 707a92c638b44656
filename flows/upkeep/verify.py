"""Verifying runs: whether all that they name is still there and as it was, and how to mend what is not."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import yaml

from flows.engine import LOGGED
from flows.handover.made import run_named
from flows.upkeep.rebuild import source_of
from flows.upkeep.restore import ON_DEMAND
from moeprune.checkpoint import open_checkpoint
from moeprune.errors import BadInput
from moeprune.hashing import digest_of, sha256
from tasks import versioning
from tasks.artifacts import MANIFEST, Artifact, Store
from tasks.lineage import Lineage, Lineages, Stage, read_lineage, read_lineages, read_manifest, recipe_text
from tasks.reachable import impatient
from tasks.tracked import RECIPE, Record, flatten
from tasks.tracking import Tracker, open_tracker

State = Literal["ok", "missing", "changed"]
AT_ONCE = 8
"""Files asked of the tracker."""
ANEW = "delete the run in MLflow and run its recipe again: what is in the store is found"


@dataclass(frozen=True)
class Thing:
    """Something that a run names."""

    run: str
    where: Literal["store", "DVC", "tracker", "source"]
    name: str
    state: State
    mend: str = ""
    """What to do about it, unless it is ok."""


@dataclass(frozen=True)
class Verification:
    """Runs and what they name."""

    runs: list[Record]
    things: list[Thing]

    @property
    def faults(self) -> list[Thing]:
        """What is not ok."""
        return [thing for thing in self.things if thing.state != "ok"]

    def counts(self, run: str) -> Counter[State]:
        """How many of the things that a run names are in which state."""
        return Counter(thing.state for thing in self.things if thing.run == run)


@impatient(retries=1, seconds=15)  # for a file that a server has lost MLflow would ask it for minutes
def verify(name: str | None, root: Path, project: Path, base: str | None = None, rehash: bool = False) -> Verification:
    """Check one run, by its id or as MODEL@ALIAS of the registry; without a `name` all that came to their end.

    `base` is where the base model is now, if not where the recipes say. Files in the store whose size and time of
    change are those of the last time count as unchanged, unless `rehash`. Raises BadInput for an unknown run.
    """
    tracker = open_tracker(Store(root))
    found = Lineages([read_lineage(tracker, run_named(name, tracker))], []) if name else read_lineages(tracker)
    runs = [run for run in found.whole if name or run.run.status == "FINISHED"]
    damaged = [(run, why) for run, why in found.damaged if run.status == "FINISHED"]
    checks = _Checks(runs, tracker, project, base, sha256 if rehash else tracker.store.hash_of)
    things = [thing for run in runs for thing in checks.of(run)]
    things += [Thing(run.id, "tracker", why, "changed", ANEW) for run, why in damaged]
    return Verification([*(run.run for run in runs), *(run for run, _ in damaged)], things)


@dataclass
class _Checks:
    runs: list[Lineage]
    tracker: Tracker
    project: Path
    base: str | None
    hash_of: Callable[[Path], str]

    def __post_init__(self) -> None:
        self._stored: dict[tuple[str, str], State] = {}
        self._sources: dict[tuple[str, ...], tuple[State, str]] = {}

    def of(self, run: Lineage) -> Iterator[Thing]:
        """Everything that one run names."""
        short = run.run.id[:8]
        again = f"moeprune restore {short}, then moeprune run {self.tracker.store.root}/recipes/{short}.yaml"
        for stage in run.stages:
            state = self._in_store(stage)
            everything = " --everything" if stage.stage in ON_DEMAND else ""
            yield _thing(run, "store", stage.title, state, f"moeprune restore {short}{everything}")
        yield from self._versioned(run, again)
        for stage in run.stages:
            if stage.stage == "download":
                yield self._source(run, stage)
        titles = {stage.title for stage in run.stages}
        for name in run.run.tags:
            kind, _, title = name.partition(".")
            if kind == "artifact" and title not in titles:
                yield _thing(run, "tracker", f"{title}: its record", "missing", again)
        yield _thing(run, "tracker", RECIPE, self._recipe(run), "run the recipe again, from where it was kept")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for stage, states in zip(run.stages, pool.map(self._files, run.stages), strict=True):
                for name, state in states.items():
                    yield _thing(run, "tracker", f"{stage.title}: {name}", state, again)
        for stage in run.stages:
            if stage.stage in ("download", "prune", "distill"):
                state = "ok" if any(model.digest == stage.digest for model in run.models) else "missing"
                yield _thing(run, "tracker", f"{stage.title}: logged model", state, again)

    def _versioned(self, run: Lineage, again: str) -> Iterator[Thing]:
        """What DVC has: the team's remote, where there is one, since nobody else gets at a cache."""
        if not any(stage.md5 for stage in run.stages):
            return
        found = self._survey
        sought = [(stage, found.places[stage.md5]) for stage in run.stages if stage.md5]
        safe = [stage.path for stage, places in sought if (found.team in places if found.team else places)]
        for remote, reason in found.silent.items() if len(safe) < len(sought) else ():  # it may have the others
            yield _thing(run, "DVC", f"remote '{remote}'", "missing", f"it could not be asked ({reason}): mend that")
        for stage, places in sought:
            if stage.path in safe:
                yield _thing(run, "DVC", stage.title, "ok", "")
            elif places and found.team not in found.silent:
                has = ", ".join(sorted(places))
                mend = f"{again}: the remote '{found.team}' has lost it, {has} has it, and a run pushes"
                yield _thing(run, "DVC", stage.title, "missing", mend)
            elif not found.silent:
                yield _thing(
                    run, "DVC", stage.title, "missing", f"{again}, where DVC's cache still has it: a run pushes"
                )

    def _in_store(self, stage: Stage) -> State:
        known = (stage.path, stage.digest)
        if known not in self._stored:
            store, artifact = self.tracker.store, Artifact(stage=stage.stage, key=stage.key, digest=stage.digest)
            if not store.folder(artifact).is_dir():
                self._stored[known] = "missing"
            elif (
                store.fault(store.folder(artifact), self.hash_of) or store.manifest(artifact)["digest"] != stage.digest
            ):
                self._stored[known] = "changed"
            else:
                self._stored[known] = "ok"
        return self._stored[known]

    @cached_property
    def _survey(self) -> versioning.Survey:
        md5s = [stage.md5 for run in self.runs for stage in run.stages if stage.md5]
        return versioning.survey(md5s, self.project, read=True)

    def _source(self, run: Lineage, stage: Stage) -> Thing:
        given = run.run.params | ({"download.source": self.base} if self.base else {})
        name = given["download.source"]
        commit = stage.params.get("source.commit", "")
        known = (name, commit, stage.digest)
        if known not in self._sources:
            self._sources[known] = self._look_at(given, stage)
        state, mend = self._sources[known]
        return _thing(run, "source", f"{name} {commit[:8]}".strip(), state, mend)

    def _look_at(self, given: dict[str, str], stage: Stage) -> tuple[State, str]:
        repository = {name: stage.params[f"source.{name}"] for name in ("commit",) if f"source.{name}" in stage.params}
        try:
            source = source_of(given, repository, self.tracker.store)
        except BadInput as error:
            return "missing", str(error)
        if source.folder is None:
            return ("ok", "") if source.commit == repository.get("commit") else ("changed", "give its commit")
        files = open_checkpoint(source.folder).files
        digest = digest_of({name: self.hash_of(source.folder / name) for name in files})
        return (
            ("ok", "") if digest == stage.digest else ("changed", "say with --base where the model that was pruned is")
        )

    def _recipe(self, run: Lineage) -> State:
        if RECIPE not in self.tracker.files(run.run.id):
            return "missing"
        try:
            content = flatten(yaml.safe_load(recipe_text(self.tracker, run.run.id)))
        except (BadInput, yaml.YAMLError, AttributeError):  # gone meanwhile, or not a recipe
            return "changed"
        return "ok" if content.items() <= run.run.params.items() else "changed"

    def _files(self, stage: Stage) -> dict[str, State]:
        """What the tracker keeps of a stage, held against its manifest."""
        kept = self.tracker.files(stage.id)
        states: dict[str, State] = {
            name: "changed" if name in kept else "missing" for name in LOGGED.get(stage.stage, (MANIFEST,))
        }
        try:
            manifest = read_manifest(self.tracker, stage)
        except BadInput:
            # Without it nothing can be said of the others but whether they are there.
            return {name: state for name, state in states.items() if name == MANIFEST or state == "missing"}
        states[MANIFEST] = "ok"
        with TemporaryDirectory() as folder:
            for name in set(states) & set(manifest["files"]) & set(kept):
                fetched = self.tracker.fetch(stage.id, name, Path(folder))
                if fetched is None:
                    states[name] = "missing"
                elif sha256(fetched) == manifest["files"][name]["sha256"]:
                    states[name] = "ok"
        return states


def _thing(run: Lineage, where: Any, name: str, state: State, mend: str) -> Thing:
    return Thing(run.run.id, where, name, state, "" if state == "ok" else mend)
