"""What pruning would leave of a checkpoint, told from headers alone."""

import math

from moeprune.checkpoint import Checkpoint, TensorInfo
from moeprune.masks import Mask
from moeprune.schema import Plan, Shape, layer_of
from moeprune.surgery import contents_of

Keep = int | Mask
"""How many experts the layers keep: each the same number, or those of a mask."""


def pruned_bytes(source: Checkpoint, plan: Plan, keep: Keep) -> int:
    """Bytes of all tensors if the layers keep so many experts.

    Layers of one size with that many on average come to the same.
    """
    return sum(info.bytes for info in _pruned(source, plan, keep).values())


def parameters(source: Checkpoint, plan: Plan, keep: Keep, top_k: int) -> tuple[int, int]:
    """(parameters in total, parameters active per token) if the layers keep so many experts.

    Active are all but those of the experts a token is not routed to; embeddings count as active. Of quantised weights
    the model's own numbers are counted, not those they are packed in, nor their scales.
    """
    total = active = 0.0
    counted: set[str] = set()
    for name, info in _pruned(source, plan, keep).items():
        whole = plan.whole_of(name)
        if whole in counted:
            continue
        counted.add(whole)
        left = _left(plan, layer_of(name), keep)
        size = math.prod(_shape(plan, whole, left) or info.shape)
        of_experts = whole in plan.axes or plan.expert_of(whole) is not None
        idle = plan.weight_of(whole) is not None or (of_experts and ".experts." in whole)
        total, active = total + size, active + (size * top_k / left if idle else size)
    return round(total), round(active)


def _shape(plan: Plan, name: str, left: int) -> Shape | None:
    """The shape the library gives a tensor in a layer with `left` experts, if it knows it."""
    shape, axis = plan.shapes.get(name), plan.axes.get(name)
    return shape if shape is None or axis is None else axis.resized(shape, left)


def _pruned(source: Checkpoint, plan: Plan, keep: Keep) -> dict[str, TensorInfo]:
    kept = {layer: tuple(range(_left(plan, layer, keep))) for layer in plan.layers}
    contents = contents_of(source, plan, Mask(base="", experts=plan.experts, kept=kept))
    return {name: info for name, (info, _) in contents.items()}


def _left(plan: Plan, layer: int | None, keep: Keep) -> int:
    """The experts left in a layer; of one that has fewer from the start, those."""
    if layer not in plan.layers:
        return plan.experts
    return min(keep if isinstance(keep, int) else len(keep.kept[layer]), plan.counts.get(layer, plan.experts))
