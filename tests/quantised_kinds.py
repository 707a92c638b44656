"""Tiny checkpoints quantised in every way that is understood."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import packed
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "modules_to_not_convert": ["attn", "shared", "0.mlp"]}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
FP4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}


@dataclass(frozen=True)
class Kind:
    """A family quantised in some way; `read` gives the numbers that parts of a weight stand for, by a slow loop.

    `loads` tells whether transformers can load it on a CPU.
    """

    family: str
    quantise: packed.Quantiser
    config: dict[str, Any]
    parts: tuple[str, ...]
    read: Callable[..., Tensor]
    loads: bool = True
    sizes: dict[str, int] = field(default_factory=dict)


KINDS = {
    "fp8-blocks": Kind(
        "deepseek_v3",
        packed.fp8_blocks(16, 16),
        BLOCKS | {"weight_block_size": [16, 16]},
        ("", "_scale_inv"),
        lambda weight, scale: packed.of_fp8(weight, scale, 16, 16),
    ),
    "fp8-blocks-cut-at-the-ends": Kind(
        "deepseek_v3",
        packed.fp8_blocks(12, 20),
        BLOCKS | {"weight_block_size": [12, 20]},
        ("", "_scale_inv"),
        lambda weight, scale: packed.of_fp8(weight, scale, 12, 20),
        loads=False,
    ),
    "fp8-whole": Kind(
        "qwen3_moe",
        packed.fp8_whole,
        BLOCKS | {"weight_block_size": None},
        ("", "_scale_inv"),
        lambda weight, scale: packed.of_fp8(weight, scale[None, None], 99, 99),
    ),
    "fp8-rows": Kind(
        "mixtral",
        packed.fp8_rows,
        {"quant_method": "fbgemm_fp8"},
        ("", "_scale"),
        lambda weight, scale: packed.of_fp8(weight, scale, 1, 99),
        loads=False,
    ),
    "mxfp4": Kind(
        "gpt_oss",
        packed.mxfp4_stacks,
        {"quant_method": "mxfp4"},
        ("_blocks", "_scales"),
        packed.of_mxfp4,
        sizes={"intermediate_size": 32},
    ),
    "compressed-int4": Kind(
        "qwen3_moe",
        packed.int4_groups(16),
        packed.compressed(INT4, "pack-quantized"),
        ("_packed", "_scale"),
        lambda numbers, scale: packed.of_int4(numbers, scale, 16),
    ),
    "compressed-fp8": Kind(
        "qwen3_moe",
        packed.fp8_rows,
        packed.compressed(FP8, "float-quantized"),
        ("", "_scale"),
        lambda weight, scale: packed.of_fp8(weight, scale, 1, 99),
    ),
    "compressed-nvfp4": Kind(
        "qwen3_moe",
        packed.nvfp4,
        packed.compressed(FP4, "nvfp4-pack-quantized"),
        ("_packed", "_scale", "_global_scale"),
        packed.of_nvfp4,
        loads=False,
    ),
}


def is_quantised(name: str) -> bool:
    """Whether a tensor of a stock checkpoint is one that the kinds quantise."""
    return ".experts." in name and "bias" not in name


def write(name: str, folder: Path, stored: torch.dtype = torch.float32, **sizes: Any) -> Path:
    """The quantised checkpoint of a kind in a folder, what is not quantised in the dtype `stored`."""
    kind = KINDS[name]
    tiny.new_model(kind.family, **kind.sizes | sizes).to(stored).save_pretrained(folder)
    packed.quantise_file(folder, is_quantised, lambda name, weight: kind.quantise(name, weight.float()), kind.config)
    return folder


def matrices(folder: Path, kind: Kind, layer: int, expert: int) -> list[Tensor]:
    """The matrices of an expert in the order of their names, by the slow loops."""
    state = load_file(folder / "model.safetensors")
    found = []
    for name in sorted(state):
        stem = name.removesuffix(kind.parts[0])
        whole = name.startswith(f"model.layers.{layer}.") and name.endswith(kind.parts[0])
        if not (whole and is_quantised(stem) and all(stem + part in state for part in kind.parts)):
            continue
        tensors = [state[stem + part] for part in kind.parts]
        if f".experts.{expert}." in name:
            found.append(kind.read(*tensors))
        elif kind.family == "gpt_oss":
            found.append(kind.read(*(tensor[expert] for tensor in tensors)))
    return found
