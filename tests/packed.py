"""Checkpoints quantised by plain loops, and what their numbers stand for by others: no library's quantiser is asked."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
"""The 16 numbers of 4 bits with two of exponent and one of mantissa (OCP Microscaling Formats 1.0)."""

State = dict[str, Tensor]
Quantiser = Callable[[str, Tensor], State]
"""(name of a weight [out, in], its values) -> the tensors stored instead of it."""


def quantise_file(
    folder: Path, is_quantised: Callable[[str], bool], quantise: Quantiser, config: dict[str, Any]
) -> None:
    """Replace weights in a folder's only shard, and say how in its config.json."""
    path = folder / "model.safetensors"
    state: State = {}
    for name, tensor in load_file(path).items():
        state |= quantise(name, tensor) if is_quantised(name) else {name: tensor}
    save_file(state, path, metadata={"format": "pt"})
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"quantization_config": config}))


# ------------------------------------------------------------------------------- 8 bits, a scale for each block


def fp8_blocks(rows: int, columns: int) -> Quantiser:
    """Blocks of `rows` x `columns`, those at the ends smaller, each divided by its largest size over 448."""

    def quantise(name: str, weight: Tensor) -> State:
        grid = [math.ceil(weight.shape[0] / rows), math.ceil(weight.shape[1] / columns)]
        packed, scales = torch.zeros(weight.shape, dtype=torch.float8_e4m3fn), torch.zeros(grid)
        for i in range(grid[0]):
            for j in range(grid[1]):
                here = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
                scales[i, j] = weight[here].abs().max() / 448
                packed[here] = (weight[here] / scales[i, j]).to(torch.float8_e4m3fn)
        return {name: packed, f"{name}_scale_inv": scales}

    return quantise


def fp8_rows(name: str, weight: Tensor) -> State:
    """A scale for each row."""
    scales = weight.abs().amax(1, keepdim=True) / 448
    return {name: (weight / scales).to(torch.float8_e4m3fn), f"{name}_scale": scales}


def fp8_whole(name: str, weight: Tensor) -> State:
    """One scale."""
    scale = weight.abs().max() / 448
    return {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}


def of_fp8(packed: Tensor, scales: Tensor, rows: int, columns: int) -> Tensor:
    """The numbers they stand for."""
    wide = packed.float()
    return torch.tensor(
        [
            [float(wide[i, j]) * float(scales[i // rows, j // columns]) for j in range(wide.shape[1])]
            for i in range(wide.shape[0])
        ]
    )


# --------------------------------------------------------------- 4 bits, an exponent for every 32 numbers in a row


def mxfp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(blocks [out, in / 32, 16], exponents [out, in / 32]) of a matrix [out, in]."""
    groups = weight.unflatten(1, (-1, 32))
    blocks = torch.zeros(*groups.shape[:2], 16, dtype=torch.uint8)
    exponents = torch.zeros(groups.shape[:2], dtype=torch.uint8)
    for i, row in enumerate(groups):
        for j, group in enumerate(row):
            exponent = math.floor(math.log2(float(group.abs().max()))) - 2  # the largest number, 6, is 1.5 times 2^2
            numbers = (group / 2**exponent).tolist()
            codes = [min(range(16), key=lambda code, number=number: abs(E2M1[code] - number)) for number in numbers]
            exponents[i, j] = exponent + 127
            for byte in range(16):
                blocks[i, j, byte] = codes[2 * byte] | codes[2 * byte + 1] << 4
    return blocks, exponents


def mxfp4_stacks(name: str, stack: Tensor) -> State:
    """What gpt_oss files hold of a stack [E, in, out]."""
    pairs = [mxfp4(matrix.T) for matrix in stack]
    blocks, exponents = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    return {f"{name}_blocks": blocks, f"{name}_scales": exponents}


def of_mxfp4(blocks: Tensor, exponents: Tensor) -> Tensor:
    """The matrix [out, in] they stand for."""
    rows = []
    for row, powers in zip(blocks.tolist(), exponents.tolist(), strict=True):
        rows.append(
            [
                E2M1[code] * 2.0 ** (power - 127)
                for group, power in zip(row, powers, strict=True)
                for byte in group
                for code in (byte & 15, byte >> 4)
            ]
        )
    return torch.tensor(rows)


# -------------------------------------------------------------------------- 4-bit integers, eight in a 32-bit one


def int4_groups(size: int) -> Quantiser:
    """Integers from -8 to 7, stored from 0 to 15, the first in the lowest bits; a scale for `size` in a row."""

    def quantise(name: str, weight: Tensor) -> State:
        scales = weight.unflatten(1, (-1, size)).abs().amax(2) / 7
        packed = torch.zeros(weight.shape[0], weight.shape[1] // 8, dtype=torch.int32)
        for i, row in enumerate(weight.tolist()):
            numbers = [round(value / float(scales[i, j // size])) + 8 for j, value in enumerate(row)]
            for word in range(packed.shape[1]):
                bits = sum(number << 4 * k for k, number in enumerate(numbers[8 * word : 8 * word + 8]))
                packed[i, word] = bits - (1 << 32 if bits >= 1 << 31 else 0)
        return {f"{name}_packed": packed, f"{name}_scale": scales, f"{name}_shape": torch.tensor(weight.shape)}

    return quantise


def of_int4(packed: Tensor, scales: Tensor, size: int) -> Tensor:
    """The numbers they stand for."""
    return torch.tensor(
        [
            [((row[j // 8] >> 4 * (j % 8) & 15) - 8) * float(scales[i, j // size]) for j in range(8 * len(row))]
            for i, row in enumerate(packed.tolist())
        ]
    )


# ----------------------------------------------- 4 bits, a scale of 8 bits for every 16 and one for the whole matrix


def nvfp4(name: str, weight: Tensor) -> State:
    """Two numbers a byte, the first in the lower bits. Scales are powers of two, so that nothing is rounded later."""
    whole = 4.0
    groups = weight.unflatten(1, (-1, 16))
    scales = torch.zeros(groups.shape[:2])
    packed = torch.zeros(weight.shape[0], weight.shape[1] // 2, dtype=torch.uint8)
    for i, row in enumerate(groups):
        for j, group in enumerate(row):
            scales[i, j] = 2.0 ** math.ceil(math.log2(float(group.abs().max()) / 6)) * whole
            numbers = (group / float(scales[i, j]) * whole).tolist()
            codes = [min(range(16), key=lambda code, number=number: abs(E2M1[code] - number)) for number in numbers]
            for byte in range(8):
                packed[i, 8 * j + byte] = codes[2 * byte] | codes[2 * byte + 1] << 4
    parts = {"packed": packed, "scale": scales.to(torch.float8_e4m3fn), "global_scale": torch.tensor([whole])}
    return {f"{name}_{part}": tensor for part, tensor in parts.items()}


def of_nvfp4(packed: Tensor, scales: Tensor, whole: Tensor) -> Tensor:
    """The numbers they stand for."""
    small = scales.float() / whole
    return torch.tensor(
        [
            [E2M1[byte >> 4 * half & 15] * float(small[i, j // 8]) for j, byte in enumerate(row) for half in (0, 1)]
            for i, row in enumerate(packed.tolist())
        ]
    )


def compressed(kind: dict[str, Any], form: str) -> dict[str, Any]:
    """A compressed-tensors config for the experts' projections."""
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": [r"re:.*mlp\.experts\..*"], "weights": kind}},
        "ignore": ["lm_head"],
    }
