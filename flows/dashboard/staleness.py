"""Results held against their recipes: what would they come to now, with today's sources and code?"""

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flows.audit.chain import AuditChain
from flows.audit.recipe import AuditRecipe
from flows.chain import Chain, Sources
from flows.dashboard.index import KINDS
from flows.planning import differences
from flows.recipe import Recipe, parse_recipe, validated
from tasks import calibrate, download
from tasks.artifacts import MANIFEST, Artifact, Step, Store
from tasks.calibrate import CorpusSource
from tasks.lineage import Lineage, Stage


@dataclass(frozen=True)
class Stale:
    """What was found of a run's results: why one is stale, by its path, or why that cannot be told."""

    reasons: Mapping[str, str] = field(default_factory=dict)
    unknown: str = ""


def hold(lineage: Lineage, recipe: str, store: Store) -> Stale:
    """Hold every result of a run against what its recipe, the text of a YAML file, would come to now.

    Sources are read where the recipe names them, code as it is on disk. Each stage is told of the results that the run
    had, so that it is held responsible for its own changes only; what was made from a stale result is stale, too.
    Raises BadInput for a source that is not here, and whatever a recipe of others may bring about.
    """
    steps = _steps(lineage, recipe, store)
    reasons: dict[str, str] = {}
    for one in lineage.stages:
        step = steps.get(one.id)
        if step is not None and step.key is not None and step.key != one.key:
            reasons[one.path] = _reason(step, store.place(one.path) / MANIFEST)
        for origin in one.inputs.values():
            if origin in reasons:
                read = lineage.by_path[origin]
                kind = KINDS.get(read.stage, read.stage)
                reasons.setdefault(one.path, f"made from {kind} {read.of}".rstrip() + ", which is stale")
    return Stale(reasons)


def _reason(step: Step, manifest: Path) -> str:
    try:
        found = differences(step, json.loads(manifest.read_text()))
    except (OSError, ValueError, KeyError):
        found = []
    return f"changed since: {', '.join(found) or 'code or params'}"


def _steps(lineage: Lineage, text: str, store: Store) -> dict[str, Step]:
    """The steps of a recipe as they would be now, by the ids of its stages; nothing is run, and no code of others."""
    recipe = _recipe(yaml.safe_load(text), lineage.run.id)
    recorded: dict[str, deque[Stage]] = {}
    for one in lineage.stages:  # stages of one title follow one another as steps do
        recorded.setdefault(one.title, deque()).append(one)
    steps: dict[str, Step] = {}

    def look_up(work: Any, step: Step, **arguments: Any) -> Artifact | None:
        if not recorded.get(step.title):
            return None
        stage = recorded[step.title].popleft()
        steps[stage.id] = step
        return Artifact(stage=stage.stage, key=stage.key, digest=stage.digest)

    measured = recipe.evaluate.corpora if recipe.evaluate else ()
    sources = Sources(
        download.resolve(recipe.download, store),
        {one.name: calibrate.locate(one) for one in (recipe.calibrate.corpora if recipe.calibrate else ())},
        {one.name: calibrate.locate(CorpusSource(**one.model_dump())) for one in measured},
        None,
        None,
    )
    if isinstance(recipe, AuditRecipe):
        AuditChain(recipe, sources, store, look_up).run()
    else:
        Chain(recipe, sources, store, look_up).run()
    return steps


def _recipe(content: dict[str, Any], run: str) -> Recipe | AuditRecipe:
    content["download"]["trust_remote_code"] = False  # a page that is looked at runs no code of others
    where = f"recipe of run {run[:8]}"
    return validated(AuditRecipe, content, where) if "audit" in content else parse_recipe(content, where)
