"""The recipes of a sweep: read from its file, checked, named, and what they have in common."""

from pathlib import Path
from typing import Any

from flows.chain import Sources
from flows.preflight import preflight
from flows.recipe import Recipe, expand, parse_recipe, recorded
from moeprune.errors import BadInput
from tasks.artifacts import Store
from tasks.tracked import flatten


def is_sweep(content: dict[str, Any]) -> bool:
    """Whether a file's content has lists where a recipe has single values, or `variants`."""
    return list(expand(content)) != [content]


def count(content: dict[str, Any]) -> int:
    """How many recipes a file lists, those listed twice counted twice."""
    return sum(1 for _ in expand(content))


def recipes_of(content: dict[str, Any], where: str) -> list[Recipe]:
    """Every recipe of a sweep, each once, in order. BadInput names the recipe."""
    raw = list(expand(content))
    recipes: list[Recipe] = []
    for number, one in enumerate(raw, 1):
        recipe = parse_recipe(one, where if len(raw) == 1 else f"{where}, recipe {number} of {len(raw)}")
        if recipe not in recipes:
            recipes.append(recipe)
    return recipes


def store_of(recipes: list[Recipe]) -> Store:
    """The store of all of them. BadInput if they have several, or there is no recipe."""
    if not recipes:
        raise BadInput("the sweep has no recipe: one of its lists is empty")
    stores = {recipe.runtime.store for recipe in recipes}
    if len(stores) > 1:
        raise BadInput(f"runtime.store: a sweep has one store, not {' and '.join(sorted(map(str, stores)))}")
    return Store(stores.pop())


def check(recipes: list[Recipe], store: Store) -> list[Sources]:
    """The sources of each recipe, found as before a run. BadInput names the recipe."""
    found = []
    for number, recipe in enumerate(recipes, 1):
        try:
            found.append(preflight(recipe, store, Path.cwd()))
        except BadInput as error:
            raise BadInput(f"recipe {number} of {len(recipes)} ({label(recipe)}): {error}") from error
    return found


def label(recipe: Recipe) -> str:
    """What a recipe of a sweep is called."""
    return f"{recipe.method}, {budget(recipe)}"


def budget(recipe: Recipe) -> str:
    """How much is removed, in words."""
    mask = recipe.mask
    if recipe.sparse:
        return f"{percent(mask.sparsity) if isinstance(mask.sparsity, float) else mask.sparsity} of weights"
    return percent(mask.ratio) if mask.ratio is not None else f"to {mask.keep or mask.bytes}"


def percent(ratio: float) -> str:
    """A fraction, such as `25%` and `12.5%`."""
    return f"{100 * ratio:g}%"


def axes(recipes: list[Recipe]) -> dict[str, str]:
    """Every key with the value it has in all recipes, or with all the values it has in one or other."""
    values: dict[str, dict[str, None]] = {}
    for recipe in recipes:
        for key, value in flatten(recorded(recipe)).items():
            values.setdefault(key, {})[value] = None
    return {key: " | ".join(found) for key, found in values.items()}
