"""Writing checkpoints: tensors stream into new shards, holding one at a time.

`write_checkpoint` is how every changed checkpoint is written.
"""

import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moeprune.checkpoint import DTYPES, INDEX, SINGLE, Checkpoint, TensorInfo

Contents = Mapping[str, tuple[TensorInfo, Callable[[], Tensor]]]
"""Tensors to write: by name, what each will be and how to read it."""


def write_checkpoint(
    source: Checkpoint,
    contents: Contents,
    config: dict[str, Any],
    target: Path,
    shard_bytes: int,
    progress: Callable[[int], None] = lambda written: None,
) -> None:
    """Write to the folder `target` a stock checkpoint with these tensors and this config.json.

    What else makes up the source (tokenizer, code of its own) is copied from it. `contents` are read one at a time, in
    the order in which they are written; `progress` is told the bytes of each. Raises ValueError if a tensor read is not
    of the shape and dtype its TensorInfo promised.
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
    for name in source.small_files:
        shutil.copyfile(source.folder / name, target / name)
    (target / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


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


def write_safetensors(path: Path, tensors: Mapping[str, TensorInfo], values: Iterator[Tensor]) -> None:
    """Write tensors one after another, holding one at a time; `values` come in the order of `tensors`.

    The library's `save_file` would hold a whole shard in memory.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, info in tensors.items():
        header[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [offset, offset + info.bytes]}
        offset += info.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for (name, info), value in zip(tensors.items(), values, strict=True):
            if _shape_in_file(value) != info.shape or value.dtype != DTYPES[info.dtype]:
                raise ValueError(f"{name} became {tuple(value.shape)} {value.dtype}, planned was {info}")
            value.contiguous().reshape(-1).view(torch.uint8).numpy().tofile(file)


def _shape_in_file(tensor: Tensor) -> tuple[int, ...]:
    *outer, last = tensor.shape or (1,)
    return (*outer, 2 * last) if tensor.dtype == torch.float4_e2m1fn_x2 else tuple(tensor.shape)
