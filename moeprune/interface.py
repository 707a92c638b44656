"""transformers' experts interface: which modules hold routed experts, running them, and standing in for them.

An experts function takes (hidden [T, D], expert [T, K], gate [T, K]) and returns the gated sum [T, D]. The library
looks it up in a registry by the name its config holds; ours hands each module's call to whatever stands in for it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward
from transformers.utils.output_capturing import OutputRecorder

from moeprune.errors import BadInput
from moeprune.schema import layer_of

IMPLEMENTATION = "moeprune"

ExpertsFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
_IN_PLACE: dict[nn.Module, ExpertsFunction] = {}


def own_experts(module: Any, hidden: Tensor, expert: Tensor, gate: Tensor, grouped: bool = False) -> Tensor:
    """What the experts of `module` compute, by the library's own implementation that suits the device.

    On a CPU that is the plain loop over experts, fastest for long batches; elsewhere, or if asked for, the grouped
    kernel.
    """
    plain = hidden.device.type == "cpu" and not grouped
    forward = type(module).forward.__wrapped__ if plain else grouped_mm_experts_forward
    return forward(module, hidden, expert, gate)


@contextmanager
def in_place(functions: Mapping[nn.Module, ExpertsFunction]) -> Iterator[None]:
    """Run these functions instead of the experts modules they are given for; all other modules run their own.

    Blocks may be nested: the innermost function counts. Everything is as before when a block ends, however it ends.
    """
    with ExitStack() as undo:
        for module, function in functions.items():
            before = _IN_PLACE.get(module)
            undo.callback(_put, module, before)
            _put(module, function)
            # Not model.set_experts_implementation(): on a subclass in another file it silently does nothing.
            config: Any = module.config
            undo.callback(setattr, config, "_experts_implementation_internal", config._experts_implementation_internal)
            config._experts_implementation_internal = IMPLEMENTATION
        yield


def _put(module: nn.Module, function: ExpertsFunction | None) -> None:
    if function is None:
        _IN_PLACE.pop(module)
    else:
        _IN_PLACE[module] = function


def _forward(module: nn.Module, hidden: Tensor, expert: Tensor, gate: Tensor) -> Tensor:
    function = _IN_PLACE.get(module)
    return own_experts(module, hidden, expert, gate) if function is None else function(hidden, expert, gate)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _forward)


def experts_modules(model: nn.Module) -> dict[int, nn.Module]:
    """The modules that hold routed experts, by layer: those marked by transformers' `use_experts_implementation`.

    Raises BadInput if there is none.
    """
    marks = ("has_gate", "is_transposed", "_apply_gate")
    found = {
        layer: module
        for name, module in model.named_modules()
        if all(hasattr(module, mark) for mark in marks) and (layer := layer_of(name)) is not None
    }
    if not found:
        raise BadInput(
            f"no module of {type(model).__name__} has transformers' experts interface: this family cannot be "
            "observed, searched, distilled or made to skip experts; a weight-only criterion can prune it"
        )
    return dict(sorted(found.items()))


def router_modules(model: nn.Module) -> dict[int, tuple[nn.Module, int]]:
    """(router, position of its logits in its output) by layer, from the model's own declaration of its outputs."""
    found: dict[int, tuple[nn.Module, int]] = {}
    for part in model.modules():
        declared = (getattr(part, "_can_record_outputs", None) or {}).get("router_logits")
        for recorder in declared if isinstance(declared, list | tuple) else [declared]:
            target, position = (
                (recorder.target_class, recorder.index) if isinstance(recorder, OutputRecorder) else (recorder, 0)
            )
            for name, module in model.named_modules():
                layer = layer_of(name)
                if target is not None and isinstance(module, target) and layer is not None:
                    found.setdefault(layer, (module, position))
    return found
