"""Expert matrices as numbers, whatever the files pack them in: one expert's tensors at a time, so memory stays small.

Only scoring by weights needs this: pruning carries the packed tensors along as they are.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moeprune.errors import BadInput

Parts = Mapping[str, Tensor]
"""Tensors of one matrix by what their names add to that of the weight: "" is the weight, "_scale" its scale."""

Unpack = Callable[[str, Parts], Float[Tensor, "out in"]]
"""(name of the weight, its parts) -> the matrix."""

FP4_BLOCK = 32
PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def unpacker(config: Mapping[str, Any] | None) -> Unpack:
    """How to read the matrices of a checkpoint with this `quantization_config`, or with none.

    Weights that are plain numbers are given as they are, whatever the config says: some modules are left unquantised.
    Raises BadInput for a method that is not known, and, when called, for parts that it does not explain.
    """
    if config is None:
        return partial(_unpack, None)
    method = str(config.get("quant_method"))
    methods: dict[str, Callable[[Mapping[str, Any]], Unpack]] = {
        "fp8": _of_blocks,
        "fbgemm_fp8": _of_blocks,
        "mxfp4": lambda _: _mxfp4,
        "compressed-tensors": _of_compressed_tensors,
    }
    if method not in methods:
        raise BadInput(
            f"download.source: weights quantised by '{method}' cannot be read ({', '.join(methods)} can): choose a "
            "criterion that reads statistics, or an unquantised checkpoint"
        )
    return partial(_unpack, methods[method](config))


def _unpack(quantised: Unpack | None, name: str, parts: Parts) -> Tensor:
    plain = parts.get("")
    if plain is not None and plain.dtype in PLAIN:
        return plain
    if quantised is None:
        raise BadInput(
            f"download.source: {name} is quantised, but config.json has no quantization_config that says how: "
            "download it again"
        )
    return quantised(name, parts)


def _part(name: str, parts: Parts, *suffixes: str) -> Tensor:
    for suffix in suffixes:
        if suffix in parts:
            return parts[suffix]
    raise BadInput(
        f"download.source: {name} is quantised, but of what it should be made of, {' or '.join(map(repr, suffixes))}, "
        f"the files hold only {sorted(parts)}: download it again"
    )


def _of_blocks(config: Mapping[str, Any]) -> Unpack:
    """8-bit numbers times a scale: of the tensor, of each row, or of blocks of `weight_block_size`, the last ones cut.

    4-bit numbers, two in a byte, have a scale for every 32 in a row.
    """
    block = config.get("weight_block_size")

    def unpack(name: str, parts: Parts) -> Tensor:
        weight = _part(name, parts, "")
        scale = _scales(_part(name, parts, "_scale_inv", "_scale", ".scale"))
        if weight.dtype.itemsize == 1 and not weight.dtype.is_floating_point:
            return _halves(weight.view(torch.uint8)) * scale.repeat_interleave(FP4_BLOCK, dim=1)
        rows, columns = weight.shape
        if block and scale.shape == (math.ceil(rows / block[0]), math.ceil(columns / block[1])):
            wide = scale.repeat_interleave(block[0], dim=0)[:rows].repeat_interleave(block[1], dim=1)[:, :columns]
            return weight.float() * wide
        if scale.numel() == 1 or scale.shape in ((rows,), (rows, 1)):
            return weight.float() * scale.reshape(-1, 1)
        raise BadInput(
            f"download.source: {name} of shape {list(weight.shape)} has scales of shape {list(scale.shape)}, which "
            f"are not those of blocks of {block}: mend weight_block_size in config.json"
        )

    return unpack


def _scales(scale: Tensor) -> Tensor:
    """Scales as float32; bytes hold the exponents of powers of two (E8M0)."""
    return torch.exp2(scale.float() - 127) if scale.dtype == torch.uint8 else scale.float()


def _halves(packed: Tensor) -> Tensor:
    """The 4-bit numbers (E2M1) in bytes, the lower half of each byte first."""
    from transformers.integrations.mxfp4 import FP4_VALUES

    values = torch.tensor(FP4_VALUES, device=packed.device)
    return values[torch.stack([packed & 15, packed >> 4], dim=-1).long()].flatten(-2)


def _mxfp4(name: str, parts: Parts) -> Tensor:
    """4-bit numbers in blocks of 32 with an exponent each (gpt_oss); as in memory, inputs come first."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = _part(name, parts, "_blocks"), _part(name, parts, "_scales")
    return convert_moe_packed_tensors(blocks[None], scales[None], dtype=torch.float32)[0]


def _of_compressed_tensors(config: Mapping[str, Any]) -> Unpack:
    """What the library of that name reads: the scheme whose targets name the module tells the format."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils import is_match

    own = {key: value for key, value in config.items() if key in QuantizationConfig.model_fields}
    found = QuantizationConfig.model_validate(own)
    schemes: list[Any] = list(found.config_groups.values())
    linear = torch.nn.Linear(1, 1, device="meta")  # targets may name the class of a module

    def unpack(name: str, parts: Parts) -> Tensor:
        path, _, leaf = name.rpartition(".")
        scheme = next((one for one in schemes if is_match(path, linear, one.targets, found.ignore or [])), None)
        if scheme is None:
            raise BadInput(
                f"download.source: {name} is quantised, but no group of config.json's quantization_config is for it"
            )
        compressor: Any = BaseCompressor.get_value_from_registry(scheme.format or found.format)
        return compressor.decompress({leaf + suffix: tensor for suffix, tensor in parts.items()}, scheme)["weight"]

    return unpack
