"""The sweep flow: many recipes, each stage that several share run once."""

from dataclasses import dataclass

from prefect import flow

from flows.pruning import Outcome, run_recipe
from flows.recipe import Recipe


@dataclass(frozen=True)
class Sweep:
    """The recipes of a sweep and what each came to, in the same order."""

    name: str
    recipes: list[Recipe]
    outcomes: list[Outcome]


@flow(name="sweep")
def prune_models(recipes: list[Recipe], name: str = "sweep") -> Sweep:
    """Run recipes one after another; a stage that an earlier one has made is found in the store."""
    outcomes = [run_recipe(recipe, name, {"sweep": name}) for recipe in recipes]
    return Sweep(name, recipes, outcomes)
