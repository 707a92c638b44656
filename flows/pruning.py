"""The pruning flow: the chain run by Prefect, versioned by DVC, remembered by MLflow."""

from dataclasses import dataclass
from pathlib import Path

from prefect import flow

from flows.chain import Sources, chain
from flows.deployment.notify import notify
from flows.engine import Engine, Execute, push, reach, say
from flows.outcome import Outcome
from flows.preflight import preflight
from flows.recipe import Recipe, recorded, to_yaml
from flows.sharing import Shared
from tasks.artifacts import Store
from tasks.tracking import Tracker


@flow(name="prune", validate_parameters=True, on_failure=[notify], on_crashed=[notify])
def prune_model(recipe: Recipe, name: str = "prune") -> Outcome:
    """Prune one model by one recipe: every stage the store does not have is run."""
    store = Store(recipe.runtime.store)
    reach(store, Path.cwd())
    return run_recipe(recipe, name, preflight(recipe, store, Path.cwd()))


@dataclass(frozen=True)
class Among:
    """A recipe's place in a sweep."""

    parent: str
    """The id of the sweep's run in the tracker."""
    tags: dict[str, str]
    shared: Shared
    execute: Execute
    whose: str
    """Which recipe it is, such as "recipe 7 of 66"."""


def run_recipe(recipe: Recipe, name: str, sources: Sources, among: Among | None = None) -> Outcome:
    """One recipe inside the current flow run, as one run of the tracker."""
    store, project = Store(recipe.runtime.store), Path.cwd()
    tags = {"method": recipe.method, **(among.tags if among else {})}
    parent = among.parent if among else None
    with Tracker(store).run(name, recorded(recipe), tags, to_yaml(recipe), parent) as run:
        outcome = Outcome(run.id)
        if recipe.score.reason:
            say(f"criterion {recipe.score.reason}")
        engine = Engine(recipe, store, project, run, outcome)
        if among:
            engine.shared, engine.execute, engine.whose = among.shared, among.execute, among.whose
        outcome.made = chain(recipe, sources, store, engine.do)
        engine.remember()
        if not among:  # a sweep pushes once, at its end
            push(project)
    return outcome
