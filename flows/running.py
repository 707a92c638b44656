"""Starting flows from the command line."""

import logging
from pathlib import Path
from typing import Any

from flows.outcome import Outcome, Sweep
from flows.preflight import check_servers, preflight
from flows.pruning import prune_model
from flows.recipe import Recipe
from flows.sweep import grid
from flows.sweep.flow import prune_models
from flows.sweep.planning import SweepPlan, plan_of
from flows.walk import walk
from moeprune.errors import BadInput
from tasks.artifacts import Store


def run_once(recipe: Recipe, name: str) -> Outcome:
    """One pruning run. What can be refused is refused before Prefect is started."""
    quiet()
    store = Store(recipe.runtime.store)
    check_servers(store, Path.cwd())
    preflight(recipe, store, Path.cwd())
    return prune_model(recipe, name)


def sweep_once(content: dict[str, Any], path: Path, max_parallel: int = 1) -> Sweep:
    """Every recipe of a sweep in one flow run. BadInput before Prefect is started, if one of them cannot work."""
    quiet()
    recipes = grid.recipes_of(content, str(path))
    store = grid.store_of(recipes)
    check_servers(store, Path.cwd())
    grid.check(recipes, store)
    state: Any = prune_models(content, path.stem, max_parallel, return_state=True)
    result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException):
        raise result
    assert isinstance(result, Sweep)
    return result


def plan_sweep(content: dict[str, Any], path: Path) -> SweepPlan:
    """What a sweep would run. BadInput as for the sweep."""
    recipes = grid.recipes_of(content, str(path))
    store = grid.store_of(recipes)
    walks = [walk(*one, store) for one in zip(recipes, grid.check(recipes, store), strict=True)]
    return plan_of(walks, grid.count(content) - len(recipes))


def quiet() -> None:
    """Have Prefect's log without the traces of what the command line says in one line."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_trace)


def _without_trace(record: logging.LogRecord) -> bool:
    """Drop the trace of input a user can mend."""
    return not (record.exc_info and isinstance(record.exc_info[1], BadInput))
