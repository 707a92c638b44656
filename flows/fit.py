"""Whether a recipe can be carried out on a model, told from the model's config and its files' headers."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flows.recipe import Recipe
from moeprune import loader
from moeprune.checkpoint import Checkpoint
from moeprune.configs import quantisation
from moeprune.dequantised import check_loadable
from moeprune.errors import BadInput
from moeprune.interface import Experts, experts_of
from moeprune.methods import check_experts, check_inputs, check_routers
from moeprune.observer import Observer
from moeprune.projections import projections
from moeprune.routing import Routing
from moeprune.schema import Plan, layer_of
from moeprune.sparsity import expert_weights
from moeprune.uneven import check_uneven
from moeprune.weight_masks import parse_pattern


def check_fit(recipe: Recipe, model: Any, files: Checkpoint, plan: Plan, routing: Routing) -> None:
    """Raise BadInput if the model does not allow what the recipe asks for, but for the number of experts to keep.

    `model` lies on the meta device. `files` and `plan` are those of its checkpoint, or of what the library would write
    where there is only a config; nothing is read from files.
    """
    if loader.counts(model.config) is not None:
        raise BadInput(
            "download.source: its layers hold different numbers of experts already: give the checkpoint it was made "
            "from, and a smaller budget"
        )
    if recipe.skips and routing.top_k != 2:
        raise BadInput(
            f"evaluate.expert_skipping: it is defined for two experts a token, this model chooses {routing.top_k}"
        )
    if recipe.distill is not None and quantisation(model.config.to_dict()):
        raise BadInput(
            "distill: what is trained could not be written in the source's quantised weights: leave distill out, or "
            "give an unquantised checkpoint"
        )
    if recipe.uses_corpora or recipe.evaluate is not None:
        check_loadable(model.config, files)
    if recipe.virtual and (quantised := quantisation(model.config.to_dict())):
        raise BadInput(
            f"evaluate.virtual: this model's weights are quantised ({quantised.get('quant_method')}), and only plain "
            "ones can be removed in memory: set it to false"
        )
    experts = _observable(model, plan) if recipe.uses_corpora else {}
    if recipe.sparse:
        _check_weights(recipe, model, files, plan)
    if recipe.uses_statistics:
        _check_sums(recipe, model, experts, plan)
    if recipe.sparse:
        return
    for params in (recipe.mask, recipe.mask.candidate):
        if params is not None and params.rule.uneven:
            check_uneven(model, files.config)
    read = {"router": check_routers, "experts": check_experts}.get(recipe.score.found.reads)
    if recipe.uses_scores and read is not None:
        with _instead(f"score.criterion: '{recipe.score.found.word}'", "choose one that `moeprune inspect` lists"):
            read(files, plan)


def check_budget(recipe: Recipe, keep: int, routing: Routing) -> None:
    """Raise BadInput if the recipe's selection rules cannot keep that many experts."""
    names = [corpus.name for corpus in recipe.calibrate.corpora] if recipe.calibrate else []
    for params in (recipe.mask, recipe.mask.candidate):
        if params is not None and not recipe.sparse:
            params.rule.check(keep, routing, names, params.options)


def _observable(model: Any, plan: Plan) -> dict[int, Experts]:
    """What holds the experts of each layer; BadInput if some cannot be run by themselves."""
    experts = experts_of(model)
    if unseen := sorted(set(plan.layers) - experts.keys()):
        raise BadInput(
            f"download.source: the experts of layers {unseen} of {type(model).__name__} cannot be observed: choose a "
            "weight-only criterion"
        )
    return experts


def _check_sums(recipe: Recipe, model: Any, experts: dict[int, Experts], plan: Plan) -> None:
    """What the recipe wants to see of the experts can be seen."""
    Observer(model, recipe.observe.sums, recipe.observe.gate_modes)
    if name := next(_unobserved(model, experts, plan), None):
        print(
            f"note: {name} has an axis of experts too: it loses the same ones, though they are not observed",
            file=sys.stderr,
        )


def _unobserved(model: Any, experts: dict[int, Experts], plan: Plan) -> Iterator[str]:
    """Weights that go by the same numbers of experts and lie elsewhere: jetmoe routes its attention too."""
    paths = {module: path for path, module in model.named_modules()}
    for name, tensor in model.state_dict().items():
        layer = layer_of(name)
        if layer is None or layer not in experts or not plan.is_expert_weight(name, tuple(tensor.shape)):
            continue
        if not name.startswith(f"{paths[experts[layer].module]}."):
            yield name


def _check_weights(recipe: Recipe, model: Any, files: Checkpoint, plan: Plan) -> None:
    """Weights inside experts can be zeroed, and rows are made of whole blocks."""
    with _instead("mask.sparsity", "remove whole experts"):
        check_inputs(model, files, plan, recipe.download.trust_remote_code)
    pattern = parse_pattern(recipe.mask.pattern)
    found = projections(model.config, recipe.download.trust_remote_code)
    for name, (projection, _) in expert_weights(files, plan, found).items():
        pattern.blocks(files.tensors[name].shape[projection.input_axis])


@contextmanager
def _instead(what: str, remedy: str) -> Iterator[None]:
    """A refusal within this block is told of `what`, with what to do instead."""
    try:
        yield
    except BadInput as refusal:
        raise BadInput(f"{what} cannot be: {refusal}: {remedy}") from refusal
