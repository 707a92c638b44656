"""What pruning must equal in every family, sharing nothing with moeprune.

What belongs to experts is told by building the model twice, with other numbers of experts.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from families import EXPERTS, tiny_config
from tiny import logits
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel

Kept = Mapping[int, Sequence[int]]
_LAYER = re.compile(r"(?:layers|blocks)\.(\d+)\b")


def layer_of(name: str) -> int:
    """The number of the decoder layer in a name."""
    return int(_LAYER.search(name)[1])


@lru_cache
def expert_axes(model_type: str) -> dict[str, tuple[int, int]]:
    """Names of the tensors in memory whose size depends on the number of experts: (dimension, rows of each expert)."""
    with torch.device("meta"):
        few, many = (
            AutoModelForCausalLM.from_config(tiny_config(model_type, experts)).state_dict()
            for experts in (EXPERTS, 2 * EXPERTS)
        )
    found = {}
    for name, tensor in few.items():
        grown = [d for d in range(tensor.dim()) if many[name].shape[d] != tensor.shape[d]]
        if grown:
            (d,) = grown
            found[name] = (d, (many[name].shape[d] - tensor.shape[d]) // EXPERTS)
    return found


def tensors_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def expert_matrices(model: PreTrainedModel, layer: int) -> list[list[Tensor]]:
    """The weight matrices of each expert of a layer, cut from the stacks in memory."""
    found: list[list[Tensor]] = [[] for _ in range(EXPERTS)]
    for name, (d, rows) in expert_axes(model.config.model_type).items():
        stack = tensors_of(model)[name].detach()
        if layer_of(name) == layer and (stack.dim() == 3 or rows > 1):
            for e in range(EXPERTS):
                found[e].append(stack.narrow(d, e * rows, rows))
    return found


# ------------------------------------------------------------------------------------------ what pruning must equal


class RouterLogits(TorchFunctionMode):
    """Keeps what the routers' linear maps give, by name, with some columns set to minus infinity."""

    def __init__(self, routers: dict[int, str], removed: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.routers, self.removed = routers, removed
        self.seen: dict[str, list[Tensor]] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        # A cast to the dtype a weight already has gives the same tensor.
        if function is nn.functional.linear and (name := self.routers.get(id(args[1]))):
            output = output.clone()
            output[..., list(self.removed.get(name, ()))] = -torch.inf
            self.seen.setdefault(name, []).append(output.flatten(0, -2))
        return output


def routers_of(model: PreTrainedModel) -> dict[int, str]:
    """By the identity of their weight, the names of matrices with one row for each expert: routers, if run as such."""
    axes, tensors = expert_axes(model.config.model_type), tensors_of(model)
    return {id(tensors[name]): name for name, axis in axes.items() if axis == (0, 1) and tensors[name].dim() == 2}


@torch.no_grad()
def masked_logits(model: PreTrainedModel, ids: Tensor, kept: Kept) -> Tensor:
    """Logits of the whole model in which experts that are not kept cannot be chosen: their router logits are -inf.

    Numbers a family holds for each expert (correction biases) are -inf too: a score of 0 plus a bias could be chosen.
    Tokens bound to experts that are not kept are bound to others, see `rebound`.
    """
    axes, tensors = expert_axes(model.config.model_type), tensors_of(model)
    removed = {layer: sorted(set(range(EXPERTS)) - set(ids)) for layer, ids in kept.items()}
    before = {}
    for name, tensor in tensors.items():
        if name in axes and tensor.numel() == tensor.shape[axes[name][0]]:
            before[name] = tensor.clone()
            tensor[..., removed[layer_of(name)]] = -torch.inf
        elif name.endswith("tid2eid"):
            before[name] = tensor.clone()
            router = tensors[name.replace("tid2eid", "weight")]
            tensor.copy_(rebound(tensor, router, kept[layer_of(name)]))
    routers = routers_of(model)
    try:
        with RouterLogits(routers, {name: removed[layer_of(name)] for name in routers.values()}) as masking:
            output = logits(model, ids)
    finally:
        for name, tensor in before.items():
            tensors[name].copy_(tensor)
    assert {layer_of(name) for name in masking.seen} == set(kept), "a router was not masked"
    return output


def rebound(table: Tensor, router: Tensor, kept: Sequence[int]) -> Tensor:
    """A table of the experts each token is bound to, in which only those kept are left.

    An expert that is not kept gives way to the one kept whose router row has the largest cosine to its own and that the
    token is not bound to already.
    """
    new = table.tolist()
    for row in new:
        for slot, expert in enumerate(row):
            if expert not in kept:
                free = [other for other in kept if other not in row]
                row[slot] = max(free, key=lambda other: torch.cosine_similarity(router[expert], router[other], 0))
    return torch.tensor(new)
