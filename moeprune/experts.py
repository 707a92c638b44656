"""The weights of a layer's experts, read from a checkpoint's files one expert at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

from safetensors import safe_open
from torch import Tensor

from moeprune.checkpoint import Checkpoint
from moeprune.schema import Plan, layer_of


@dataclass(frozen=True)
class LayerExperts:
    """Iterating yields, for each expert of one layer in turn, its weight matrices: no router, bias or shared expert."""

    checkpoint: Checkpoint
    plan: Plan
    layer: int

    def __iter__(self) -> Iterator[list[Tensor]]:
        names = [
            name
            for name, info in self.checkpoint.tensors.items()
            if layer_of(name) == self.layer and self.plan.is_expert_weight(name, info.shape)
        ]
        for expert in range(self.plan.experts):
            yield [self._matrix(name, expert) for name in names if self.plan.expert_of(name) in (None, expert)]

    def _matrix(self, name: str, expert: int) -> Tensor:
        if self.plan.expert_of(name) is not None:
            return self.checkpoint.read(name)
        axis = self.plan.axes[name]
        with safe_open(self.checkpoint.folder / self.checkpoint.tensors[name].file, "pt") as file:
            index: list[slice] = [slice(None)] * len(self.checkpoint.tensors[name].shape)
            index[axis.dimension] = slice(expert * axis.rows, (expert + 1) * axis.rows)
            return file.get_slice(name)[tuple(index)]
