"""Remove experts from a checkpoint's files: tensors stream from the old shards to new ones, no model is built."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from moeprune import loader
from moeprune.checkpoint import Checkpoint, TensorInfo
from moeprune.configs import edited_config, read_config, without_heads
from moeprune.errors import BadInput
from moeprune.experts import router_of
from moeprune.masks import Mask
from moeprune.meta import meta_model
from moeprune.schema import ONE_EXPERT, Axis, Plan, layer_of, renumbered
from moeprune.token_tables import rebound
from moeprune.uneven import loader_keys
from moeprune.writing import Contents, write_checkpoint


def prune_checkpoint(
    source: Checkpoint,
    plan: Plan,
    mask: Mask,
    target: Path,
    shard_bytes: int,
    progress: Callable[[int], None] = lambda written: None,
    trust_remote_code: bool = False,
) -> None:
    """Write to the folder `target` the checkpoint with only the mask's experts, renumbered.

    `plan` is that of the source's files. Router rows, correction biases, stacked or per-expert weights and what lies
    beside them follow it: quantised weights stay as they are, with their scales. Tables that bind tokens to experts are
    rewritten (`token_tables.rebound`), prediction heads with experts left out; all else is copied byte for byte. If
    layers keep different numbers of experts, the code that loads the checkpoint is written beside it: see
    moeprune/uneven.py. `progress` is told the bytes of each tensor written. At most one tensor is in memory.

    Raises BadInput for a mask that does not fit.
    """
    if sorted(mask.kept) != plan.layers or mask.experts != plan.experts:
        raise BadInput(
            f"mask: it must be of {plan.experts} experts in each of the layers {plan.layers}, but it is of "
            f"{mask.experts} experts and keeps {mask.counts}: make a mask for this checkpoint"
        )
    config = edited_config(source.config, plan.experts, max(mask.counts.values()))
    if plan.dropped:
        config = without_heads(config)
    if mask.uneven:
        model = meta_model(read_config(source.folder, trust_remote_code), trust_remote_code)
        config |= loader_keys(source.config, model, plan, mask.counts)
        shutil.copyfile(loader.FILE, target / loader.FILE.name)
    write_checkpoint(source, contents_of(source, plan, mask), config, target, shard_bytes, progress)


@dataclass(frozen=True)
class _Sliced:
    """Rows of a tensor's expert axis that stay, as a picklable recipe for reading it."""

    source: Checkpoint
    name: str
    axis: Axis
    kept: tuple[int, ...]
    experts: int

    def __call__(self) -> Tensor:
        rows = self.axis.positions(self.kept, self.experts)
        return self.source.read(self.name).index_select(self.axis.dimension, rows)


@dataclass(frozen=True)
class _Rebound:
    """A table that binds tokens to experts, of those that stay, as a picklable recipe for making it."""

    source: Checkpoint
    name: str
    router: str
    kept: tuple[int, ...]

    def __call__(self) -> Tensor:
        return rebound(self.source.read(self.name), self.source.read(self.router), self.kept)


def contents_of(source: Checkpoint, plan: Plan, mask: Mask) -> Contents:
    """Every tensor of the pruned checkpoint: its name, what it will be, and how to read it."""
    contents: dict[str, tuple[TensorInfo, Callable[[], Tensor]]] = {}
    numbers = {layer: {old: new for new, old in enumerate(kept)} for layer, kept in mask.kept.items()}
    for name, info in source.tensors.items():
        layer = layer_of(name)
        kept = mask.kept.get(layer) if layer is not None else None
        expert = plan.expert_of(name)
        axis = plan.axes.get(name)
        if expert is not None and kept is not None and layer is not None:
            # Numbers from E on are identity experts (longcat_flash); they follow the routed ones.
            identity = expert - plan.experts + len(kept) if expert >= plan.experts else None
            if (new := numbers[layer].get(expert, identity)) is not None:
                contents[renumbered(name, new)] = (info, partial(source.read, name))
        elif axis is not None and kept is not None:
            shape = axis.resized(info.shape, len(kept))
            size = info.bytes // info.shape[axis.dimension] * shape[axis.dimension]
            sliced = replace(info, shape=shape, bytes=size)
            contents[name] = (sliced, _Sliced(source, name, axis, kept, plan.experts))
        elif name in plan.tables and layer is not None and kept is not None:
            contents[name] = (info, _Rebound(source, name, router_of(source, plan, layer), kept))
        elif name in plan.dropped:
            continue
        elif ONE_EXPERT.search(name):
            raise ValueError(f"{name} belongs to one expert, but the plan does not say how: give that of the files")
        else:
            contents[name] = (info, partial(source.read, name))
    return contents
