"""Recipes: one YAML file whose sections are the seven words and `runtime`."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from moeprune.errors import BadInput, known_word
from tasks.artifacts import Params, Runtime
from tasks.calibrate import CalibrateParams
from tasks.download import DownloadParams
from tasks.evaluate import EvaluateParams
from tasks.mask import MaskParams
from tasks.observe import ObserveParams
from tasks.prune import PruneParams
from tasks.score import ScoreParams


class Recipe(Params):
    """Everything a run is told. A section with defaults may be left out; without `evaluate` nothing is measured."""

    download: DownloadParams
    calibrate: CalibrateParams | None = None
    observe: ObserveParams = ObserveParams()
    score: ScoreParams = ScoreParams()
    mask: MaskParams
    prune: PruneParams = PruneParams()
    evaluate: EvaluateParams | None = None
    runtime: Runtime = Runtime()


def read_recipe(path: Path, changes: tuple[str, ...] = ()) -> Recipe:
    """The recipe of a file with `section.key=value` changes applied; BadInput in one line for anything wrong."""
    return parse_recipe(read_yaml(path, changes), str(path))


def read_yaml(path: Path, changes: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe's raw content with changes applied; values of changes are YAML."""
    if not path.is_file():
        raise BadInput(f"{path}: there is no such recipe: give a YAML file, such as one made by `moeprune init`")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: a recipe has the sections {', '.join(Recipe.model_fields)}")
    for change in changes:
        place, equals, value = change.partition("=")
        if not equals:
            raise BadInput(f"--set {change}: write section.key=value")
        *sections, key = place.split(".")
        owner = content
        for section in sections:
            owner = owner.setdefault(section, {})
            if not isinstance(owner, dict):
                raise BadInput(f"--set {change}: '{section}' is not a section")
        try:
            owner[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise BadInput(f"--set {change}: the value is not YAML: quote it or close its brackets") from error
        if place in ("mask.ratio", "mask.keep", "mask.bytes"):  # one budget takes another's place
            for other in {"ratio", "keep", "bytes"} - {key}:
                owner.pop(other, None)
    return content


def parse_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Validate raw content; the first fault becomes a BadInput that names the key and what it may be."""
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise BadInput(f"{where}: {_sentence(error.errors()[0], content)}") from error
    if recipe.score.found.reads == "statistics" and recipe.calibrate is None:
        raise BadInput(
            f"{where}: calibrate: criterion '{recipe.score.criterion}' needs a calibration corpus: add the "
            "section, or choose a weight-only criterion such as aimer"
        )
    return recipe


def _sentence(fault: Any, content: dict[str, Any]) -> str:
    place = fault["loc"]
    named = ".".join(str(part) for part in place)
    if fault["type"] == "extra_forbidden":
        model: Any = Recipe
        for part in place[:-1]:
            if isinstance(part, str):
                model = _model_of(model.model_fields[part].annotation)
        try:
            known_word(str(place[-1]), model.model_fields, f"{named}: key")
        except BadInput as error:
            return str(error)
    cause = (fault.get("ctx") or {}).get("error")
    if isinstance(cause, BadInput):
        return str(cause) if str(cause).startswith(f"{place[0]}.") else f"{named}: {cause}"
    got = f", not {fault['input']!r}" if isinstance(fault["input"], str | int | float | bool) else ""
    return f"{named}: {re.sub('^Value error, ', '', fault['msg'])}{got}"


def _model_of(annotation: Any) -> Any:
    """The params class in an annotation such as `X | None` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Params):
        return annotation
    parts = getattr(annotation, "__args__", ())
    return next((found for part in parts if (found := _model_of(part)) is not None), None)


def expand(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every recipe of a sweep: each list that stands where a recipe has a single value, or a section, is an axis.

    `{mask: {ratio: [0.25, 0.5]}}` is two recipes; `score: [{criterion: reap}, {criterion: uniform_random,
    options: {seed: [0, 1]}}]` is three.
    """
    yield from _choices(content, Recipe)


def _choices(value: Any, model: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _choices(item, model)
    elif isinstance(value, dict):
        options = []
        for key, item in value.items():
            field = getattr(model, "model_fields", {}).get(key)
            inner = _model_of(field.annotation) if field else None
            whole = field is not None and "tuple[" in str(field.annotation)
            options.append([item] if whole else list(_choices(item, inner)))
        for combination in itertools.product(*options):
            yield dict(zip(value, combination, strict=True))
    else:
        yield value


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe: every default written out."""
    return str(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
