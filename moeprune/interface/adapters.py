"""Experts without transformers' experts interface: the few families whose modules are made otherwise."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moeprune.interface.base import Experts, ExpertsFunction, forward_replaced


class WrappedExperts(Experts):
    """Experts whose forward takes (hidden, expert, gate), but whose class is not marked (dbrx, longcat_flash)."""

    @staticmethod
    def found_in(module: nn.Module) -> bool:
        """Whether a module's forward is that of experts."""
        names = list(inspect.signature(module.forward).parameters)
        return names == ["hidden_states", "top_k_index", "top_k_weights"] and "Experts" in type(module).__name__

    @property
    def count(self) -> int:
        """See Experts."""
        return self.module.num_routed_experts if hasattr(self.module, "num_routed_experts") else self.module.num_experts

    @property
    def numbers(self) -> int:
        """See Experts."""
        return getattr(self.module, "total_experts", self.count)

    def outputs(
        self, hidden: Float[Tensor, "N D"], expert: Int[Tensor, "N"], gate: Float[Tensor, "N"], grouped: bool = False
    ) -> Float[Tensor, "N D"]:
        """See Experts."""
        return self.total(hidden, expert[:, None], torch.ones_like(hidden[:, :1]))

    def total(
        self, hidden: Float[Tensor, "T D"], expert: Int[Tensor, "T K"], gate: Float[Tensor, "T K"]
    ) -> Float[Tensor, "T D"]:
        """See Experts."""
        if self.numbers > self.count and expert.shape[1] == 1:
            # longcat_flash cannot run with one slot a token; an identity expert of weight 0 costs next to nothing.
            expert = torch.cat([expert, torch.full_like(expert, self.numbers - 1)], 1)
            gate = torch.cat([gate, torch.zeros_like(gate)], 1)
        return type(self.module).forward(self.module, hidden, expert, gate).reshape(hidden.shape)

    @contextmanager
    def in_place(self, function: ExpertsFunction) -> Iterator[None]:
        """See Experts."""

        def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
            flat = hidden_states.reshape(-1, hidden_states.shape[-1])
            return function(flat, top_k_index, top_k_weights).reshape(hidden_states.shape)

        with forward_replaced(self.module, forward):
            yield


class Llama4Experts(Experts):
    """Llama 4: every expert is run on every token, its input multiplied by the gate (0 where it was not chosen)."""

    gates_input = True

    @staticmethod
    def found_in(module: nn.Module) -> bool:
        """Whether a module is the experts of Llama 4."""
        return type(module).__name__ == "Llama4TextExperts"

    def outputs(
        self, hidden: Float[Tensor, "N D"], expert: Int[Tensor, "N"], gate: Float[Tensor, "N"], grouped: bool = False
    ) -> Float[Tensor, "N D"]:
        """See Experts."""
        module, weight = self.module, gate[:, None].to(hidden.dtype)
        output = torch.zeros_like(hidden)
        for one in expert.unique().tolist():
            rows = (expert == one).nonzero().flatten()
            first, second = ((hidden[rows] * weight[rows]) @ module.gate_up_proj[one]).chunk(2, -1)
            output = output.index_add(0, rows, (second * module.act_fn(first)) @ module.down_proj[one])
        return output / weight.clamp_min(torch.finfo(hidden.dtype).tiny)

    @contextmanager
    def in_place(self, function: ExpertsFunction) -> Iterator[None]:
        """See Experts."""
        routed: list[tuple[Tensor, Tensor]] = []

        def keep(router: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
            routed[:] = [(inputs[0], output[0])]

        def forward(hidden_states: Tensor) -> Tensor:
            ((hidden, gates),) = routed
            gate, expert = gates.topk(self.block.top_k, -1)
            # The block adds up what it takes for the outputs of one expert after the other.
            output = torch.zeros_like(hidden_states)
            output[: len(hidden)] = function(hidden, expert, gate)
            return output

        handle = self.block.router.register_forward_hook(keep)
        try:
            with forward_replaced(self.module, forward):
                yield
        finally:
            handle.remove()


class JetMoeExperts(Experts):
    """JetMoE: the block itself sorts rows by expert and holds two stacks of weights."""

    @staticmethod
    def found_in(module: nn.Module) -> bool:
        """Whether a module is a JetMoE block of MLP experts; that of attention experts is none."""
        return type(module).__name__ == "JetMoeMoE"

    @property
    def count(self) -> int:
        """See Experts."""
        return self.module.input_linear.num_experts

    def outputs(
        self, hidden: Float[Tensor, "N D"], expert: Int[Tensor, "N"], gate: Float[Tensor, "N"], grouped: bool = False
    ) -> Float[Tensor, "N D"]:
        """See Experts."""
        module, order = self.module, torch.argsort(expert, stable=True)
        sizes = torch.bincount(expert, minlength=self.count).tolist()
        first, second = module.input_linear(hidden[order], sizes).chunk(2, -1)
        return module.output_linear(module.activation(first) * second, sizes)[torch.argsort(order)]

    @contextmanager
    def in_place(self, function: ExpertsFunction) -> Iterator[None]:
        """See Experts."""

        def forward(layer_input: Tensor) -> Tensor:
            hidden = layer_input.reshape(-1, layer_input.shape[-1])
            order, _, gates, sizes, _ = self.module.router(hidden)
            numbers = torch.repeat_interleave(torch.tensor(sizes, device=order.device))
            expert, gate = _put(order, numbers), _put(order, gates)
            total = function(hidden, expert.reshape(len(hidden), -1), gate.reshape(len(hidden), -1))
            return total.reshape(layer_input.shape) + self.module.bias

        with forward_replaced(self.module, forward):
            yield


def _put(order: Tensor, values: Tensor) -> Any:
    """`values` back from the order in which they were sorted."""
    return torch.empty_like(values).index_copy_(0, order, values)
