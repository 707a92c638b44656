"""The chain walked without running it: what a recipe wants, and what of it is in the store."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from flows.chain import Do, Products, Sources, chain
from flows.recipe import Recipe
from tasks.artifacts import Artifact, Step, Store
from tasks.identity import key_of

Made = TypeVar("Made")


class Promise(Artifact):
    """A result that is not there yet; its digest is made of all that decides it."""


@dataclass(frozen=True)
class Wanted:
    """One stage of a recipe.

    Stages of one `identity` have the same result: it is their key if all their inputs are in the store, else their
    `origin`. That is made of all that decides the result, back to the sources, whatever is in the store.
    """

    step: Step
    identity: str
    origin: str
    artifact: Artifact | None
    """The result, if it is in the store."""


@dataclass(frozen=True)
class Walk:
    """A recipe's stages in order, and what they make: promises, where it is not there yet."""

    wanted: list[Wanted]
    made: Products

    @property
    def origin(self) -> str:
        """What decides all of the recipe's results. Where they are kept and how they are computed does not count."""
        return key_of("recipe", "", {"stages": [stage.origin for stage in self.wanted]}, {})

    def done(self, store: Store) -> bool:
        """Whether every result was in the store and still is; that they are used is noted."""
        return all(stage.artifact is not None and store.touch(stage.artifact) for stage in self.wanted)


def walk(recipe: Recipe, sources: Sources, store: Store) -> Walk:
    """Look every stage up."""
    return Walk(*look_up(partial(chain, recipe, sources, store), store))


def look_up(run: Callable[[Do], Made], store: Store) -> tuple[list[Wanted], Made]:
    """The stages that a chain wants, and what it makes of results and promises; `run` walks it by a `do`."""
    found: list[Wanted] = []
    origins: dict[str, str] = {}

    def do(work: Any, step: Step, **arguments: Any) -> Artifact | None:
        # The base model is the one input that may be None: what reads its files must do without it until it is there.
        base = found[0].origin if found else ""
        inputs = {name: origins[entry.path] if entry else base for name, entry in step.inputs.items()}
        origin = key_of(step.stage, step.code, step.params, inputs)
        certain = all(entry is not None and not isinstance(entry, Promise) for entry in step.inputs.values())
        artifact = store.find(step) if certain else None
        found.append(Wanted(step, step.key or origin if certain else origin, origin, artifact))
        result = artifact or Promise(stage=step.stage, key=origin, digest=origin)
        origins[result.path] = origin
        return None if artifact is None and step.stage == "download" else result

    made = run(do)
    return found, made
