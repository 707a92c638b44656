"""Which tensors of a checkpoint are projections of experts, and where their inputs lie: asked of transformers.

In memory the experts interface names them, and says how they lie. The library's own save path is run on tensors of
the meta device, with one input more at the up (or down) projections than there is: every tensor whose shape differs
is such a projection, and the dimension that differs is that of its inputs.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from moeprune.errors import BadInput
from moeprune.interface import experts_of
from moeprune.interface.registry import RegistryExperts
from moeprune.meta import meta_model

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


def unnumbered(name: str) -> str:
    """A tensor's name with the numbers of its layer and expert replaced by '#'."""
    return _NUMBER.sub("#", name)


def projections(config: Any, trust_remote_code: bool = False) -> dict[str, Projection]:
    """The expert projections of a model by name without numbers, from its config alone: no memory for weights.

    Names on disk and names in memory, since a file may hold either. Biases are none. Raises BadInput for a family
    without transformers' experts interface.
    """
    model = meta_model(config, trust_remote_code)
    memory = model.state_dict()
    shapes = _shapes(model, memory)
    found: dict[str, Projection] = {}
    for kind in KINDS:
        for name, longer in _shapes(model, memory | _one_input_more(model, kind)).items():
            if longer != shapes[name]:
                (axis,) = (i for i, (a, b) in enumerate(zip(shapes[name], longer, strict=True)) if a != b)
                found[unnumbered(name)] = Projection(kind, axis)
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


def _one_input_more(model: nn.Module, kind: Kind) -> dict[str, Tensor]:
    experts = {layer.module for layer in experts_of(model).values()}
    changed: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        for name, projection in memory_projections(module).items() if module in experts else ():
            if projection.kind == kind:
                shape = list(getattr(module, name).shape)
                shape[projection.input_axis] += 1
                changed[f"{prefix}.{name}"] = torch.empty(shape, device="meta")
    return changed


def _shapes(model: Any, memory: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes by name, in memory and as `save_pretrained` would write them."""
    disk = revert_weight_conversion(model, dict(memory))
    return {name: tuple(tensor.shape) for name, tensor in [*memory.items(), *disk.items()]}
