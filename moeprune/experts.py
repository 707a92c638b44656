"""The weights of a layer's experts and of its router, read from a checkpoint's files."""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from moeprune.checkpoint import Checkpoint
from moeprune.configs import quantisation
from moeprune.errors import BadInput
from moeprune.quantised import unpacker
from moeprune.schema import Plan, layer_of


@dataclass(frozen=True)
class LayerExperts:
    """Iterating yields, for each expert of one layer in turn, its weight matrices: no router, bias or shared expert.

    Each is 2-D as it lies in the file, and all experts have theirs in the same order. Quantised ones are given as the
    numbers they stand for; `plan` must then be that of the file. One expert's matrices are in memory at a time. Raises
    BadInput if the quantisation is not understood.
    """

    checkpoint: Checkpoint
    plan: Plan
    layer: int

    def __iter__(self) -> Iterator[list[Tensor]]:
        unpack = unpacker(quantisation(self.checkpoint.config))
        names: dict[str, list[str]] = {}  # an expert may be spread over shards
        for name in self.checkpoint.tensors:
            if layer_of(name) == self.layer and (weight := self.plan.weight_of(name)):
                names.setdefault(weight, []).append(name)
        for expert in range(self.plan.experts):
            yield [
                unpack(weight, {_suffix(name, weight): self._read(name, expert) for name in names[weight]})
                for weight in sorted(names)
                if self.plan.expert_of(weight) in (None, expert)
            ]

    def _read(self, name: str, expert: int) -> Tensor:
        axis = self.plan.axes.get(name)
        if axis is None:
            return self.checkpoint.read(name)
        with safe_open(self.checkpoint.folder / self.checkpoint.tensors[name].file, "pt") as file:
            index: list[slice] = [slice(None)] * len(self.checkpoint.tensors[name].shape)
            index[axis.dimension] = slice(expert * axis.rows, (expert + 1) * axis.rows)
            part = file.get_slice(name)[tuple(index)]
        return part.squeeze(axis.dimension) if axis.rows == 1 else part


def _suffix(name: str, weight: str) -> str:
    """What a tensor's name adds to that of the weight it is part of: x.weight_scale and x.scale to x.weight."""
    return name.removeprefix(weight) if name.startswith(weight) else name.removeprefix(weight.rpartition(".")[0])


def layer_router(checkpoint: Checkpoint, plan: Plan, layer: int) -> Float[Tensor, "E D"]:
    """The router's row for each expert of one layer; rows of what is no routed expert are cut off.

    Raises BadInput as `router_of` does.
    """
    return checkpoint.read(router_of(checkpoint, plan, layer))[: plan.experts]


def router_of(checkpoint: Checkpoint, plan: Plan, layer: int) -> str:
    """The name of the weight of one layer's router. Raises BadInput if no tensor, or more than one, could be it."""
    names = [
        name
        for name, info in checkpoint.tensors.items()
        if layer_of(name) == layer and plan.is_router(name, info.shape)
    ]
    if len(names) != 1:
        raise BadInput(
            f"download.source: layer {layer} has {len(names)} tensors that could be its router "
            f"({', '.join(names) or 'none'}): choose a criterion that does not read it"
        )
    return names[0]
