"""The routed experts of a model, and its routers, with no code per family where it can be avoided.

experts_of(model)                   what holds the experts of each layer: an `Experts`
in_place({experts: function, ...})  functions run instead of them
routers_of(model, ...)              where each layer's router logits are to be had
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.utils.output_capturing import OutputRecorder

from moeprune.errors import BadInput
from moeprune.interface.adapters import JetMoeExperts, Llama4Experts, WrappedExperts
from moeprune.interface.base import Experts, ExpertsFunction
from moeprune.interface.module_lists import ModuleListExperts
from moeprune.interface.readings import unpaired
from moeprune.interface.registry import RegistryExperts
from moeprune.schema import layer_of

__all__ = ["Experts", "ExpertsFunction", "Logits", "experts_of", "in_place", "routers_of"]

_KINDS = (RegistryExperts, WrappedExperts, Llama4Experts, JetMoeExperts, ModuleListExperts)

Logits = Callable[[nn.Module, Any, Any], Tensor]
"""Finds the logits of a router, given it, its inputs and what it returned."""


def experts_of(model: nn.Module) -> dict[int, Experts]:
    """The routed experts by layer.

    Raises BadInput if there are none that can be run by themselves, or two towers have some.
    """
    modules = dict(model.named_modules())
    found: dict[int, Experts] = {}
    for name, module in modules.items():
        layer = layer_of(name)
        kind = next((kind for kind in _KINDS if kind.found_in(module)), None) if layer is not None else None
        if kind is not None and layer is not None:
            if layer in found:
                raise BadInput(
                    f"download.source: {type(model).__name__} has experts in layer {layer} of two towers "
                    f"({name} is one): give a checkpoint of one of them"
                )
            block = module if kind in (JetMoeExperts, ModuleListExperts) else modules[name.rpartition(".")[0]]
            found[layer] = kind(module, block)
    if not found:
        raise BadInput(
            f"download.source: the experts of {type(model).__name__} are not made in any way that can be observed, "
            "searched, distilled or made to skip experts; a weight-only criterion may prune it"
        )
    return dict(sorted(found.items()))


@contextmanager
def in_place(functions: Mapping[Experts, ExpertsFunction]) -> Iterator[None]:
    """Within this block these functions run instead of the experts they are given for; see `Experts.in_place`."""
    with ExitStack() as undo:
        for experts, function in functions.items():
            undo.enter_context(experts.in_place(function))
        yield


def routers_of(model: nn.Module, experts: Mapping[int, Experts]) -> dict[int, tuple[nn.Module, Logits]]:
    """(router, what finds its logits in its output) by layer.

    A router is what the model declares one to be, the nearest to the experts if there are several (jetmoe routes its
    attention too); where nothing is declared (hash layers of deepseek_v4), a module beside the experts with a row of
    weights for each of them. Layers without either are left out.
    """
    names = {module: name for name, module in model.named_modules()}
    declared = _declared(model)
    found: dict[int, tuple[nn.Module, Logits]] = {}
    for layer, one in experts.items():
        here = [(router, logits) for router, logits in declared if layer_of(names[router]) == layer]
        here = here or [(router, _wide(one.count)) for router in _with_rows(one)]
        if here:
            home = names[one.module]
            found[layer] = max(here, key=lambda each: _shared(names[each[0]], home))
    return found


def _declared(model: nn.Module) -> list[tuple[nn.Module, Logits]]:
    """What the parts of a model say they record as router logits."""
    found: dict[nn.Module, Logits] = {}
    for part in model.modules():
        declared = (getattr(part, "_can_record_outputs", None) or {}).get("router_logits")
        for recorder in declared if isinstance(declared, list | tuple) else [declared]:
            target: Any = recorder
            position = 0
            if isinstance(recorder, OutputRecorder):
                target, position = recorder.target_class, recorder.index
            for module in model.modules() if isinstance(target, type) else ():
                if isinstance(module, target):
                    found.setdefault(module, _at(position))
    return list(found.items())


def _at(position: int) -> Logits:
    return lambda router, inputs, output: output[position] if isinstance(output, tuple | list) else output


def _wide(experts: int) -> Logits:
    """The logits that a router returned; made again where it keeps them to itself."""

    def find(router: nn.Module, inputs: Any, output: Any) -> Tensor:
        found = next((one for one in unpaired(output) if one.shape[-1] == experts), None)
        return inputs[0].float() @ _rows(router, experts)[0].float().T if found is None else found

    return find


def _with_rows(experts: Experts) -> list[nn.Module]:
    """Modules of a block, but not of its experts, with a matrix that has a row for each expert."""
    inner = set(experts.module.modules()) - {experts.block}
    return [module for module in experts.block.modules() if module not in inner and _rows(module, experts.count)]


def _rows(module: nn.Module, experts: int) -> list[Tensor]:
    return [weight for weight in module.parameters(recurse=False) if weight.dim() == 2 and len(weight) == experts]


def _shared(name: str, home: str) -> int:
    """How many leading parts two names share."""
    pairs = zip(name.split("."), home.split("."), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(name.count("."), home.count(".")) + 1)
