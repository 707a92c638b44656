"""The weights of a layer's experts and of its router, read from a checkpoint's files."""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from moeprune.checkpoint import Checkpoint
from moeprune.errors import BadInput
from moeprune.schema import Plan, layer_of


@dataclass(frozen=True)
class LayerExperts:
    """Iterating yields, for each expert of one layer in turn, its weight matrices: no router, bias or shared expert.

    Each is 2-D as it lies in the file, and all experts have theirs in the same order.
    """

    checkpoint: Checkpoint
    plan: Plan
    layer: int

    def __iter__(self) -> Iterator[list[Tensor]]:
        names = sorted(  # an expert may be spread over shards
            name
            for name, info in self.checkpoint.tensors.items()
            if layer_of(name) == self.layer and self.plan.is_expert_weight(name, info.shape)
        )
        for expert in range(self.plan.experts):
            yield [self._matrix(name, expert) for name in names if self.plan.expert_of(name) in (None, expert)]

    def _matrix(self, name: str, expert: int) -> Tensor:
        if self.plan.expert_of(name) is not None:
            return self.checkpoint.read(name)
        axis = self.plan.axes[name]
        with safe_open(self.checkpoint.folder / self.checkpoint.tensors[name].file, "pt") as file:
            index: list[slice] = [slice(None)] * len(self.checkpoint.tensors[name].shape)
            index[axis.dimension] = slice(expert * axis.rows, (expert + 1) * axis.rows)
            part = file.get_slice(name)[tuple(index)]
        return part.squeeze(axis.dimension) if part.dim() == 3 else part


def layer_router(checkpoint: Checkpoint, plan: Plan, layer: int) -> Float[Tensor, "E D"]:
    """The router's row for each expert of one layer; rows of what is no routed expert are cut off.

    Raises BadInput if no tensor, or more than one, could be the router.
    """
    names = [name for name in checkpoint.tensors if layer_of(name) == layer and _is_router(checkpoint, plan, name)]
    if len(names) != 1:
        raise BadInput(
            f"download.source: layer {layer} has {len(names)} tensors that could be its router "
            f"({', '.join(names) or 'none'}): choose a criterion that does not read it"
        )
    return checkpoint.read(names[0])[: plan.experts]


def _is_router(checkpoint: Checkpoint, plan: Plan, name: str) -> bool:
    axis = plan.axes.get(name)
    if axis is None or "experts." in name:  # biases of stacked experts have a row for each expert too
        return False
    return len(checkpoint.tensors[name].shape) == 2 and (axis.dimension, axis.rows) == (0, 1)
