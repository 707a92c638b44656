"""Recipes: one YAML file whose sections are the words of the stages, `promote` and `runtime`."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from moeprune.errors import BadInput, known_word
from tasks.artifacts import Params, Runtime
from tasks.calibrate import CalibrateParams
from tasks.distill import DistillParams
from tasks.download import DownloadParams
from tasks.evaluate import EvaluateParams
from tasks.gate import PromoteParams
from tasks.mask import BUDGETS, MaskParams
from tasks.observe import ObserveParams
from tasks.prune import PruneParams
from tasks.score import ScoreParams

Sections = TypeVar("Sections", bound=Params)
"""A kind of recipe."""


class Recipe(Params):
    """Everything a run is told. A section with defaults may be left out; without `evaluate` nothing is measured."""

    download: DownloadParams
    calibrate: CalibrateParams | None = None
    observe: ObserveParams = ObserveParams()
    score: ScoreParams = ScoreParams()
    mask: MaskParams
    prune: PruneParams = PruneParams()
    distill: DistillParams | None = None
    evaluate: EvaluateParams | None = None
    promote: PromoteParams | None = None
    runtime: Runtime = Field(default_factory=Runtime)

    @model_validator(mode="after")
    def _together(self) -> "Recipe":
        _check_sections(self)
        return self

    @property
    def sparse(self) -> bool:
        """Whether weights inside experts go, rather than experts."""
        return self.mask.sparsity is not None

    @property
    def skips(self) -> bool:
        """Whether the pruned model is also measured with dynamic expert skipping."""
        return self.evaluate is not None and self.evaluate.expert_skipping

    @property
    def virtual(self) -> bool:
        """Whether the mask is measured on the base model in memory, and no checkpoint is written."""
        return self.evaluate is not None and self.evaluate.virtual

    @property
    def uses_scores(self) -> bool:
        """Whether the selection rule goes by scores."""
        return not self.sparse and bool({"scores", "per_corpus"} & set(self.mask.rule.reads))

    @property
    def uses_statistics(self) -> bool:
        """Whether the base model must be observed."""
        if self.sparse:
            return self.mask.order == "as_printed"
        return (self.uses_scores and self.score.reads_statistics) or "statistics" in self.mask.rule.reads

    @property
    def uses_corpora(self) -> bool:
        """Whether calibration corpora are needed: to observe, to search, to distil or to measure skipping."""
        rules = [self.mask.rule, *([self.mask.candidate.rule] if self.mask.candidate else [])]
        searched = any("corpora" in rule.reads for rule in rules)
        return self.uses_statistics or self.sparse or searched or self.distill is not None or self.skips

    @property
    def method(self) -> str:
        """What chooses experts or weights, in a few words."""
        return " ".join(_method(self))


def _method(recipe: Recipe) -> Iterator[str]:
    score, mask = recipe.score, recipe.mask
    if recipe.uses_scores or recipe.sparse:
        yield score.criterion if score.reason is None else f"auto ({score.found.word})"
        yield from (f"{name}={value}" for name, value in score.options.items() if name != "seed")
        if score.super_experts is not None:
            yield f"super experts {score.super_experts}"
        if score.combine != "pooled":
            yield f"by {score.combine}"
        if score.weights is not None:
            yield "weights " + ",".join(f"{name}={weight:g}" for name, weight in score.weights.items())
        if score.gate_mode != "deployed":
            yield f"gates {score.gate_mode}"
    if mask.selection != "uniform":
        yield mask.selection
        yield from (f"{name}={value}" for name, value in mask.options.items() if name != "seed")
    if mask.order != "as_printed":
        yield mask.order


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
        if place in [f"mask.{budget}" for budget in BUDGETS]:
            _replace_budget(owner, key)
    return content


def _replace_budget(mask: dict[str, Any], key: str) -> None:
    """One budget takes another's place."""
    for other in set(BUDGETS) - {key}:
        mask.pop(other, None)


def parse_recipe(content: dict[str, Any], where: str) -> Recipe:
    """Validate raw content; the first fault becomes a BadInput that names the key and what it may be."""
    return validated(Recipe, content, where)


def validated(kind: type[Sections], content: dict[str, Any], where: str) -> Sections:
    """Raw content as a recipe of some kind. BadInput as `parse_recipe`."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise BadInput(f"{where}: {_sentence(error.errors()[0], kind)}") from error


def _check_sections(recipe: Recipe) -> None:
    """BadInput if sections do not go together."""
    criterion, rule = recipe.score.found, recipe.mask.rule
    if recipe.sparse != (criterion.reads == "weight"):
        raise BadInput(
            f"mask.sparsity: criterion '{criterion.word}' ranks "
            + (
                "experts, not weights inside them: choose moe_pruner or wanda, or give mask.ratio"
                if recipe.sparse
                else "weights inside experts: give mask.sparsity, such as 0.5, in place of the budget"
            )
        )
    if recipe.promote is not None:
        _check_rules(recipe.promote, recipe.evaluate)
    if recipe.virtual and (needs := next(_needs_checkpoint(recipe), None)):
        raise BadInput(f"evaluate.virtual: {needs}: set it to false")
    if recipe.uses_corpora and recipe.calibrate is None:
        user = _user_of_corpora(recipe)
        other = ", or choose a weight-only criterion such as aimer" if user.startswith("criterion") else ""
        raise BadInput(f"calibrate: {user} needs a calibration corpus: add the section{other}")
    if unread := next(_unread(recipe), None):
        reader = f"criterion '{criterion.word}'" if recipe.uses_scores or recipe.sparse else f"selection '{rule.word}'"
        if recipe.uses_scores and rule.word != "uniform":
            reader += f" with selection '{rule.word}'"
        raise BadInput(f"score.{unread}: {reader} does not read it: leave it out")
    if recipe.score.weights and recipe.calibrate:
        names = {corpus.name for corpus in recipe.calibrate.corpora}
        if recipe.score.weights.keys() != names:
            raise BadInput(f"score.weights: give one for each of the corpora {', '.join(sorted(names))}")
    if recipe.uses_statistics:
        if recipe.uses_scores and recipe.score.gate_mode not in recipe.observe.gate_modes:
            mode = recipe.score.gate_mode
            raise BadInput(f"observe.gate_modes: score.gate_mode is {mode}: add it to the list")
        asked = (*(criterion.sums if recipe.uses_scores or recipe.sparse else ()), *rule.sums)
        if missing := sorted(set(asked) - set(recipe.observe.sums)):
            word = rule.word if set(missing) & set(rule.sums) else criterion.word
            raise BadInput(f"observe.sums: '{word}' needs {', '.join(missing)}: add it to the list")


def _check_rules(promote: PromoteParams, evaluate: EvaluateParams | None) -> None:
    """BadInput if a rule is about what is not measured, as far as that can be told beforehand."""
    if evaluate is None:
        raise BadInput("promote: its rules need measurements: add the section evaluate")
    corpora = [corpus.name for corpus in evaluate.corpora]
    for name in promote.perplexity:
        known_word(name, corpora, "promote.perplexity: corpus")
    if promote.accuracy and not evaluate.tasks:
        raise BadInput("promote.accuracy: no questions are asked: add evaluate.tasks")


def _needs_checkpoint(recipe: Recipe) -> Iterator[str]:
    """Why a mask that is only applied in memory is not enough."""
    if recipe.distill is not None:
        yield "distill trains the checkpoint that pruning writes, and a virtual mask writes none"
    if recipe.sparse:
        yield "mask.sparsity zeroes weights inside experts, and a virtual mask removes whole ones"
    if recipe.skips:
        yield "evaluate.expert_skipping observes the checkpoint that pruning writes, and a virtual mask writes none"


def _unread(recipe: Recipe) -> Iterator[str]:
    """Keys of `score` that are set, and that nothing would read."""
    score, reads = recipe.score, recipe.mask.rule.reads
    of_sums = recipe.uses_scores and score.found.reads == "statistics"
    read = {
        "options": recipe.uses_scores,
        "combine": of_sums and "scores" in reads,
        "weights": of_sums and "scores" in reads,
        "gate_mode": of_sums,
        "super_experts": recipe.uses_scores,
    }
    unset = ScoreParams()
    yield from (name for name in read if not read[name] and getattr(score, name) != getattr(unset, name))


def _user_of_corpora(recipe: Recipe) -> str:
    criterion, rule = recipe.score.found, recipe.mask.rule
    if recipe.sparse or (recipe.uses_scores and criterion.reads == "statistics"):
        return f"criterion '{criterion.word}'"
    if recipe.uses_scores and recipe.score.super_experts is not None:
        return "score.super_experts"
    if not recipe.uses_scores or recipe.mask.candidate is not None:
        return f"selection '{rule.word}'"
    return "distill" if recipe.distill is not None else "evaluate.expert_skipping"


def _sentence(fault: Any, kind: type[Params]) -> str:
    place = fault["loc"]
    named = ".".join(str(part) for part in place)
    if fault["type"] == "extra_forbidden":
        model: Any = kind
        for part in place[:-1]:
            if isinstance(part, str):
                model = _model_of(model.model_fields[part].annotation)
        try:
            known_word(str(place[-1]), model.model_fields, f"{named}: key")
        except BadInput as error:
            return str(error)
    cause = (fault.get("ctx") or {}).get("error")
    if isinstance(cause, BadInput):
        return str(cause) if not place or str(cause).startswith(f"{place[0]}.") else f"{named}: {cause}"
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
    options: {seed: [0, 1]}}]` is three. A list under the key `variants` holds changes to the rest, for what goes
    together across sections: `variants: [{}, {score: {criterion: wanda}, mask: {sparsity: 0.5}}]`.
    """
    variants = content.get("variants", [{}])
    if not isinstance(variants, list) or not all(isinstance(variant, dict) for variant in variants):
        raise BadInput("variants: give a list of sections to change, such as [{score: {criterion: man}}]")
    for variant in variants:
        rest = {key: value for key, value in content.items() if key != "variants"}
        yield from _choices(_changed(rest, variant), Recipe)


def _changed(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`content` with each section's keys replaced by those of `changes`."""
    result = dict(content)
    for section, change in changes.items():
        owner = dict(result.get(section) or {}) if isinstance(change, dict) else {}
        for key in change if section == "mask" and isinstance(change, dict) else ():
            if key in BUDGETS:
                _replace_budget(owner, key)
        result[section] = owner | change if isinstance(change, dict) else change
    return result


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


def recorded(recipe: Params) -> dict[str, Any]:
    """All that a run is told, every default written out, but for where this machine has its store."""
    return recipe.model_dump(mode="json", exclude={"runtime": {"store"}})


def to_yaml(*recipes: Params) -> str:
    """Resolved recipes for other machines, too: as `recorded`, a document each."""
    return str(yaml.safe_dump_all(map(recorded, recipes), sort_keys=False, allow_unicode=True))
