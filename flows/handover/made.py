"""The model that a run made: found in the tracker by the run or by an alias of the registry, its bytes checked."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moeprune.errors import BadInput
from tasks import comparison
from tasks.artifacts import MANIFEST, Artifact, Store
from tasks.comparison import REPORT, SAMPLES
from tasks.lineage import Lineage, Stage, read_lineage, read_lineages
from tasks.registry import Registry, Version
from tasks.tracked import LoggedModel
from tasks.tracking import Tracker


@dataclass(frozen=True)
class MadeModel:
    """A checkpoint that a run made, pruned or pruned and distilled."""

    lineage: Lineage
    stage: Stage
    """The stage that wrote it."""
    model: LoggedModel
    base: LoggedModel
    """What it was made from."""
    store: Store

    @property
    def run(self) -> str:
        """The run's id."""
        return self.lineage.run.id

    @property
    def folder(self) -> Path:
        """Where its files lie, if the store has them."""
        return self.store.place(self.stage.path)

    @property
    def kind(self) -> str:
        """What it is called where it was measured."""
        return "distilled" if self.stage.stage == "distill" else "pruned"


def find_model(name: str, tracker: Tracker) -> MadeModel:
    """The model of a run, named as for `run_named`. Raises BadInput as that and `made_by` do."""
    return made_by(read_lineage(tracker, run_named(name, tracker)), tracker.store)


def made_by(lineage: Lineage, store: Store) -> MadeModel:
    """The model of a run. Raises BadInput for a run that did not come to its end, or that wrote no checkpoint."""
    run, stage = lineage.run, lineage.final
    if run.status != "FINISHED":
        raise BadInput(f"run {run.id[:8]} ({run.name}) is {run.status}, not FINISHED: run its recipe again")
    if stage is None:
        audit = any(one.stage == "audit" for one in lineage.stages)
        raise BadInput(
            f"run {run.id[:8]} ({run.name}) wrote no checkpoint: "
            + (
                "it is an audit: give a run that prunes"
                if audit
                else "its mask is virtual: run its recipe with --set evaluate.virtual=false to have one"
            )
        )
    models, read = {one.digest: one for one in lineage.models}, lineage.find("download")
    model, base = models.get(stage.digest), models.get(read.digest) if read else None
    if model is None or base is None:
        what = "base model" if base is None else "model"
        raise BadInput(f"run {run.id[:8]} ({run.name}): the tracker has no record of its {what}: run its recipe again")
    return MadeModel(lineage, stage, model, base, store)


def run_named(name: str, tracker: Tracker) -> str:
    """The run that is meant: its id or the beginning of it as they are, or MODEL@ALIAS of the registry.

    Raises BadInput if the registry has no such model or alias.
    """
    if "@" not in name:
        return name
    model, _, alias = name.rpartition("@")
    registry = Registry(tracker)
    if held := registry.holder(model, alias):
        return _run_of(held, tracker)
    known = [f"{one.name}@{alias}" for one in registry.versions() for alias in one.aliases]
    raise BadInput(
        f"'{name}' is no model of the registry: "
        + (f"there is {', '.join(known)}" if known else "nothing is promoted yet: see `moeprune promote --help`")
    )


def _run_of(version: Version, tracker: Tracker) -> str:
    """The run by which an alias came to a version or, if that was deleted, another that made the same checkpoint."""
    with suppress(BadInput):
        return tracker.find_run(version.run).id
    for one in read_lineages(tracker).whole:
        if one.final and (one.final.digest, one.run.status) == (version.digest, "FINISHED"):
            return one.run.id
    raise BadInput(
        f"{version}: {f'its run {version.run[:8]} was deleted' if version.run else 'it is of no run'}, and no other in "
        f"MLflow's experiment '{tracker.experiment}' made that checkpoint: bring the run back in MLflow, or run its "
        "recipe again"
    )


@contextmanager
def in_hand(made: MadeModel) -> Iterator[dict[str, Any]]:
    """The manifest of the checkpoint, whose bytes are checked and meanwhile kept from gc.

    Raises BadInput if the store has not those bytes.
    """
    with made.store.lock(f"{made.stage.stage}-{made.stage.key}"):
        yield _manifest_of(made)


def _manifest_of(made: MadeModel) -> dict[str, Any]:
    remedy = f"bring it back with `moeprune restore {made.run[:8]}`"
    if not made.store.touch(Artifact(stage=made.stage.stage, key=made.stage.key, digest=made.stage.digest)):
        raise BadInput(f"run {made.run[:8]}: its checkpoint {made.folder} is not in the store: {remedy}")
    if fault := made.store.fault(made.folder):
        raise BadInput(f"run {made.run[:8]}: {made.folder}: {fault}: {remedy}")
    content: dict[str, Any] = json.loads((made.folder / MANIFEST).read_text())
    if content["digest"] != made.stage.digest:
        raise BadInput(f"run {made.run[:8]}: {made.folder} is another checkpoint: remove that folder, then {remedy}")
    return content


@dataclass(frozen=True)
class Measured:
    """How a model compares with its base. Metrics by name have value, stderr and n; memory is in bytes and counts."""

    base: dict[str, dict[str, Any]]
    model: dict[str, dict[str, Any]]
    differences: dict[str, dict[str, Any]]
    """Over pairs, as `comparison.compare` gives them."""
    memory: dict[str, tuple[int, int]]
    """Of the base and of the model."""
    limited: bool
    """Whether only a part of the texts and questions was read."""

    @property
    def less_is_better(self) -> set[str]:
        """The metrics of tasks that say so."""
        return {name for name, metric in self.model.items() if metric.get("less_is_better")}


def measured(made: MadeModel, tracker: Tracker) -> Measured:
    """The reports of a run, as the tracker keeps them: no store is needed.

    Raises BadInput if nothing was measured, a report is not to be had, or it is of another model.
    """
    stages = [stage for of in ("base", made.kind) if (stage := made.lineage.find("evaluate", of))]
    if len(stages) < 2:
        raise BadInput(f"run {made.run[:8]} measured nothing: add the section evaluate to its recipe, and run it again")
    with TemporaryDirectory() as scratch:
        folders = {stage.of: Path(scratch, stage.of) for stage in stages}
        for folder in folders.values():
            folder.mkdir()
        kept = list(product(stages, (REPORT, SAMPLES)))
        with ThreadPoolExecutor() as at_once:  # a server answers each in its own time
            found = list(at_once.map(lambda one: tracker.fetch(one[0].id, one[1], folders[one[0].of]), kept))
        for (stage, name), file in zip(kept, found, strict=True):
            if file is None:
                raise BadInput(
                    f"run {made.run[:8]}: the tracker does not have the {name} of '{stage.title}': "
                    "run its recipe again to record it anew"
                )
        before, after = (json.loads((folder / REPORT).read_text()) for folder in folders.values())
        if after["checkpoint"] != made.stage.digest:
            raise BadInput(f"run {made.run[:8]}: its report is of another checkpoint: run its recipe again")
        return Measured(
            before["metrics"],
            after["metrics"],
            comparison.compare(*folders.values()),
            {kind: (before["memory"][kind], size) for kind, size in after["memory"].items()},
            after["limited"],
        )
