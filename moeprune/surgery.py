"""Remove experts from a checkpoint's files: tensors stream from the old shards to new ones, no model is built.

`write_checkpoint` is how every changed checkpoint is written.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moeprune.checkpoint import (
    CONFIG_FILES,
    INDEX,
    SINGLE,
    TOKENIZER_FILES,
    Checkpoint,
    TensorInfo,
    write_safetensors,
)
from moeprune.errors import BadInput
from moeprune.masks import Mask
from moeprune.schema import ONE_EXPERT, Axis, Plan, edited_config, layer_of, renumbered

Contents = Mapping[str, tuple[TensorInfo, Callable[[], Tensor]]]
"""Tensors to write: by name, what each will be and how to read it."""


def prune_checkpoint(
    source: Checkpoint,
    plan: Plan,
    mask: Mask,
    target: Path,
    shard_bytes: int,
    progress: Callable[[int], None] = lambda written: None,
) -> None:
    """Write to the folder `target` the checkpoint with only the mask's experts, renumbered.

    Router rows, correction biases and stacked or per-expert weights follow the plan; what no plan mentions is copied
    byte for byte. `progress` is told the bytes of each tensor written. At most one tensor is in memory.

    Raises BadInput for a mask that does not fit, and for a tensor of one expert that the plan does not explain (a
    quantisation scale, an MTP layer).
    """
    if sorted(mask.kept) != plan.layers or mask.experts != plan.experts or len(set(mask.counts.values())) != 1:
        raise BadInput(
            f"mask: it must keep as many of {plan.experts} experts in each of the layers {plan.layers}, but it is of "
            f"{mask.experts} experts and keeps {mask.counts}: make a mask for this checkpoint"
        )
    (keep,) = set(mask.counts.values())
    contents = _contents(source, plan, mask)
    write_checkpoint(source, contents, edited_config(source.config, plan.experts, keep), target, shard_bytes, progress)


def write_checkpoint(
    source: Checkpoint,
    contents: Contents,
    config: dict[str, Any],
    target: Path,
    shard_bytes: int,
    progress: Callable[[int], None] = lambda written: None,
) -> None:
    """Write to the folder `target` a stock checkpoint with these tensors and this config.json.

    Tokenizer and generation config are copied from the source. `contents` are read one at a time, in the order in
    which they are written; `progress` is told the bytes of each. Raises ValueError if a tensor read is not of the
    shape and dtype its TensorInfo promised.
    """
    shards = _shards({name: info for name, (info, _) in contents.items()}, shard_bytes)
    weight_map: dict[str, str] = {}
    for file, infos in shards.items():

        def values(infos: dict[str, TensorInfo] = infos) -> Iterator[Tensor]:
            for name, info in infos.items():
                yield contents[name][1]()
                progress(info.bytes)

        write_safetensors(target / file, infos, values())
        weight_map |= dict.fromkeys(infos, file)
    if len(shards) > 1:
        total = sum(info.bytes for info, _ in contents.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for name in (*CONFIG_FILES, *TOKENIZER_FILES):
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, target / name)
    (target / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def pruned_bytes(source: Checkpoint, plan: Plan, keep: int) -> int:
    """Bytes of all tensors if every layer keeps `keep` experts; nothing is read but headers."""
    return sum(info.bytes for info in _pruned_infos(source, plan, keep).values())


def parameters(source: Checkpoint, plan: Plan, keep: int, top_k: int) -> tuple[int, int]:
    """(parameters in total, parameters active per token) if every layer keeps `keep` experts.

    Active are all but those of the experts a token is not routed to; embeddings count as active.
    """
    total = active = 0.0
    for name, info in _pruned_infos(source, plan, keep).items():
        size = torch.Size(info.shape).numel()
        of_experts = name in plan.axes or plan.expert_of(name) is not None
        weight_or_bias = plan.is_expert_weight(name, info.shape) or (of_experts and ".experts." in name)
        total, active = total + size, active + (size * top_k / keep if weight_or_bias else size)
    return round(total), round(active)


def _pruned_infos(source: Checkpoint, plan: Plan, keep: int) -> dict[str, TensorInfo]:
    mask = Mask(base="", experts=plan.experts, kept=dict.fromkeys(plan.layers, tuple(range(keep))))
    return {name: info for name, (info, _) in _contents(source, plan, mask).items()}


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


def _contents(source: Checkpoint, plan: Plan, mask: Mask) -> Contents:
    """Every tensor of the pruned checkpoint: its name, what it will be, and how to read it."""
    contents: dict[str, tuple[TensorInfo, Callable[[], Tensor]]] = {}
    for name, info in source.tensors.items():
        layer = layer_of(name)
        kept = mask.kept.get(layer) if layer is not None else None
        expert = plan.expert_of(name)
        axis = plan.axes.get(name)
        if expert is not None and kept is not None:
            # Numbers from E on are identity experts (longcat_flash); they follow the routed ones.
            new = kept.index(expert) if expert in kept else expert - plan.experts + len(kept)
            if expert in kept or expert >= plan.experts:
                contents[renumbered(name, new)] = (info, partial(source.read, name))
        elif axis is not None and kept is not None:
            shape = list(info.shape)
            shape[axis.dimension] = axis.rows * len(kept) + axis.rest
            size = info.bytes // info.shape[axis.dimension] * shape[axis.dimension]
            sliced = replace(info, shape=tuple(shape), bytes=size)
            contents[name] = (sliced, _Sliced(source, name, axis, kept, plan.experts))
        elif ONE_EXPERT.search(name):
            raise BadInput(
                f"{source.folder / info.file}: {name} belongs to one expert, but transformers does not "
                "say how (a quantisation scale, a prediction layer): this checkpoint cannot be pruned"
            )
        else:
            contents[name] = (info, partial(source.read, name))
    return contents


def _shards(infos: dict[str, TensorInfo], shard_bytes: int) -> dict[str, dict[str, TensorInfo]]:
    """Deal tensors into files of at most `shard_bytes` each, in the order of the source.

    Within a file wide types come first, so that every tensor starts at a multiple of its own element's size.
    """
    parts: list[dict[str, TensorInfo]] = [{}]
    for name, info in infos.items():
        if parts[-1] and sum(other.bytes for other in parts[-1].values()) + info.bytes > shard_bytes:
            parts.append({})
        parts[-1][name] = info
    width = {name: info.bytes // max(torch.Size(info.shape).numel(), 1) for name, info in infos.items()}
    parts = [dict(sorted(part.items(), key=lambda item: (-width[item[0]], item[0]))) for part in parts]
    if len(parts) == 1:
        return {SINGLE: parts[0]}
    return {f"model-{i:05d}-of-{len(parts):05d}.safetensors": part for i, part in enumerate(parts, 1)}
