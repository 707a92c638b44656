"""Experts removed from a model in memory: what surgery does to files, undone at the end of a block."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int, Int64
from torch import Tensor, nn

from moeprune.configs import TOP_K_KEYS, with_expert_count
from moeprune.errors import BadInput
from moeprune.interface import ExpertsFunction, experts_of, in_place
from moeprune.schema import LAYER, Plan, layer_of
from moeprune.token_tables import rebound

Kept = Mapping[int, Sequence[int]]
"""The experts some layers keep, ascending."""


@contextmanager
def sliced(model: nn.Module, plan: Plan, kept: Kept, experts: bool = True) -> Iterator[None]:
    """Within this block the layers in `kept` hold only the experts named, ascending; their positions are their numbers.

    Parameters and buffers along the plan's axes, tables of expert numbers, and the counts the layer's modules work
    with, are replaced; the originals are put back when the block ends, however it ends. Memory: a copy of what is kept;
    of experts that are modules of their own, none.

    With `experts=False` the modules that hold the experts' weights stay whole and nothing large is copied: only the
    routing changes, and it names experts by their numbers among those kept.

    Raises BadInput if a layer has no tensor of that name in memory: the plan is of another model.
    """
    with ExitStack() as undo:
        for layer, ids in kept.items():
            tensors = list(_held(model, plan.axes, layer))
            if not tensors:
                raise BadInput(
                    f"layer {layer} of {type(model).__name__} has no tensor along an axis of experts: "
                    "give the plan of this model's own config"
                )
            holders = {owner for name, owner, _, tensor in tensors if plan.is_expert_weight(name, tuple(tensor.shape))}
            # Not all of them are what the routing is of: jetmoe has experts in its attention too.
            whole = set() if experts else holders & set(experts_of(model)[layer].module.modules())
            rests = {0}
            for name, owner, attribute, tensor in tensors:
                axis = plan.axes[name]
                rests.add(axis.rest)
                if owner not in whole or tensor.dim() == 1:  # a correction bias may live among the experts (laguna)
                    rows = axis.positions(ids, plan.experts).to(tensor.device)
                    _replace(undo, owner, attribute, tensor.detach().index_select(axis.dimension, rows))
            for _, owner, attribute, table in _held(model, plan.tables, layer):
                (router,) = (tensor for name, _, _, tensor in tensors if plan.is_router(name, tuple(tensor.shape)))
                _replace(undo, owner, attribute, rebound(table, router.detach(), ids))
            for modules in _lists(model, plan, layer) if experts else ():
                undo.callback(setattr, modules, "_modules", modules._modules)
                modules._modules = {str(new): modules[old] for new, old in enumerate(ids)}
            for module in _modules(model, tensors[0][0]):
                if module not in whole:
                    _count(undo, module, plan.experts, len(ids), rests)
        yield


@contextmanager
def routed_without(model: nn.Module, plan: Plan, kept: Kept) -> Iterator[None]:
    """Within this block the layers in `kept` compute what they would with these experts alone; no weight is copied."""
    layers = experts_of(model)

    def function(layer: int) -> ExpertsFunction:
        return lambda hidden, expert, gate: layers[layer].total(
            hidden, whole_numbers(expert, kept[layer], plan.experts), gate
        )

    with sliced(model, plan, kept, experts=False), in_place({layers[layer]: function(layer) for layer in kept}):
        yield


def whole_numbers(expert: Int[Tensor, "*n"], kept: Sequence[int], experts: int) -> Int64[Tensor, "*n"]:
    """Numbers among the experts kept as numbers among all; those of experts held elsewhere stay beyond the last."""
    ids = torch.tensor(kept, device=expert.device)
    last = len(kept) - 1
    return torch.where(expert > last, expert + experts - len(kept), ids[expert.clamp_max(last)])


def _held(model: nn.Module, names: Iterable[str], layer: int) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """(name, module, attribute, tensor) of those of a layer's tensors that the model holds under these names."""
    for name in names:
        if layer_of(name) == layer:
            path, _, attribute = name.rpartition(".")
            try:
                owner = model.get_submodule(path)
            except AttributeError:  # a name on disk
                continue
            tensor = {**owner._parameters, **owner._buffers}.get(attribute)
            if tensor is not None:
                yield name, owner, attribute, tensor


def _lists(model: nn.Module, plan: Plan, layer: int) -> list[nn.ModuleList]:
    """A layer's lists with a module for each expert, where it does not hold their weights in stacks."""
    paths = {name.partition(".#.")[0] for name in plan.single if layer_of(name) == layer}
    found = (module for name, module in model.named_modules() if name in paths)
    return [module for module in found if isinstance(module, nn.ModuleList)]


def _modules(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """All modules of the decoder layer to which a tensor belongs."""
    found = LAYER.search(name)
    assert found is not None
    return model.get_submodule(name[: found.end() - 1]).modules()


def _replace(undo: ExitStack, owner: nn.Module, attribute: str, tensor: Tensor) -> None:
    held: dict[str, Any] = owner._parameters if attribute in owner._parameters else owner._buffers
    before = held[attribute]
    undo.callback(held.__setitem__, attribute, before)
    held[attribute] = nn.Parameter(tensor, before.requires_grad) if held is owner._parameters else tensor


def _count(undo: ExitStack, module: nn.Module, before: int, after: int, rests: set[int]) -> None:
    """Change the number of experts, alone and with further classes, that a module or its config holds."""
    for name, value in list(vars(module).items()):
        named = ("expert" in name or "classes" in name) and "shared" not in name and name not in TOP_K_KEYS
        if named and type(value) is int and value - before in rests:
            undo.callback(setattr, module, name, value)
            setattr(module, name, value - before + after)
        elif name == "config":  # zaya's router tells by it which class skips the experts
            undo.callback(setattr, module, name, value)
            setattr(module, name, with_expert_count(value, after))
