"""Experts with transformers' experts interface, which nearly all families have.

A class marked by `use_experts_implementation` takes (hidden [T, D], expert [T, K], gate [T, K]) and returns the gated
sum [T, D]. Which function does so is looked up in a registry by the name its config holds; ours hands each module's
call to whatever stands in for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

from moeprune.interface.base import Experts, ExpertsFunction

IMPLEMENTATION = "moeprune"
_MARKS = ("has_gate", "is_transposed", "_apply_gate")
_IN_PLACE: dict[nn.Module, ExpertsFunction] = {}


class RegistryExperts(Experts):
    """Experts with transformers' experts interface."""

    shows_inner = True

    @staticmethod
    def found_in(module: nn.Module) -> bool:
        """Whether a module is of a class marked by `use_experts_implementation`."""
        return all(hasattr(module, mark) for mark in _MARKS)

    def outputs(
        self, hidden: Float[Tensor, "N D"], expert: Int[Tensor, "N"], gate: Float[Tensor, "N"], grouped: bool = False
    ) -> Float[Tensor, "N D"]:
        """See Experts."""
        one = torch.ones(len(hidden), 1, dtype=hidden.dtype, device=hidden.device)
        return _own(self.module, hidden, expert[:, None], one, grouped)

    def outputs_and_inner(
        self, hidden: Float[Tensor, "N D"], expert: Int[Tensor, "N"], gate: Float[Tensor, "N"]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N I"]]:
        """See Experts."""
        seen: list[Tensor] = []
        with _inner_kept(self.module, seen):
            # Only the grouped implementation shows the input of the down projection. It sorts its rows by expert;
            # repeating its sort tells where each row went.
            output = self.outputs(hidden, expert, gate, grouped=True)
        return output, seen[0][torch.argsort(torch.sort(expert).indices)]

    def total(
        self, hidden: Float[Tensor, "T D"], expert: Int[Tensor, "T K"], gate: Float[Tensor, "T K"]
    ) -> Float[Tensor, "T D"]:
        """See Experts."""
        return _own(self.module, hidden, expert, gate)

    @contextmanager
    def in_place(self, function: ExpertsFunction) -> Iterator[None]:
        """See Experts."""
        before = _IN_PLACE.get(self.module)
        # Not model.set_experts_implementation(): on a subclass in another file it silently does nothing.
        config, implementation = self.module.config, self.module.config._experts_implementation_internal
        _IN_PLACE[self.module] = function
        config._experts_implementation_internal = IMPLEMENTATION
        try:
            yield
        finally:
            config._experts_implementation_internal = implementation
            _IN_PLACE.pop(self.module)
            if before is not None:
                _IN_PLACE[self.module] = before


def _own(module: Any, hidden: Tensor, expert: Tensor, gate: Tensor, grouped: bool = False) -> Tensor:
    """What the experts of `module` compute, by the library's own implementation that suits the device.

    On a CPU that is the plain loop over experts, fastest for long batches; elsewhere, or if asked for, the grouped
    kernel.
    """
    plain = hidden.device.type == "cpu" and not grouped
    forward = type(module).forward.__wrapped__ if plain else grouped_mm_experts_forward
    return forward(module, hidden, expert, gate)


@contextmanager
def _inner_kept(module: Any, seen: list[Tensor]) -> Iterator[None]:
    """Within this block `seen` is given the input of the down projection each time the experts run."""

    def keep(inner: Tensor) -> Tensor:
        seen.append(inner.detach())
        return inner

    if module.has_gate:
        gate = module._apply_gate
        module._apply_gate = lambda projected: keep(gate(projected))
        try:
            yield
        finally:
            del module._apply_gate
    else:
        handle = module.act_fn.register_forward_hook(lambda _, __, output: keep(output))
        try:
            yield
        finally:
            handle.remove()


def _forward(module: nn.Module, hidden: Tensor, expert: Tensor, gate: Tensor) -> Tensor:
    function = _IN_PLACE.get(module)
    return _own(module, hidden, expert, gate) if function is None else function(hidden, expert, gate)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _forward)
