"""Which tensors of a checkpoint are projections of experts, and where their inputs lie: asked of transformers.

In memory the experts interface names them, and says how they lie. A model on the meta device is given one input more
at its up (or down) projections, and the library's own save path is run on it before and after: every tensor whose shape
differs is such a projection, and the dimension that differs is that of its inputs.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from moeprune.errors import BadInput
from moeprune.interface import experts_of
from moeprune.interface.registry import RegistryExperts
from moeprune.meta import meta_model, meta_tensors
from moeprune.schema import Shape

Kind = Literal["up", "down"]
KINDS: tuple[Kind, ...] = ("up", "down")

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Projection:
    """A weight tensor of experts: a matrix of one of them, or a stack whose first dimension is the experts.

    `up` reads the input of the expert (gate and up projections), `down` what their activation makes of it. Along
    `input_axis` lie the inputs, along the other dimension of a matrix its outputs.
    """

    kind: Kind
    input_axis: int

    def turned(self) -> "Projection":
        """This one of a stack whose inputs and outputs are exchanged."""
        return Projection(self.kind, 3 - self.input_axis)


def unnumbered(name: str) -> str:
    """A tensor's name with the numbers of its layer and expert replaced by '#'."""
    return _NUMBER.sub("#", name)


def projections(config: Any, trust_remote_code: bool = False) -> dict[str, Projection]:
    """The expert projections of a model by name without numbers, from its config alone: no memory for weights.

    Names on disk and names in memory, since a file may hold either. Biases are none. Raises BadInput for a family
    without transformers' experts interface, or whose save path does more to a projection than to move its inputs.
    """
    model = meta_model(config, trust_remote_code)
    found: dict[str, Projection] = {}
    before = _shapes(model)
    for kind in KINDS:
        _add_input(model, kind)
        after = _shapes(model)
        for name in before:
            if after[name] != before[name]:
                found[unnumbered(name)] = Projection(kind, _longer_axis(name, before[name], after[name]))
        before = after
    return found


def memory_projections(experts: Any) -> dict[str, Projection]:
    """The projections of a module with transformers' experts interface, by the names of its parameters."""
    if not RegistryExperts.found_in(experts):
        raise BadInput(
            f"download.source: {type(experts).__name__} does not tell which of its weights are projections: weights "
            "inside its experts cannot be zeroed; remove whole experts instead (mask.ratio)"
        )
    axis = 1 if experts.is_transposed else 2
    up = "gate_up_proj" if experts.has_gate else "up_proj"
    return {up: Projection("up", axis), "down_proj": Projection("down", axis)}


def _add_input(model: nn.Module, kind: Kind) -> None:
    for experts in experts_of(model).values():
        for name, projection in memory_projections(experts.module).items():
            if projection.kind == kind:
                shape = list(getattr(experts.module, name).shape)
                shape[projection.input_axis] += 1
                # The save path compares a tensor with the model's own, which must change with it.
                setattr(experts.module, name, nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False))


def _shapes(model: Any) -> dict[str, Shape]:
    """Shapes by name, in memory and as `save_pretrained` would write them."""
    memory, disk = meta_tensors(model)
    return {name: tuple(tensor.shape) for name, tensor in [*memory.items(), *disk.items()]}


def _longer_axis(name: str, before: Shape, after: Shape) -> int:
    longer = [axis for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    if len(longer) != 1:
        raise BadInput(
            f"download.source: where the inputs of {name} lie cannot be told from its shape: weights inside experts "
            "cannot be zeroed; remove whole experts instead (mask.ratio)"
        )
    return longer[0]
