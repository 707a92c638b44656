"""What a run came from and what it made, as the tracker knows it, in plain values.

Whoever looks back reads this and not the tracker's own records: restore, verify, gc, the registry and the dashboard.
A stage's result is a node, named by stage and key; what it was made from is told by `Stage.inputs`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from moeprune.errors import BadInput
from moeprune.hashing import digest_of
from tasks.artifacts import MANIFEST, Artifact, Step
from tasks.tracked import INPUT, MD5, RECIPE, LoggedModel, Record
from tasks.tracking import Tracker

PLACE = re.compile("[a-z]+/[0-9a-f]{64}")
"""What a result's folder in a store is called: its stage and key."""
TAGS = {"stage", "of", "key", "digest", "cache", "produced_by_flow_run", "git_commit", "git_dirty"}
"""What every stage has on record."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run: a result, where it came from, and how it was found."""

    id: str
    """The stage's own run in the tracker, a child of the recipe's run."""
    title: str
    """What it is called in tables: the stage and what it is for, such as "observe wiki"."""
    stage: str
    of: str
    key: str
    digest: str
    cache: str
    """hit or miss."""
    start: datetime
    produced_by: str | None
    """The child run that recorded the making: itself on a miss; None if that was never recorded."""
    flow_run: str
    git_commit: str | None
    git_dirty: bool | None
    inputs: Mapping[str, str]
    """Paths of the results it read, by the names it knows them by."""
    md5: str | None
    """Of its one file, where DVC versions it: a corpus or a mask."""
    params: Mapping[str, str]
    """What decided it, beside its inputs and code; flattened."""
    metrics: Mapping[str, float]

    @property
    def path(self) -> str:
        """Its folder in a store."""
        return f"{self.stage}/{self.key}"


@dataclass(frozen=True)
class Lineage:
    """A run with its stages in the order they were done, and the models that it read or made."""

    run: Record
    """Id, name, status, start, params, metrics and tags."""
    stages: tuple[Stage, ...]
    models: tuple[LoggedModel, ...]

    @cached_property
    def by_path(self) -> dict[str, Stage]:
        """Its stages by their place in a store."""
        return {stage.path: stage for stage in self.stages}

    def find(self, stage: str, of: str = "") -> Stage | None:
        """Its stage of that word and label, if it has one."""
        return next((one for one in self.stages if (one.stage, one.of) == (stage, of)), None)

    @property
    def final(self) -> Stage | None:
        """The checkpoint that it was for; None after a virtual mask, an audit, or a run that did not come so far."""
        return self.find("distill") or self.find("prune")


def read_lineage(tracker: Tracker, prefix: str) -> Lineage:
    """The lineage of the run whose id begins like that. Raises BadInput unless there is exactly one."""
    return lineage_of(tracker.find_run(prefix), by_digest(tracker.models()))


@dataclass(frozen=True)
class Lineages:
    """Those of many runs, newest first, and the runs that have none."""

    whole: list[Lineage]
    damaged: list[tuple[Record, str]]
    """The others, and why their records cannot be read."""
    models: Mapping[str, LoggedModel] = field(default_factory=dict)
    """What was read of models, by their digests."""


def read_lineages(
    tracker: Tracker, since: datetime | None = None, known: Mapping[str, LoggedModel] = MappingProxyType({})
) -> Lineages:
    """Those of all runs, those of sweeps and audits included; `since`: begun then or later.

    `known` are models that were read before, by their digests: with `since` only newer ones are asked for.
    """
    runs = tracker.runs_with_stages(since)
    found = Lineages([], [], {**known, **by_digest(tracker.models(since))})  # after the runs, that none is lacking
    for run in runs:
        try:
            found.whole.append(lineage_of(run, found.models))
        except BadInput as error:
            found.damaged.append((run, str(error)))
    return found


def by_digest(models: Iterable[LoggedModel]) -> dict[str, LoggedModel]:
    """Models by the digests of their checkpoints."""
    return {model.digest: model for model in models}


def lineage_of(run: Record, models: Mapping[str, LoggedModel] = MappingProxyType({})) -> Lineage:
    """The lineage of a run read with its children. `models`, by their digests, may be those of other runs, too.

    Raises BadInput if the record of a stage lacks something, or has no place in a store: whoever can write to the
    tracker can write anything.
    """
    stages = tuple(_stage_of(child) for child in run.children if child.tags.get("role") == "stage")
    digests = dict.fromkeys(stage.digest for stage in stages)
    return Lineage(run, stages, tuple(models[digest] for digest in digests if digest in models))


def _stage_of(child: Record) -> Stage:
    tags = child.tags
    if lacking := sorted(TAGS - tags.keys()):
        raise BadInput(f"stage {child.id[:8]} ({child.name}): its record has no {lacking[0]}")
    inputs = {key.removeprefix(INPUT): path for key, path in tags.items() if key.startswith(INPUT)}
    for path in (f"{tags['stage']}/{tags['key']}", *inputs.values()):
        if not PLACE.fullmatch(path):
            raise BadInput(
                f"stage {child.id[:8]} ({child.name}): its record names {path}, which is no place in a store"
            )
    return Stage(
        id=child.id,
        title=child.name,
        stage=tags["stage"],
        of=tags["of"],
        key=tags["key"],
        digest=tags["digest"],
        cache=tags["cache"],
        start=child.start,
        produced_by=tags.get("produced_by_run"),
        flow_run=tags["produced_by_flow_run"],
        git_commit=None if tags["git_commit"] == "None" else tags["git_commit"],
        git_dirty={"True": True, "False": False}.get(tags["git_dirty"]),
        inputs=inputs,
        md5=tags.get(MD5),
        params=child.params,
        metrics=child.metrics,
    )


def upstream(stages: Mapping[str, Stage], path: str) -> Iterator[str]:
    """`path` and the paths of all that it was made from, nearest first; `stages` are by their paths."""
    seen, waiting = {path}, [path]
    while waiting:
        one = waiting.pop(0)
        yield one
        for read in stages[one].inputs.values() if one in stages else ():
            if read not in seen:
                seen.add(read)
                waiting.append(read)


def read_manifest(tracker: Tracker, stage: Stage) -> dict[str, Any]:
    """The manifest that the store had when the stage was recorded.

    Raises BadInput if the tracker does not have it, or has another or a damaged one.
    """
    text = read_text(tracker, stage.id, MANIFEST)
    try:
        content: dict[str, Any] = json.loads(text)
        if _is_of(content, stage):
            return content
    except (ValueError, KeyError, TypeError, AttributeError):  # of another shape
        pass
    raise BadInput(f"{stage.title}: the tracker's {MANIFEST} is damaged or of another result: it was changed there")


def _is_of(manifest: dict[str, Any], stage: Stage) -> bool:
    """Whether a manifest is of the stage's result, and names nothing outside of its folder."""
    digest = digest_of({name: file["sha256"] for name, file in manifest["files"].items()})
    inputs = {name: Artifact(**entry) for name, entry in manifest["inputs"].items()}
    step = Step(manifest["stage"], manifest["of"], manifest["code"], manifest["params"], {**inputs})
    return (
        (step.stage, step.key, manifest["key"]) == (stage.stage, stage.key, stage.key)
        and (digest, manifest["digest"]) == (stage.digest, stage.digest)
        and {name: artifact.path for name, artifact in inputs.items()} == stage.inputs
        and all(Path(name).name == name for name in manifest["files"])
    )


def recipe_text(tracker: Tracker, run: str) -> str:
    """The resolved recipe of a run, YAML. Raises BadInput if the tracker does not have it."""
    return read_text(tracker, run, RECIPE)


def read_text(tracker: Tracker, run: str, name: str) -> str:
    """A small file of a run or a stage. Raises BadInput if the tracker does not have it."""
    with TemporaryDirectory() as folder:
        fetched = tracker.fetch(run, name, Path(folder))
        if fetched is None:
            raise BadInput(
                f"run {run[:8]}: the tracker does not have its {name}: the artifact store lost it, or cannot be "
                "reached from here; run its recipe again to record it anew"
            )
        return fetched.read_text(errors="replace")
