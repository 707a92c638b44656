"""Which tensors belong to which expert, and what a router demands, by reading configs alone."""

import json

import pytest
import tiny
from transformers import AutoConfig, LlamaConfig

from moeprune.checkpoint import open_checkpoint
from moeprune.configs import edited_config, read_config, read_routing, with_expert_count, without_heads
from moeprune.errors import BadInput
from moeprune.routing import Routing
from moeprune.schema import Axis, layer_of, read_plan

EXPECTED_AXES = {
    "mixtral": {"mlp.gate.weight": Axis(0, 1, 0), "mlp.experts.down_proj": Axis(0, 1, 0)},
    "deepseek_v3": {"mlp.gate.e_score_correction_bias": Axis(0, 1, 0), "mlp.gate.weight": Axis(0, 1, 0)},
    "gpt_oss": {
        "mlp.router.bias": Axis(0, 1, 0),
        "mlp.router.weight": Axis(0, 1, 0),
        "mlp.experts.gate_up_proj": Axis(0, 1, 0),
        "mlp.experts.down_proj_bias": Axis(0, 1, 0),
    },
}


@pytest.mark.parametrize("family", EXPECTED_AXES)
def test_plan_finds_routers_biases_and_stacks(family):
    plan = read_plan(tiny.shared_model(family).config)
    for name, axis in EXPECTED_AXES[family].items():
        assert plan.axes[f"model.layers.1.{name}"] == axis
    assert not any("shared" in name or "attn" in name or "norm" in name for name in plan.axes)
    assert "lm_head.weight" not in plan.axes


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_plan_every_written_tensor_of_an_expert_is_known(family, tmp_path):
    model = tiny.shared_model(family)
    model.save_pretrained(tmp_path)
    plan = read_plan(read_config(tmp_path))
    assert plan.layers == list(tiny.moe_blocks(model))
    tensors = open_checkpoint(tmp_path).tensors
    weights = {name: info for name, info in tensors.items() if plan.is_expert_weight(name, info.shape)}
    stacked = sum(p.numel() for b in tiny.moe_blocks(model).values() for p in b.experts.parameters() if p.dim() == 3)
    assert sum(info.bytes for info in weights.values()) == 4 * stacked
    assert not any("shared" in name or "gate.weight" in name or "bias" in name for name in weights)


def test_plan_leaves_the_config_as_it_was():
    config = tiny.shared_model("olmoe").config
    before = config.to_json_string()
    read_plan(config)
    with_expert_count(config, 3)
    assert config.to_json_string() == before


@pytest.mark.parametrize(
    ("family", "routing"),
    [
        ("olmoe", Routing(8, 2)),
        ("mixtral", Routing(8, 2)),
        ("qwen2_moe", Routing(8, 2)),
        ("qwen3_moe", Routing(8, 2)),
        ("gpt_oss", Routing(8, 2)),
        ("deepseek_v3", Routing(8, 2, groups=2, top_groups=1, ranked_by=2)),
    ],
)
def test_routing_is_read_from_the_config(family, routing):
    assert read_routing(tiny.shared_model(family).config) == routing


@pytest.mark.parametrize(
    ("model_type", "values", "routing"),
    [
        ("deepseek_v2", {"n_group": 4, "topk_group": 2, "topk_method": "greedy"}, Routing(8, 2)),
        ("deepseek_v2", {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"}, Routing(8, 2, 4, 2)),
        ("ernie4_5_moe", {"moe_num_experts": 8, "moe_k": 2}, Routing(8, 2)),
        ("dbrx", {"ffn_config": {"moe_num_experts": 8, "moe_top_k": 2}}, Routing(8, 2)),
    ],
    ids=["groups-ignored", "groups", "other-names", "nested"],
)
def test_routing_of_other_families(model_type, values, routing):
    common = {"n_routed_experts": 8, "num_experts_per_tok": 2} if model_type == "deepseek_v2" else {}
    assert read_routing(AutoConfig.for_model(model_type, **common, **values)) == routing


def test_model_without_experts_is_refused_by_its_type():
    with pytest.raises(BadInput, match="'llama' is not a Mixture-of-Experts"):
        read_routing(LlamaConfig())


def test_config_of_no_known_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_family"}))
    with pytest.raises(BadInput, match=r"config\.json is not a model transformers can load"):
        read_config(tmp_path)


def test_edited_config_sets_every_alias_and_no_other_number():
    config = {
        "num_experts": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 8,
        "hidden_size": 8,
        "ffn_config": {"moe_num_experts": 8, "ffn_hidden_size": 8},
        "moe_num_experts": 16,
    }
    assert edited_config(config, before=8, after=6) == config | {
        "num_experts": 6,
        "num_local_experts": 6,
        "ffn_config": {"moe_num_experts": 6, "ffn_hidden_size": 8},
    }
    assert config["num_experts"] == 8 and config["ffn_config"]["moe_num_experts"] == 8
    with pytest.raises(BadInput, match="names no expert count of 8"):
        edited_config({"num_experts": 9}, before=8, after=6)


def test_edited_config_reaches_a_config_within_a_config_within_a_config():
    config = {
        "thinker_config": {"text_config": {"num_experts": 8}, "vision_config": {"num_experts": 8}},
        "num_experts": 4,
    }
    assert edited_config(config, before=8, after=6) == {
        "thinker_config": {"text_config": {"num_experts": 6}, "vision_config": {"num_experts": 8}},
        "num_experts": 4,
    }


def test_config_without_heads_sets_the_counts_that_are_there():
    config = {"num_nextn_predict_layers": 1, "text_config": {"mtp_num_hidden_layers": 2}, "num_mtp_layers": None}
    assert without_heads(config) == {
        "num_nextn_predict_layers": 0,
        "text_config": {"mtp_num_hidden_layers": 0},
        "num_mtp_layers": None,
    }
    assert config["num_nextn_predict_layers"] == 1


def test_config_is_read_from_a_folder_or_a_file(saved):
    assert read_config(saved("olmoe")).to_diff_dict() == read_config(saved("olmoe") / "config.json").to_diff_dict()


def test_blocks_are_the_innermost_modules_that_hold_router_and_experts():
    assert read_plan(tiny.shared_model("mixtral").config).blocks == {
        f"model.layers.{layer}.{name}." for layer in (0, 1) for name in ("mlp", "block_sparse_moe")
    }


def test_experts_without_matrices_are_refused():
    values = {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 2, "hidden_size": 32, "num_hidden_layers": 1}
    with pytest.raises(BadInput, match="'doge' keeps its experts in a form that cannot be pruned"):
        read_plan(AutoConfig.for_model("doge", **values))


def test_layer_of_reads_the_number_of_the_decoder_layer():
    assert layer_of("model.layers.12.mlp.experts.3.up_proj.weight") == 12
    assert layer_of("transformer.blocks.4.ffn.router.layer.weight") == 4
    assert layer_of("model.layers.7") == 7
    assert layer_of("model.embed_tokens.weight") is None
