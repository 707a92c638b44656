"""Checkpoints as files: safetensors shards read by their headers and verified; no model is built."""

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from moeprune.errors import BadInput

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG_FILES = ("config.json", "generation_config.json")
SMALL_FILES = (".json", ".jinja", ".model", ".spm", ".tiktoken", ".bpe", ".codes", ".txt", ".py")
"""What the names of files end with that models, tokenizers and processors of inputs are made from, beside weights."""
SMALL_BYTES = 100_000_000
"""Most bytes of one; the tokenizers of the largest vocabularies have some 35 MB."""

_OF_NO_MODEL = re.compile(
    r"""\.                                                  # hidden
    |.*\.index\.json$                                       # which weights lie where; that of our format is known
    |manifest\.json$                                        # how a store's result was made
    |(readme|licen[cs]e|copying|notice|changelog|model_?card|requirements|use_policy|third_party).*\.(txt|json)$
    """,
    re.IGNORECASE | re.VERBOSE,
)

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F4": torch.float4_e2m1fn_x2,  # two numbers a byte: torch's last dimension is half that of the file
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: its file, safetensors dtype, shape and bytes."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and safetensors weights. Make one with `open_checkpoint`, which verifies it."""

    folder: Path
    tensors: Mapping[str, TensorInfo]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The raw config.json."""
        return json.loads((self.folder / "config.json").read_text())

    @property
    def weight_files(self) -> list[str]:
        """Names of the shards, sorted."""
        return sorted({info.file for info in self.tensors.values()})

    @property
    def files(self) -> list[str]:
        """Names of the files that make up the checkpoint: `small_files`, weights and their index."""
        index = [INDEX] if (self.folder / INDEX).is_file() and SINGLE not in self.weight_files else []
        return sorted(self.weight_files + self.small_files + index)

    @property
    def small_files(self) -> list[str]:
        """Names of the files beside the weights, sorted: configs, tokenizer, processors, code. No documentation."""
        files = [path for path in self.folder.iterdir() if path.is_file()]
        return sorted(path.name for path in files if is_small_file(path.name, path.stat().st_size))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors, without headers."""
        return sum(info.bytes for info in self.tensors.values())

    def read(self, name: str) -> Tensor:
        """One tensor, mapped from its file."""
        with safe_open(self.folder / self.tensors[name].file, "pt") as file:
            return file.get_tensor(name)


def is_small_file(name: str, size: int) -> bool:
    """Whether a file of that path and size in bytes may decide how a model, its tokenizer or its processors work.

    It lies at the top of the folder. Weights, their index and documentation decide nothing or are looked at apart.
    """
    return "/" not in name and name.endswith(SMALL_FILES) and size <= SMALL_BYTES and not _OF_NO_MODEL.match(name)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's headers and verify that every shard is there and whole.

    Raises BadInput for a folder without config.json or safetensors, an index that is none, a shard it names that is not
    there, a truncated shard, or a tensor the index places in a shard that does not hold it.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise BadInput(f"download.source: no config.json in {folder}: give a folder that holds a checkpoint")
    if (folder / SINGLE).is_file():
        return Checkpoint(folder, _read_header(folder / SINGLE))
    if not (folder / INDEX).is_file():
        raise BadInput(
            f"download.source: neither {SINGLE} nor {INDEX} in {folder}: only safetensors checkpoints "
            "can be pruned; convert it with save_pretrained"
        )
    weight_map = read_index(folder / INDEX)
    shards = sorted(set(weight_map.values()))
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        raise BadInput(
            f"download.source: {folder / INDEX} names {missing[0]}, which is not there "
            f"({len(missing)} of {len(shards)} shards missing): download the checkpoint again"
        )
    tensors = {name: info for shard in shards for name, info in _read_header(folder / shard).items()}
    if absent := sorted(set(weight_map) - set(tensors)):
        raise BadInput(
            f"download.source: {folder / INDEX} names the tensor {absent[0]}, which no shard holds: "
            "download the checkpoint again"
        )
    return Checkpoint(folder, tensors)


def read_index(path: Path) -> dict[str, str]:
    """The shard of each tensor, by an index of weights; BadInput if the file is none."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no text
        raise BadInput(f"download.source: {path} cannot be read ({error}): download it again") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise BadInput(f"download.source: {path} names no shard for any tensor (weight_map): download it again")
    return weight_map


def _read_header(path: Path) -> dict[str, TensorInfo]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        (length,) = struct.unpack("<Q", start) if len(start) == 8 else (size,)
        try:
            if length + 8 > size:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
        except ValueError as error:
            raise BadInput(
                f"download.source: {path} is truncated or not a safetensors file ({error}): download it again"
            ) from error
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if 8 + length + end != size:
        raise BadInput(
            f"download.source: {path} has {size} bytes where its header says {8 + length + end}: download it again"
        )
    if unknown := [name for name, entry in header.items() if entry["dtype"] not in DTYPES]:
        raise BadInput(
            f"download.source: {path} holds {unknown[0]} as {header[unknown[0]]['dtype']}, a type that torch does not "
            "have: give a checkpoint in another precision"
        )
    return {
        name: TensorInfo(
            path.name, entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][1] - entry["data_offsets"][0]
        )
        for name, entry in header.items()
    }


def refuse_non_finite(path: Path) -> None:
    """Raise BadInput, naming the tensor, if a shard holds NaN or infinite weights."""
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            tensor = file.get_tensor(name)
            if tensor.is_floating_point() and not _is_finite(tensor):
                raise BadInput(
                    f"download.source: {path.name} holds NaN or infinite values in {name}: "
                    "such a model cannot be scored; check where it came from"
                )


def _is_finite(tensor: Tensor) -> bool:
    if tensor.dtype == torch.float4_e2m1fn_x2:  # can be nothing else, and cannot be added up
        return True
    # The sum of absolute values is one pass without a boolean copy of the tensor.
    wide = tensor.float() if tensor.element_size() == 1 else tensor
    return bool(wide.abs().sum(dtype=torch.float64).isfinite())
