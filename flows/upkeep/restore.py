"""Restoring a run: its results are brought back into the store as they were, or not at all.

A corpus or mask comes from DVC by its md5, a small result from the tracker, which has a copy; what is large is made
again from these: the base model from its source, a pruned checkpoint from base and mask. Whatever is brought is held
against the manifest that the tracker keeps, file by file, before it gets its place in the store.
"""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.handover.made import run_named
from flows.upkeep.rebuild import WORK, changes, rebuild
from moeprune.errors import BadInput
from tasks import versioning
from tasks.artifacts import Artifact, Store
from tasks.lineage import Lineage, Stage, read_lineage, read_manifest, recipe_text
from tasks.reachable import impatient
from tasks.tracking import Tracker, open_tracker

ON_DEMAND = ("download", "observe", "distill")
"""Stages that are brought if something must be made from them, or everything is asked for."""
VERSIONED = {"calibrate": "tokens.safetensors", "mask": "mask.json"}
"""The stages of which DVC versions a file, and that."""
THERE, LEFT_OUT, MADE_AGAIN = "in the store", "left out", "made again"


@dataclass(frozen=True)
class Restored:
    """What has become of one result."""

    title: str
    place: Path
    """Its folder in the store."""
    how: str
    """That it was there, where it came from, or that it was left out; empty if it could not be brought."""
    error: str | None = None
    """Why it could not be brought, and what to do."""


@dataclass(frozen=True)
class Restoration:
    """What has become of a run's results."""

    run: str
    results: list[Restored]
    checkpoint: Path | None
    """The pruned (or distilled) model, if it is in the store now."""
    recipe: Path

    @property
    def errors(self) -> list[str]:
        """Why results could not be brought."""
        return [f"{result.title}: {result.error}" for result in self.results if result.error]


@impatient(retries=1, seconds=15)  # for a file that a server has lost MLflow would ask it for minutes
def restore(name: str, root: Path, project: Path, base: str | None = None, everything: bool = False) -> Restoration:
    """Bring back a run's corpora, masks, small results and pruned checkpoint; the recipe is written beside them.

    `name` is the run's id or its beginning, or MODEL@ALIAS of the registry; `base` is where the base model is now, if
    not where the recipe says. Statistics and a distilled model are made again with `everything` only: that takes what
    it took. Raises BadInput for an unknown run.
    """
    store = Store(root)
    tracker = open_tracker(store)
    lineage = read_lineage(tracker, run_named(name, tracker))
    text = recipe_text(tracker, lineage.run.id)  # where this is lost, so is the rest
    work = _Work(lineage, tracker, store, project, lineage.run.params | ({"download.source": base} if base else {}))
    for stage in lineage.stages:
        if everything or stage.stage not in ON_DEMAND:
            work.bring(stage)
    results = [work.done.get(stage.path) or work.look(stage) for stage in lineage.stages]  # some were needed by others
    models = [
        result.place
        for stage, result in zip(lineage.stages, results, strict=True)
        if stage.stage in ("prune", "distill") and result.how not in ("", LEFT_OUT)
    ]
    recipe = root / "recipes" / f"{lineage.run.id[:8]}.yaml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(text)
    return Restoration(lineage.run.id, results, models[-1] if models else None, recipe)


@dataclass
class _Work:
    lineage: Lineage
    tracker: Tracker
    store: Store
    project: Path
    given: dict[str, str]
    done: dict[str, Restored] = field(default_factory=dict)

    def bring(self, stage: Stage) -> Restored:
        """One result, and first what it must be made from."""
        if stage.path not in self.done:
            self.done[stage.path] = self._told(stage, self._brought)
        return self.done[stage.path]

    def look(self, stage: Stage) -> Restored:
        """One result that was not needed."""
        return self._told(stage, lambda _: THERE if self._is_there(stage) else LEFT_OUT)

    def _told(self, stage: Stage, how: Callable[[Stage], str]) -> Restored:
        found, error = "", None
        try:
            found = how(stage)
        except BadInput as fault:
            error = str(fault)
        except Exception as fault:  # whatever befalls one result, the others are brought
            error = f"{type(fault).__name__}: {' '.join(str(fault).split())}"
        return Restored(stage.title, self.store.place(stage.path), found, error)

    def _is_there(self, stage: Stage) -> bool:
        artifact = Artifact(stage=stage.stage, key=stage.key, digest=stage.digest)
        folder = self.store.folder(artifact)
        if not self.store.touch(artifact) or self.store.fault(folder):
            return False
        if self.store.manifest(artifact)["digest"] != stage.digest:
            raise BadInput(
                f"{folder} holds another result of the same key than this run made: move it away, or restore with "
                "--store into another folder"
            )
        return True

    def _brought(self, stage: Stage) -> str:
        if self._is_there(stage):
            return THERE
        manifest = read_manifest(self.tracker, stage)
        with self.store.lock(f"{stage.stage}-{stage.key}"):
            if self._is_there(stage):  # made by whoever had the lock
                return THERE
            building = self.store.root / "partial" / f"restore-{stage.stage}-{stage.key}"
            shutil.rmtree(building, ignore_errors=True)  # what a killed process left behind
            try:
                return self._made(stage, manifest, building)
            finally:
                shutil.rmtree(building, ignore_errors=True)

    def _made(self, stage: Stage, manifest: dict[str, Any], building: Path) -> str:
        ways: dict[str, Callable[[], Path]] = {}
        if stage.md5 is not None:
            ways["from DVC"] = lambda: self._from_dvc(stage, building / "dvc")
        if set(self.tracker.files(stage.id)).issuperset(manifest["files"]):
            ways["from the tracker"] = lambda: self._from_tracker(stage, manifest, building / "tracker")
        if stage.stage in WORK:
            ways[MADE_AGAIN] = lambda: self._made_again(stage, manifest, building / "store")
        faults = []
        for how, way in ways.items():
            try:
                self.store.adopt(way(), manifest)
                return how
            except BadInput as fault:
                faults.append(str(fault))
            except ValueError as fault:
                faults.append(f"{how}, {fault}: {self._advice(stage, manifest, how)}")
        raise BadInput("; ".join(faults) or "its files are not in the tracker: run the recipe again to make it anew")

    def _from_dvc(self, stage: Stage, building: Path) -> Path:
        assert stage.md5
        building.mkdir(parents=True)
        shutil.copyfile(versioning.restore(stage.md5, self.project), building / VERSIONED[stage.stage])
        return building

    def _from_tracker(self, stage: Stage, manifest: dict[str, Any], building: Path) -> Path:
        building.mkdir(parents=True)
        for name in manifest["files"]:
            self.tracker.fetch(stage.id, name, building)
        return building

    def _made_again(self, stage: Stage, manifest: dict[str, Any], building: Path) -> Path:
        for path in stage.inputs.values():
            read = self.bring(self.lineage.by_path[path])
            if read.error:
                raise BadInput(f"it is made from {read.title}, which is not to be had")
        with ExitStack() as held:  # gc leaves what is locked
            for path in sorted(set(stage.inputs.values())):
                held.enter_context(self.store.lock(path.replace("/", "-")))
            return rebuild(manifest, self.given, self.store, building)

    def _advice(self, stage: Stage, manifest: dict[str, Any], how: str) -> str:
        if stage.stage == "download":
            return f"{self.given['download.source']} is not the model that was pruned: say with --base where that is"
        if how != MADE_AGAIN:
            return "it was changed there"
        return f"{changes(manifest)}: go back to what it was made with, then restore again"
