"""What the answer of a gate can mean: the experts a token is sent to, and their gates.

Gates return experts [T, K] and their gates [T, K] among other things, or logits [T, E] alone, to which the block that
asks them applies softmax or sigmoid, then top-k, then perhaps divides by the sum of the chosen.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Routed = tuple[Int[Tensor, "T K"], Float[Tensor, "T K"]]
Reading = Callable[[Any, int], Routed | None]
"""(what the gate returned, K) -> experts and gates; None if it cannot be read so."""


def unpaired(answer: Any) -> list[Tensor]:
    """What may be logits among what a router returned: floating tensors that go with no integer one."""
    tensors = _tensors(answer)
    numbers = [tensor.shape for tensor in tensors if not tensor.is_floating_point()]
    return [tensor for tensor in tensors if tensor.is_floating_point() and tensor.shape not in numbers]


def _returned(answer: Any, slots: int) -> Routed | None:
    tensors = _tensors(answer)
    for expert, gate in product(tensors, tensors):
        if not expert.is_floating_point() and gate.is_floating_point() and expert.shape == gate.shape:
            return expert.reshape(-1, expert.shape[-1]), gate.reshape(-1, gate.shape[-1])
    return None


def _by(score: Callable[[Tensor], Tensor], renormalised: bool) -> Reading:
    def reading(answer: Any, slots: int) -> Routed | None:
        found = next((one for one in unpaired(answer) if one.shape[-1] >= slots), None)
        if found is None:
            return None
        gate, expert = score(found.reshape(-1, found.shape[-1]).float()).topk(slots, -1)
        return expert, (gate / gate.sum(-1, keepdim=True) if renormalised else gate).to(found.dtype)

    return reading


def _softmax(values: Float[Tensor, "T E"]) -> Float[Tensor, "T E"]:
    return values.softmax(-1)


READINGS: tuple[Reading, ...] = (
    _returned,
    *(_by(score, renormalised) for score in (_softmax, torch.sigmoid) for renormalised in (False, True)),
)
"""A softmax over the logits of the chosen is a softmax over all of them, renormalised."""


def _tensors(answer: Any) -> list[Tensor]:
    parts = answer if isinstance(answer, tuple | list) else [answer]
    return [part for part in parts if isinstance(part, Tensor) and part.dim() > 1]
