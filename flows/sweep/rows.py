"""The models that a sweep has measured, one row each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flows.differences import headline
from flows.outcome import DELTA, Outcome, Sweep
from flows.recipe import Recipe
from flows.sweep.grid import budget
from tasks.artifacts import Artifact
from tasks.tracked import flatten

RANDOM = "uniform_random"
CHOOSING = ("score", "mask", "prune", "distill")


@dataclass(frozen=True)
class Row:
    """One measured model: what was removed, how, and the paired differences from the base."""

    budget: str
    method: str
    recipe: dict[str, str]
    """The recipe's keys and values, without seeds."""
    random: bool
    delta: dict[str, dict[str, Any]]
    """The headline metrics."""
    memory: int | None
    """Bytes: the peak of a forward pass; None where that is not measured, as of virtual masks."""
    weights: int
    """Bytes of the weights in memory."""
    seconds: float
    dense: int
    """Bytes of the weights of its unpruned model."""
    base: str = ""
    """What its unpruned model is called, where a sweep has several."""


def rows_of(result: Sweep) -> list[Row]:
    """Every model a sweep has measured against its base, once, methods told apart by name."""
    return list(told_apart(list(_rows(result))))


def _rows(result: Sweep) -> Iterator[Row]:
    corpora, bases = {_corpora(recipe) for recipe in result.recipes}, _bases(result.recipes)
    seen = set()
    for recipe, base, one in zip(result.recipes, bases, result.outcomes, strict=True):
        for of, memory in one.memory.items():
            report = one.made.reports[of]
            if of == "base" or report is None:
                continue
            method = recipe.method + {"distilled": ", distilled", "skipped": ", skipping"}.get(of, "")
            if len(corpora) > 1 and recipe.uses_corpora:
                method += f" on {_corpora(recipe)}"
            way = (base, budget(recipe), method, _way(one, report))
            if way in seen:  # several recipes may have the same model on their way
                continue
            seen.add(way)
            done = ("score", "mask", "prune") if of == "pruned" else CHOOSING
            yield Row(
                budget(recipe),
                method,
                without_seeds(recipe),
                recipe.uses_scores and recipe.score.criterion == RANDOM and of == "pruned",
                headline(one.metrics[DELTA if of == "pruned" else f"{DELTA}_{of}"], one.pooled),
                memory.get("forward_peak_anonymous"),
                memory["weights"],
                _work(one, done),
                one.memory["base"]["weights"],
                base,
            )


def _bases(recipes: Sequence[Recipe]) -> list[str]:
    """What the unpruned model of each recipe is called: by what those that are measured differ in."""
    known = [
        (one.download.source, one.download.revision or "latest", one.evaluate.dtype) if one.evaluate else None
        for one in recipes
    ]
    measured = zip(*filter(None, known), strict=True)
    differing = [number for number, values in enumerate(measured) if len(set(values)) > 1]
    return [" ".join(one[number] for number in differing) if one else "" for one in known]


def _way(one: Outcome, report: Artifact) -> frozenset[str]:
    """A report and all that it was made from, back to the sources.

    Masks that turn out to be the same share a report, yet are two results where what they were made from differs.
    """
    inputs = {record.artifact.path: record.step.inputs for record in one.records}
    found: set[str] = set()
    waiting = [report.path]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [entry.path for entry in inputs[path].values() if entry is not None]
    return frozenset(found)


def without_seeds(recipe: Recipe) -> dict[str, str]:
    """A recipe's keys and values, but for seeds and the runtime."""
    keys = flatten(recipe.model_dump(mode="json", exclude={"runtime"}))
    return {key: value for key, value in keys.items() if key.rpartition(".")[2] != "seed"}


def _corpora(recipe: Recipe) -> str:
    return "+".join(corpus.name for corpus in recipe.calibrate.corpora) if recipe.calibrate else ""


def _work(one: Outcome, stages: tuple[str, ...]) -> float:
    return sum(record.work for record in one.records if record.step.stage in stages)


def told_apart(rows: list[Row]) -> Iterator[Row]:
    """Rows of equal method whose recipes differ in more than seeds, with what differs added to their method."""
    for row in rows:
        alike = [one.recipe for one in rows if (one.base, one.budget, one.method) == (row.base, row.budget, row.method)]
        keys = sorted({key for other in alike for key in other.keys() | row.recipe.keys()})
        differing = [key for key in keys if len({other.get(key) for other in alike}) > 1]
        yield replace(row, method=" ".join([row.method, *(f"{key}={row.recipe.get(key)}" for key in differing)]))
