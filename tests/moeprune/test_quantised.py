"""Quantised checkpoints: pruned as they are, byte for byte, and scored by the numbers they stand for."""

import json
from collections.abc import Callable
from pathlib import Path

import packed
import pytest
import tiny
import torch
from quantised_kinds import BLOCKS, KINDS, matrices
from safetensors.torch import load_file, save_file
from torch import Tensor

from moeprune.checkpoint import Checkpoint, open_checkpoint
from moeprune.criteria import aimer
from moeprune.errors import BadInput
from moeprune.experts import LayerExperts
from moeprune.file_plan import read_file_plan
from moeprune.masks import Mask
from moeprune.models import load_model
from moeprune.quantised import unpacker
from moeprune.sizes import parameters, pruned_bytes
from moeprune.surgery import prune_checkpoint

TOLERANCE = 1e-5
KEPT = ((0, 1, 3, 4, 6, 7), (1, 2, 3, 4, 5, 6))
IDS = torch.stack(tiny.token_ids(24, 24))
every_kind = pytest.mark.parametrize("kind", KINDS)
loadable = pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.loads])


def mask_of(plan) -> Mask:
    return Mask("0" * 64, plan.experts, dict(zip(plan.layers, KEPT, strict=True)))


def pruned(folder: Path, target: Path) -> Checkpoint:
    source = open_checkpoint(folder)
    plan = read_file_plan(source)
    target.mkdir()
    prune_checkpoint(source, plan, mask_of(plan), target, 10**9)
    return open_checkpoint(target)


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@every_kind
def test_quantised_experts_are_pruned_byte_for_byte(kind, quantised, tmp_path):
    folder, expected = quantised(kind), {}
    after = load_file(pruned(folder, tmp_path / "pruned").folder / "model.safetensors")
    before, mask = load_file(folder / "model.safetensors"), mask_of(read_file_plan(open_checkpoint(folder)))
    for name, tensor in before.items():
        layer = int(name.split(".")[2]) if ".layers." in name else -1
        kept, place = mask.kept.get(layer, ()), name.partition(".experts.")[2].partition(".")[0]
        if place.isdigit() and kept:
            if int(place) in kept:
                expected[name.replace(f".experts.{place}.", f".experts.{kept.index(int(place))}.")] = raw(tensor)
        elif kept and tensor.dim() and len(tensor) == tiny.EXPERTS and ("mlp." in name or "moe." in name):
            expected[name] = b"".join(raw(tensor[expert]) for expert in kept)
        else:
            expected[name] = raw(tensor)
    assert {name: raw(tensor) for name, tensor in after.items()} == expected
    assert all(after[name].dtype == before[name].dtype for name in after if name in before)
    assert len(after) < len(before) or kind == "mxfp4"


@every_kind
def test_quantised_config_is_edited_in_the_expert_count_only(kind, quantised, tmp_path):
    before = json.loads((quantised(kind) / "config.json").read_text())
    after = json.loads((pruned(quantised(kind), tmp_path / "pruned").folder / "config.json").read_text())
    assert {key for key in before if before[key] != after[key]} <= {
        "num_local_experts",
        "num_experts",
        "n_routed_experts",
    }
    assert after["quantization_config"] == before["quantization_config"]


@loadable
def test_quantised_pruned_checkpoint_equals_the_masked_model(kind, quantised, tmp_path):
    folder = quantised(kind)
    whole = load_model(folder, "float32")
    found = tiny.logits(load_model(pruned(folder, tmp_path / "pruned").folder, "float32"), IDS)
    kept = mask_of(read_file_plan(open_checkpoint(folder))).kept
    assert float((found - tiny.masked_logits(whole, IDS, kept)).abs().max()) < TOLERANCE
    assert float((found - tiny.logits(whole, IDS)).abs().max()) > 1e-2, "pruning changed nothing"


@every_kind
def test_quantised_experts_score_as_what_they_stand_for(kind, quantised):
    checkpoint = open_checkpoint(quantised(kind))
    plan = read_file_plan(checkpoint)
    for layer in plan.layers:
        weights = [matrices(checkpoint.folder, KINDS[kind], layer, e) for e in range(tiny.EXPERTS)]
        assert {len(of_one) for of_one in weights} == {2 if kind == "mxfp4" else 3}
        found = aimer.score(LayerExperts(checkpoint, plan, layer))
        torch.testing.assert_close(found, aimer.score(weights), rtol=1e-6, atol=0)
        assert len(set(found.tolist())) == tiny.EXPERTS
        one = next(iter(LayerExperts(checkpoint, plan, layer)))
        for matrix, expected in zip(one, weights[0], strict=True):
            torch.testing.assert_close(matrix.T if kind == "mxfp4" else matrix, expected, check_dtype=False)


def test_quantised_experts_are_read_one_at_a_time(quantised, monkeypatch):
    checkpoint = open_checkpoint(quantised("fp8-blocks"))
    read, plan, names = Checkpoint.read, read_file_plan(checkpoint), []
    monkeypatch.setattr(Checkpoint, "read", lambda self, name: (names.append(name), read(self, name))[1])
    experts = iter(LayerExperts(checkpoint, plan, 1))
    for expert in range(2):
        next(experts)
        assert len(names) == 6 and all(f".experts.{expert}." in name for name in names)
        names.clear()


@every_kind
def test_quantised_parameters_are_those_of_the_model(kind, quantised):
    checkpoint = open_checkpoint(quantised(kind))
    plan, model = read_file_plan(checkpoint), tiny.new_model(KINDS[kind].family, **KINDS[kind].sizes)
    of_experts = sum(p.numel() for b in tiny.moe_blocks(model).values() for p in b.experts.parameters())
    total = sum(tensor.numel() for tensor in model.state_dict().values())
    active = total - of_experts * (tiny.EXPERTS - tiny.TOP_K) // tiny.EXPERTS
    assert parameters(checkpoint, plan, tiny.EXPERTS, tiny.TOP_K) == (total, active)


@every_kind
def test_quantised_bytes_are_told_beforehand(kind, quantised, tmp_path):
    checkpoint = open_checkpoint(quantised(kind))
    after = pruned(checkpoint.folder, tmp_path / "pruned")
    assert pruned_bytes(checkpoint, read_file_plan(checkpoint), 6) == after.weight_bytes


# ------------------------------------------------------------------------------------------- what cannot be read


def changed(folder: Path, target: Path, edit: Callable[[dict], None]) -> Checkpoint:
    """The checkpoint with another quantisation config, or without one."""
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    save_file(load_file(folder / "model.safetensors"), target / "model.safetensors", metadata={"format": "pt"})
    return open_checkpoint(target)


def test_unknown_quantisation_is_refused_for_scoring_and_pruned_all_the_same(quantised, tmp_path):
    edit = lambda config: config["quantization_config"].update(quant_method="spqr")  # noqa: E731
    checkpoint = changed(quantised("fp8-rows"), tmp_path / "odd", edit)
    plan = read_file_plan(checkpoint)
    with pytest.raises(BadInput, match="weights quantised by 'spqr' cannot be read"):
        next(iter(LayerExperts(checkpoint, plan, 0)))
    assert len(pruned(checkpoint.folder, tmp_path / "pruned").tensors) < len(checkpoint.tensors)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda config: config.pop("quantization_config"), "no quantization_config that says how"),
        (lambda config: config["quantization_config"].update(weight_block_size=[8, 16]), "not those of blocks of"),
        (lambda config: config["quantization_config"].update(quant_method="mxfp4"), "'_blocks'"),
    ],
    ids=["no-config", "other-blocks", "other-parts"],
)
def test_quantised_weights_that_their_config_does_not_explain_are_refused(edit, message, quantised, tmp_path):
    checkpoint = changed(quantised("fp8-blocks"), tmp_path / "odd", edit)
    with pytest.raises(BadInput, match=message):
        next(iter(LayerExperts(checkpoint, read_file_plan(checkpoint), 1)))


def test_quantised_module_of_no_group_is_refused(quantised, tmp_path):
    edit = lambda config: config["quantization_config"]["config_groups"]["group_0"].update(targets=["re:none"])  # noqa: E731
    checkpoint = changed(quantised("compressed-int4"), tmp_path / "odd", edit)
    with pytest.raises(BadInput, match=r"_proj\.weight is quantised, but no group"):
        next(iter(LayerExperts(checkpoint, read_file_plan(checkpoint), 0)))


def test_weight_left_unquantised_is_read_as_it_is():
    plain = torch.randn(4, 6).bfloat16()
    for config in (None, BLOCKS, KINDS["compressed-int4"].config):
        assert unpacker(config)("a.experts.0.up.weight", {"": plain}) is plain


def test_as_many_blocks_in_a_row_as_there_are_rows_are_read_as_blocks():
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 33)
    parts = packed.fp8_blocks(8, 8)("w", weight)
    assert parts["w_scale_inv"].shape == (1, 4)
    found = unpacker(BLOCKS | {"weight_block_size": [8, 8]})("w", {"": parts["w"], "_scale_inv": parts["w_scale_inv"]})
    assert torch.equal(found, packed.of_fp8(parts["w"], parts["w_scale_inv"], 8, 8))
    with pytest.raises(BadInput, match=r"scales of shape \[1, 4\]"):
        unpacker(BLOCKS | {"weight_block_size": None})("w", {"": parts["w"], "_scale_inv": parts["w_scale_inv"]})


def test_four_bits_in_bytes_with_exponents_are_read():
    # DeepSeek-V4 keeps experts so under the method of its 8-bit weights: two numbers a byte, an exponent for every 32.
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    blocks, exponents = packed.mxfp4(weight)
    for scale in (exponents, exponents.view(torch.float8_e8m0fnu)):
        parts = {"": blocks.flatten(1).view(torch.int8), ".scale": scale}
        found = unpacker(BLOCKS | {"weight_block_size": [128, 128]})("layers.0.ffn.experts.0.w1.weight", parts)
        assert torch.equal(found, packed.of_mxfp4(blocks, exponents))
