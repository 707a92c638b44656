"""How much a layer's output changes when experts are removed (ExpertSparsity / NAEE, Lu et al. 2024, arXiv:2402.14800).

    loss(C) = sum over blocks of || F'(X, C) - F(X) ||_F        C the experts kept

F is the dense layer's routed output for the tokens of a block, F' that of the experts in C alone under the model's own
routing, from which the others are missing. A block is one of the corpus; padding does not count.

No expert runs for a candidate. Let f_1 ... f_E be the outputs of all experts for a token, r = F(x) - sum_e g_e f_e what
the dense gates g leave over (nothing, unless earlier layers were pruned), and G the Gram matrix of (f_1, ..., f_E, r).
With new gates g' the token's squared error is w^T G w, w = (g' - g, -1): a candidate costs a call of the router and
2 k + 1 rows and columns of G, and a token whose gates stay the same adds exactly nothing. Memory: 8 T (E + 1)^2 bytes
of G for T tokens, one layer at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor, nn

from moeprune.corpus import Corpus
from moeprune.errors import BadInput
from moeprune.interface import experts_of, in_place
from moeprune.schema import Plan
from moeprune.slicing import Kept, routed_without, sliced, whole_numbers

Batch = tuple[Int64[Tensor, "b t"], Int64[Tensor, "b t"]]

BLOCKS = 8
"""Blocks in one pass. A constant, not the runtime's batch size: that must not change what is chosen."""
NUMBERS = 2**25
"""Numbers in the largest temporary: the outputs of all experts for some tokens."""


def batches(corpora: Iterable[Corpus], tokens: int = 0) -> Iterator[Batch]:
    """(input ids, attention mask) of all blocks, or of the first `tokens` tokens of each corpus."""
    for corpus in corpora:
        left = tokens or corpus.tokens
        for chunk in range(corpus.chunks):
            for input_ids, whole in corpus.batches(chunk, BLOCKS):
                mask = whole * (whole.reshape(-1).cumsum(0).reshape(whole.shape) <= left)
                left -= int(mask.sum())
                if (some := mask.any(1)).any():
                    yield input_ids[some], mask[some]


class LayerLoss:
    """The loss of one layer as a function of the experts it keeps; `dense` is || F(X) ||_F summed over blocks alike.

    X are the layer's inputs once the layers in `earlier` keep only the experts named there; F is of the dense model.
    The model is as before after each call, and its experts' weights are never copied.

    Raises BadInput if the layer's block cannot be run by itself.
    """

    def __init__(
        self, model: nn.Module, plan: Plan, layer: int, inputs: Iterable[Batch], earlier: Kept | None = None
    ) -> None:
        self.model, self.plan, self.layer = model, plan, layer
        self.experts = experts_of(model)[layer]
        self.block = self.experts.block
        if self.experts.gates_input:
            raise self._unlike("multiplies the input of an expert by its gate")
        if self.experts.numbers > self.experts.count:
            raise self._unlike("has identity experts beside the routed ones")
        self.dense = 0.0
        self.parts = [self._part(input_ids, mask, earlier or {}) for input_ids, mask in inputs]

    @torch.no_grad()
    def __call__(self, kept: Sequence[int]) -> float:
        """The loss if the layer keeps these experts, ascending; ValueError if it is not finite."""
        loss = 0.0
        with sliced(self.model, self.plan, {self.layer: kept}, experts=False):
            for part in self.parts:
                found = self._replay(part.call)
                expert = whole_numbers(found.expert[part.token], kept, self.plan.experts)
                chosen, gate = self._slots(expert, found.gate[part.token])
                change = (-part.weight).scatter_add(1, chosen, gate)
                at = torch.cat([chosen, part.at], 1)
                times = torch.zeros_like(change).scatter_add(1, at, torch.ones_like(at, dtype=change.dtype))
                weight = change.gather(1, at) / times.gather(1, at)  # a place may be named twice
                place = (at[:, :, None] * (self.plan.experts + 1) + at[:, None]).flatten(1)
                product = part.gram.flatten(1).gather(1, place) * (weight[:, :, None] * weight[:, None]).flatten(1)
                loss += float(_norms(product.sum(1), part.lengths).sum())
        if not isfinite(loss):
            raise ValueError(f"layer {self.layer}: the loss with experts {list(kept)} is {loss}: it cannot be ordered")
        return loss

    @torch.no_grad()
    def _part(self, input_ids: Int64[Tensor, "b t"], mask: Int64[Tensor, "b t"], earlier: Kept) -> "_Part":
        device = next(self.model.parameters()).device
        token, lengths = mask.reshape(-1).nonzero().flatten().to(device), mask.sum(1).to(device)
        with routed_without(self.model, self.plan, earlier):
            call, found = self._see(input_ids.to(device), mask.to(device))
        again = self._replay(call)
        if not torch.equal(again.expert, found.expert) or not torch.allclose(again.gate, found.gate):
            raise self._unlike("routes other than within the model")
        at, gate = self._slots(found.expert[token], found.gate[token])
        at = torch.cat([at, at.new_full((len(at), 1), self.plan.experts)], 1)
        gate = torch.cat([gate, torch.ones_like(gate[:, :1])], 1)
        weight = gate.new_zeros(len(gate), self.plan.experts + 1).scatter_add(1, at, gate)
        goal = None
        if earlier:
            _, dense = self._see(input_ids.to(device), mask.to(device))
            goal = self._output(dense, token)
        grams, squares = zip(*self._grams(found.hidden[token], weight, goal), strict=True)
        self.dense += float(_norms(torch.cat(squares), lengths).sum())
        return _Part(call, token, lengths, at, weight, torch.cat(grams))

    def _see(self, input_ids: Tensor, mask: Tensor) -> tuple["_Call", "_Routed"]:
        """Run the model as far as the layer's experts."""
        calls: list[_Call] = []
        base: Any = self.model.get_decoder() if hasattr(self.model, "get_decoder") else self.model  # type: ignore[operator]
        handle = self.block.register_forward_pre_hook(
            lambda _, arguments, named: calls.append(_Call(arguments, named)), with_kwargs=True
        )
        try:
            routed = self._routed(lambda: base(input_ids=input_ids, attention_mask=mask, use_cache=False))
        finally:
            handle.remove()
        if not calls:
            raise self._unlike("is not run as a module")
        return calls[-1], routed

    def _replay(self, call: "_Call") -> "_Routed":
        return self._routed(lambda: self.block(*call.arguments, **call.named))

    def _routed(self, run: Callable[[], Any]) -> "_Routed":
        """What the layer's experts are given by `run`, which goes no further."""
        found: list[_Routed] = []

        def experts(hidden: Tensor, expert: Tensor, gate: Tensor) -> Tensor:
            found.append(_Routed(hidden, expert, gate))
            raise _Stop

        with in_place({self.experts: experts}), suppress(_Stop):
            run()
        if not found:
            raise self._unlike("does not call its experts' interface")
        return found[0]

    def _unlike(self, what: str) -> BadInput:
        return BadInput(
            f"mask.selection: the {type(self.block).__name__} of layer {self.layer} {what}, so that 'reconstruction' "
            f"cannot search {type(self.model).__name__}: choose another selection"
        )

    def _slots(
        self, expert: Int[Tensor, "N K"], gate: Float[Tensor, "N K"]
    ) -> tuple[Int64[Tensor, "N K"], Float64[Tensor, "N K"]]:
        """Experts and gates; one held elsewhere becomes the number after the last, of gate 0."""
        elsewhere = expert >= self.plan.experts
        return expert.long().masked_fill(elsewhere, self.plan.experts), gate.double().masked_fill(elsewhere, 0)

    def _output(self, routed: "_Routed", token: Int64[Tensor, "N"]) -> Float64[Tensor, "N D"]:
        """The gated sum of the experts' outputs, in float64."""
        expert, gate = self._slots(routed.expert[token], routed.gate[token])
        slots = expert.shape[1]
        rows = routed.hidden[token].repeat_interleave(slots, 0)
        output = self._ungated(rows, expert.clamp_max(self.plan.experts - 1).reshape(-1))
        return (output.double().reshape(len(token), slots, -1) * gate[:, :, None]).sum(1)

    def _grams(
        self, hidden: Float[Tensor, "N D"], weight: Float64[Tensor, "N V"], goal: Float64[Tensor, "N D"] | None
    ) -> Iterator[tuple[Float64[Tensor, "n V V"], Float64[Tensor, "n"]]]:
        """(G, ||F(x)||^2) for some tokens at a time; without a goal, F(x) is what the gates in `weight` make."""
        experts = self.plan.experts
        size = max(1, NUMBERS // (experts * hidden.shape[1]))
        for part in (slice(first, first + size) for first in range(0, len(hidden), size)):
            rows = hidden[part]
            expert = torch.arange(experts, device=rows.device).repeat_interleave(len(rows))
            output = (
                self._ungated(rows.repeat(experts, 1), expert).reshape(experts, *rows.shape).transpose(0, 1).double()
            )
            dense = (weight[part, None, :-1] @ output).squeeze(1)
            rest = torch.zeros_like(dense) if goal is None else goal[part] - dense
            vectors = torch.cat([output, rest[:, None]], 1)
            yield vectors @ vectors.mT, (dense + rest).square().sum(1)

    def _ungated(self, hidden: Float[Tensor, "N D"], expert: Int[Tensor, "N"]) -> Float[Tensor, "N D"]:
        """f_e(h), a row of its own for each expert and token."""
        return self.experts.outputs(hidden, expert, torch.ones_like(hidden[:, 0]))


def _norms(square: Float64[Tensor, "N"], lengths: Int64[Tensor, "b"]) -> Float64[Tensor, "b"]:
    """Frobenius norm of each block, from the squared lengths of its rows; rounding may leave one below 0."""
    return torch.segment_reduce(square.clamp_min(0), "sum", lengths=lengths).sqrt()


class _Stop(Exception):
    """A pass has come as far as it was wanted."""


@dataclass(frozen=True)
class _Call:
    """What a block was given."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]


@dataclass(frozen=True)
class _Routed:
    """What a layer's experts were given."""

    hidden: Float[Tensor, "T D"]
    expert: Int[Tensor, "T K"]
    gate: Float[Tensor, "T K"]


@dataclass(frozen=True)
class _Part:
    """One batch of N tokens: the call of the block, their positions in it, and how many of them each block has.

    `weight` are their dense gates and a 1 for what these leave over, `at` where it is not 0, `gram` their matrices G.
    """

    call: _Call
    token: Int64[Tensor, "N"]
    lengths: Int64[Tensor, "b"]
    at: Int64[Tensor, "N A"]
    weight: Float64[Tensor, "N V"]
    gram: Float64[Tensor, "N V V"]
