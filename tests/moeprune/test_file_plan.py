"""What files hold against what the library would write: explained, dropped knowingly, or refused by name."""

import json
import re
import shutil
from pathlib import Path

import families
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moeprune.checkpoint import open_checkpoint
from moeprune.errors import BadInput
from moeprune.file_plan import read_file_plan
from moeprune.masks import Mask
from moeprune.schema import Axis, Plan
from moeprune.surgery import prune_checkpoint

EXPERTS = tiny.EXPERTS
IDS = torch.stack(tiny.token_ids(24, 24))
KEPT = (0, 2, 3, 5, 6, 7)
State = dict[str, Tensor]


def plan_of(folder: Path) -> Plan:
    return read_file_plan(open_checkpoint(folder))


def altered(source: Path, target: Path, add: State | None = None, without: str = "$^", **config: object) -> Path:
    """A copy of a checkpoint with tensors added or replaced, those that match a pattern left out, config values set."""
    shutil.copytree(source, target)
    state = load_file(target / "model.safetensors")
    state = {name: tensor for name, tensor in state.items() if not re.search(without, name)} | (add or {})
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(content | config))
    return target


def prune(folder: Path, target: Path, kept: tuple[int, ...] = KEPT) -> State:
    target.mkdir()
    plan = plan_of(folder)
    mask = Mask("0" * 64, plan.experts, dict.fromkeys(plan.layers, kept))
    prune_checkpoint(open_checkpoint(folder), plan, mask, target, 10**9)
    return load_file(target / "model.safetensors")


def numbered(tensors: int, *shape: int) -> list[Tensor]:
    """Tensors of which no two hold the same numbers."""
    return [torch.full(shape, float(number)) for number in range(tensors)]


# ------------------------------------------------------------------------------------------------ what must fit


def test_tensor_of_another_shape_than_the_config_gives_it_is_refused_with_both(saved, tmp_path):
    name = "model.layers.1.mlp.gate.weight"
    folder = altered(saved("olmoe"), tmp_path / "odd", {name: torch.ones(EXPERTS + 1, tiny.HIDDEN)})
    with pytest.raises(BadInput, match=rf"{name} of shape \[9, 32\], by its config it has \[8, 32\]"):
        plan_of(folder)


def test_tensor_outside_the_experts_of_another_shape_is_refused(saved, tmp_path):
    folder = altered(saved("olmoe"), tmp_path / "odd", {"model.norm.weight": torch.ones(31)})
    with pytest.raises(BadInput, match=r"model\.norm\.weight of shape \[31\]"):
        plan_of(folder)


def test_more_experts_than_the_config_says_are_refused(saved, tmp_path):
    name = "model.layers.0.mlp.experts.8.up_proj.weight"
    folder = altered(saved("olmoe"), tmp_path / "odd", {name: torch.ones(24, 32)})
    with pytest.raises(BadInput, match=rf"{name}, but by its config it has 8 experts"):
        plan_of(folder)


@pytest.mark.parametrize(
    ("without", "told"),
    [
        (r"layers\.1\.mlp\.experts\.[56]\.up", r"layers\.1\.mlp\.experts\.5\.up_proj\.weight in layer 1.* 2 of 8"),
        (r"layers\.0\.mlp\.experts", "the weights of experts in layer 0.* 8 of 8"),
    ],
    ids=["some", "a-layer"],
)
def test_missing_experts_are_refused(without, told, saved, tmp_path):
    with pytest.raises(BadInput, match=told):
        plan_of(altered(saved("olmoe"), tmp_path / "odd", without=without))


# ------------------------------------------------------------------------------------- what lies beside weights


@pytest.mark.parametrize("part", ["weight_scale_inv", "input_scale", "weight_packed", "weight.absmax", "zeros.of.any"])
def test_what_lies_in_the_module_of_one_expert_goes_with_it(part, saved, tmp_path):
    names = [f"model.layers.1.mlp.experts.{expert}.up_proj.{part}" for expert in range(EXPERTS)]
    folder = altered(saved("qwen3_moe"), tmp_path / "more", dict(zip(names, numbered(EXPERTS, 2, 1), strict=True)))
    pruned = prune(folder, tmp_path / "pruned")
    assert [int(pruned[name][0]) for name in names if name in pruned] == list(KEPT)
    assert set(names) & pruned.keys() == set(names[: len(KEPT)])


def test_what_lies_beside_a_stack_is_sliced_like_it_or_shared(saved, tmp_path):
    stack = "model.layers.1.mlp.experts.gate_up_proj"
    add = {
        f"{stack}_blocks": torch.arange(EXPERTS * 6).reshape(EXPERTS, 2, 3),
        f"{stack}_scales": torch.stack(numbered(EXPERTS, 5)),
        f"{stack}_input_scale": torch.tensor(3.0),
        f"{stack}_output_scale": torch.tensor([[[4.0]]]),
    }
    folder = altered(saved("gpt_oss"), tmp_path / "more", add, without=rf"^{stack}$")
    plan = plan_of(folder)
    assert {name: plan.axes.get(name) for name in add} == dict.fromkeys(list(add)[:2], Axis(0, 1, 0)) | dict.fromkeys(
        list(add)[2:]
    )
    pruned = prune(folder, tmp_path / "pruned")
    for name in list(add)[:2]:
        assert torch.equal(pruned[name], torch.stack([add[name][expert] for expert in KEPT]))
    for name in list(add)[2:]:
        assert torch.equal(pruned[name], add[name])


@pytest.mark.parametrize("shape", [(2,), (4, EXPERTS)], ids=["other-rows", "experts-elsewhere"])
def test_what_lies_beside_a_stack_in_rows_that_nobody_knows_is_refused(shape, saved, tmp_path):
    name = "model.layers.1.mlp.experts.gate_up_proj_shapes"
    with pytest.raises(BadInput, match=rf"{name} of shape .* which rows of it belong to which expert"):
        plan_of(altered(saved("gpt_oss"), tmp_path / "odd", {name: torch.ones(shape)}))


def test_what_lies_beside_other_weights_is_copied_whatever_its_shape(saved, tmp_path):
    add = {
        "model.layers.1.mlp.shared_experts.gate_proj.weight_scale_inv": torch.ones(EXPERTS, 1),
        "model.layers.1.mlp.shared_experts.up_proj.input_scale": torch.ones(EXPERTS),
        "model.layers.1.self_attn.o_proj.weight_scale_inv": torch.ones(EXPERTS),
    }
    pruned = prune(altered(saved("deepseek_v3"), tmp_path / "more", add), tmp_path / "pruned", (0, 1, 2, 4, 5, 6))
    assert all(torch.equal(pruned[name], tensor) for name, tensor in add.items())


# ---------------------------------------------------------------------------------------------- what is not known


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mtp.layers.0.mlp.experts.0.up_proj.weight", (4, 4)),
        ("model.layers.1.mlp.experts.3.act.scale", (1,)),
        ("model.layers.7.mlp.experts.3.up_proj.weight", (4, 4)),
        ("model.layers.1.mlp.extra_bias", (EXPERTS,)),
        ("model.layers.1.mlp.gate.e_score_correction_bias", (1, EXPERTS)),
    ],
)
def test_tensor_of_experts_that_nothing_explains_is_refused_by_name(name, shape, saved, tmp_path):
    with pytest.raises(BadInput, match=f"{name}, which .* transformers does not say how"):
        plan_of(altered(saved("qwen3_moe"), tmp_path / "odd", {name: torch.ones(shape)}))


@pytest.mark.parametrize("name", ["model.layers.1.mlp.extra", "model.extra", "model.layers.1.self_attn.extra"])
def test_tensor_that_has_nothing_to_do_with_experts_is_copied(name, saved, tmp_path):
    tensor = torch.arange(7.0) if ".mlp." in name else torch.arange(float(EXPERTS))
    folder = altered(saved("qwen3_moe"), tmp_path / "more", {name: tensor})
    assert torch.equal(prune(folder, tmp_path / "pruned")[name], tensor)


# ------------------------------------------------------------------------------------------- prediction heads


def head(prefix: str, experts: bool) -> State:
    inner = [f"mlp.experts.{expert}.up_proj.weight" for expert in range(EXPERTS)] if experts else ["mlp.up_proj.weight"]
    return {prefix + name: torch.ones(16, 32) for name in [*inner, "eh_proj.weight"]}


@pytest.mark.parametrize(
    ("family", "prefix", "count"),
    [
        ("deepseek_v3", "model.layers.61.", "num_nextn_predict_layers"),
        ("deepseek_v3", "model.layers.61.", "num_mtp_layers"),
        ("deepseek_v3", "model.layers.3.", "num_nextn_predict_layers"),  # the layer after the last of a tiny model
        ("exaone_moe", "mtp.layers.0.", "mtp_num_hidden_layers"),
    ],
)
def test_head_with_experts_is_dropped_and_counted_no_more(family, prefix, count, tmp_path):
    families.tiny_model(family).save_pretrained(tmp_path / "whole")
    drop, keys = head(prefix, experts=True), ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
    folder = altered(tmp_path / "whole", tmp_path / "more", drop)
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in keys} | {count: 1}
    (folder / "config.json").write_text(json.dumps(config))
    assert plan_of(folder).dropped == drop.keys()
    pruned = prune(folder, tmp_path / "pruned", (0, 1, 2, 4, 5, 6))
    assert not drop.keys() & pruned.keys() and pruned.keys() <= load_file(folder / "model.safetensors").keys()
    after = json.loads((tmp_path / "pruned/config.json").read_text())
    assert after[count] == 0 and after.keys() == config.keys()
    tiny.load(tmp_path / "pruned")


def test_head_without_experts_is_copied_and_still_counted(saved, tmp_path):
    add = head("model.layers.61.", experts=False)
    folder = altered(saved("deepseek_v3"), tmp_path / "more", add, num_nextn_predict_layers=1)
    assert not plan_of(folder).dropped
    pruned = prune(folder, tmp_path / "pruned", (0, 1, 2, 4, 5, 6))
    assert all(torch.equal(pruned[name], tensor) for name, tensor in add.items())
    assert json.loads((tmp_path / "pruned/config.json").read_text())["num_nextn_predict_layers"] == 1


@pytest.mark.parametrize("name", ["mlp.gate.weight", "moe.experts.w13"], ids=["router", "stack"])
def test_head_with_stacked_experts_is_known_by_its_router_or_its_stack(name, saved, tmp_path):
    add = {f"model.layers.61.{name}": torch.ones(EXPERTS, 32), "model.layers.61.enorm.weight": torch.ones(32)}
    assert plan_of(altered(saved("deepseek_v3"), tmp_path / "more", add)).dropped == add.keys()


# ------------------------------------------------------------------------------------------------- other names


def renamed(source: Path, target: Path, add: State | None = None) -> Path:
    """A copy whose names lack their "model.", as those of a model without its head, or of DeepSeek-V4, do."""
    state = load_file(source / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    return altered(source, target, bare | (add or {}), without=".")


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v4", "deepseek_v3"])
def test_names_that_the_library_only_reads_are_planned_like_those_it_writes(family, tmp_path):
    families.tiny_model(family).save_pretrained(tmp_path / "whole")
    bare = renamed(tmp_path / "whole", tmp_path / "bare")
    kept = (0, 1, 2, 4, 5, 6)
    expected, found = prune(tmp_path / "whole", tmp_path / "a", kept), prune(bare, tmp_path / "b", kept)
    assert found.keys() == {name.removeprefix("model.") for name in expected}
    assert all(torch.equal(found[name.removeprefix("model.")], tensor) for name, tensor in expected.items())
    assert torch.equal(tiny.logits(tiny.load(tmp_path / "a"), IDS), tiny.logits(tiny.load(tmp_path / "b"), IDS))


def test_number_beyond_the_experts_under_other_names_is_refused(saved, tmp_path):
    name = "layers.0.block_sparse_moe.experts.8.w1.weight"
    with pytest.raises(BadInput, match=f"{name}, but by its config it has 8 experts"):
        plan_of(renamed(saved("mixtral"), tmp_path / "odd", {name: torch.ones(24, 32)}))


# ------------------------------------------------------------------------------------- quantisation configs, tables


@pytest.mark.parametrize(
    "config",
    [
        {"ignore": ["lm_head", "model.layers.1.mlp.experts.3.down_proj"]},
        {"modules_to_not_convert": ["model.layers.0.mlp.experts.12"]},
        {"config_groups": {"a": {"targets": [r"re:.*experts\.3\..*"]}}},
        {"dynamic": {r"-:.*experts\.3\..*": {}}},
    ],
)
def test_quantisation_config_that_names_an_expert_by_number_is_refused(config, saved, tmp_path):
    with pytest.raises(BadInput, match="an expert by its number"):
        plan_of(altered(saved("olmoe"), tmp_path / "odd", quantization_config={"quant_method": "fp8"} | config))


def test_quantisation_config_that_names_layers_and_all_experts_is_none_of_its_business(saved, tmp_path):
    config = {"quant_method": "x", "ignore": ["model.layers.1.mlp.gate", r"re:.*mlp\.experts\..*", "shared_experts.1"]}
    assert plan_of(altered(saved("olmoe"), tmp_path / "fine", quantization_config=config)).layers == [0, 1]


def test_table_of_expert_numbers_is_found_by_its_kind(tmp_path):
    families.tiny_model("deepseek_v4").save_pretrained(tmp_path / "v4")
    plan = plan_of(tmp_path / "v4")
    assert plan.tables == {f"model.layers.0.{block}.gate.tid2eid" for block in ("mlp", "ffn")}
