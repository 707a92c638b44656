"""Published models at their real size and in the precision they are published in: headers of their files, made up.

Only names, types and shapes exist. What pruning leaves is held against bytes that are counted by hand.
"""

import json
from math import ceil
from pathlib import Path

import pytest

from moeprune.checkpoint import Checkpoint, TensorInfo
from moeprune.configs import quantisation, read_config
from moeprune.file_plan import read_file_plan
from moeprune.inspection import written
from moeprune.meta import meta_model
from moeprune.sizes import parameters, pruned_bytes

GEOMETRIES = Path(__file__).parents[1] / "geometries"
BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}


def info(dtype: str, *shape: int) -> TensorInfo:
    size = BYTES[dtype]
    for length in shape:
        size *= length
    return TensorInfo("model.safetensors", dtype, shape, size)


def fp8(name: str, plain: TensorInfo) -> dict[str, TensorInfo]:
    """As DeepSeek-V3 is: linear layers but the head and the routers in 8 bits, with a float for each 128 x 128."""
    linear = len(plain.shape) == 2 and not name.endswith(("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight"))
    if not linear:
        return {name: plain}
    rows, columns = plain.shape
    scales = info("F32", ceil(rows / 128), ceil(columns / 128))
    return {name: info("F8_E4M3", rows, columns), f"{name}_scale_inv": scales}


def mxfp4(name: str, plain: TensorInfo) -> dict[str, TensorInfo]:
    """As gpt-oss is: stacks of experts in 4 bits with an exponent for each 32 inputs, all else in bfloat16."""
    if not name.endswith(("gate_up_proj", "down_proj")):
        return {name: info("BF16", *plain.shape)}
    experts, inputs, outputs = plain.shape
    blocks = info("U8", experts, outputs, inputs // 32, 16)
    return {f"{name}_blocks": blocks, f"{name}_scales": info("U8", experts, outputs, inputs // 32)}


def published(name: str, folder: Path) -> Checkpoint:
    (folder / "config.json").write_bytes((GEOMETRIES / f"{name}.json").read_bytes())
    method = quantisation(json.loads((folder / "config.json").read_text()))["quant_method"]
    tensors: dict[str, TensorInfo] = {}
    for tensor, plain in written(meta_model(read_config(folder))).items():
        tensors |= {"fp8": fp8, "mxfp4": mxfp4}[method](tensor, plain)
    return Checkpoint(folder, tensors)


@pytest.mark.parametrize(
    ("name", "layers", "experts", "total", "expert", "row", "expert_bytes", "row_bytes"),
    [
        # 5760 x 2880 and 2880 x 2880 numbers, 17 bytes for 32; biases of both, and the router's row and its bias.
        (
            "gpt-oss-20b",
            24,
            32,
            20_914_757_184,
            3 * 2880**2 + 3 * 2880,
            2880 + 1,
            3 * 2880**2 // 32 * 17 + 2 * 3 * 2880,
            2 * (2880 + 1),
        ),
        # 3 x 2048 x 7168 numbers and 16 x 56 scales for each of the three; the router's row and its float32 bias.
        (
            "DeepSeek-V3",
            58,
            256,
            671_026_419_200,
            3 * 2048 * 7168,
            7168 + 1,
            3 * (2048 * 7168 + 4 * 16 * 56),
            2 * 7168 + 4,
        ),
    ],
    ids=["mxfp4", "fp8"],
)
def test_quantised_geometry_pruned_loses_packed_experts_their_scales_and_router_rows_and_nothing_else(
    name, layers, experts, total, expert, row, expert_bytes, row_bytes, tmp_path
):
    files = published(name, tmp_path)
    plan, keep = read_file_plan(files), experts * 3 // 4
    assert parameters(files, plan, experts, 4)[0] == total
    gone = layers * (experts - keep)
    assert pruned_bytes(files, plan, keep) == files.weight_bytes - gone * (expert_bytes + row_bytes)
    assert parameters(files, plan, keep, 4)[0] == total - gone * (expert + row)


def test_gpt_oss_headers_are_as_many_bytes_as_its_published_checkpoint(tmp_path):
    # arXiv:2508.10925, table 1: 12.8 GiB.
    assert round(published("gpt-oss-20b", tmp_path).weight_bytes / 2**30, 1) == 12.8
