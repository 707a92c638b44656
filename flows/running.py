"""Starting flows from the command line."""

import logging
from pathlib import Path
from typing import Any

from flows.preflight import preflight
from flows.pruning import Outcome, prune_model
from flows.recipe import Recipe, expand, parse_recipe
from flows.sweeping import Sweep, prune_models
from moeprune.errors import BadInput
from tasks.artifacts import Store
from tasks.tracking import Tracker


def run_once(recipe: Recipe, name: str) -> Outcome:
    """One pruning run. What can be refused is refused before Prefect is started."""
    _check(recipe)
    return prune_model(recipe, name)


def sweep_once(content: dict[str, Any], path: Path) -> Sweep:
    """Every recipe of a sweep in one flow run."""
    recipes = [parse_recipe(one, str(path)) for one in expand(content)]
    for recipe in recipes:
        _check(recipe)
    return prune_models(recipes, path.stem)


def _check(recipe: Recipe) -> None:
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_without_trace)
    store = Store(recipe.runtime.store)
    Tracker(store).check()
    preflight(recipe, store, Path.cwd())


def _without_trace(record: logging.LogRecord) -> bool:
    """Drop the trace of input a user can mend: the command line says it in one line."""
    return not (record.exc_info and isinstance(record.exc_info[1], BadInput))
