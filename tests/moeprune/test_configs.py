"""Configs that say things their own way, or what they cannot mean: one number for all layers, or one line."""

import json

import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig, PreTrainedConfig, Qwen3VLMoeConfig

from moeprune.checkpoint import open_checkpoint
from moeprune.configs import edited_config, quantisation, read_config, read_routing, with_expert_count
from moeprune.errors import BadInput, one_line
from moeprune.file_plan import read_file_plan
from moeprune.masks import Mask
from moeprune.meta import meta_model
from moeprune.models import load_model
from moeprune.routing import Routing
from moeprune.surgery import prune_checkpoint

IDS = torch.stack(tiny.token_ids(24, 24))
HUNYUAN = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "num_experts": 8,
    "max_position_embeddings": 128,
}


def hunyuan(**values):
    return AutoConfig.for_model("hunyuan_v1_moe", **HUNYUAN | values)


# ------------------------------------------------------------------------------- a number for each layer


def test_routing_with_a_top_k_for_each_layer_is_the_one_they_share():
    assert read_routing(hunyuan(moe_topk=[2, 2])) == read_routing(hunyuan(moe_topk=2)) == Routing(8, 2)


@pytest.mark.parametrize(("key", "numbers"), [("moe_topk", [2, 3]), ("num_experts", [8, 6])])
def test_routing_with_different_numbers_for_layers_is_refused_by_the_key(key, numbers):
    config = hunyuan(moe_topk=2)
    config.__dict__[key] = numbers  # this family's config does not allow it of both keys; others may
    with pytest.raises(BadInput, match=rf"gives layers different {key} \({numbers[0]}, {numbers[1]}\)"):
        read_routing(config)


def test_expert_count_for_each_layer_is_edited_for_each():
    raw = {"num_experts": [8, 8], "moe_topk": [8, 8], "num_shared_expert": [1, 1]}
    assert edited_config(raw, before=8, after=6) == raw | {"num_experts": [6, 6]}
    with pytest.raises(BadInput, match="names no expert count of 8"):
        edited_config({"num_experts": [8, 6]}, before=8, after=4)
    config = PreTrainedConfig(num_experts=[8, 8], num_local_experts=8)
    changed = with_expert_count(config, 6)
    assert (changed.num_experts, changed.num_local_experts, config.num_experts) == ([6, 6], 6, [8, 8])


@torch.no_grad()
def test_checkpoint_with_a_top_k_for_each_layer_is_pruned_like_that_with_one(tmp_path):
    logits = []
    for name, top_k in (("lists", [2, 2]), ("one", 2)):
        source, target = tmp_path / name, tmp_path / f"{name}-pruned"
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(hunyuan(moe_topk=top_k)).save_pretrained(source)
        target.mkdir()
        plan = read_file_plan(open_checkpoint(source))
        prune_checkpoint(open_checkpoint(source), plan, Mask("", 8, dict.fromkeys((0, 1), (0, 2, 3, 7))), target, 10**9)
        config = json.loads((target / "config.json").read_text())
        assert (config["num_experts"], config["moe_topk"]) == (4, top_k)
        logits.append(tiny.logits(load_model(target), IDS))
    assert torch.equal(*logits)


# ------------------------------------------------------------------------------- values that are none


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model_type": "mixtral", "num_local_experts": "8"}, "'num_local_experts': TypeError: .* expected int, got"),
        ({"model_type": "mixtral", "num_hidden_layers": [2]}, "'num_hidden_layers': TypeError"),
        ({"model_type": 3}, "model type `3`"),
        ([], "model_type"),
    ],
)
def test_config_with_values_of_another_type_is_refused_in_one_line(content, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=said) as refusal:
        read_config(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("values", [{"num_attention_heads": 0}, {"hidden_act": "no_such"}, {"vocab_size": -1}])
def test_model_that_cannot_be_made_of_its_config_is_refused_in_one_line(values):
    config = MixtralConfig(**{"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1} | values)
    with pytest.raises(BadInput, match=r"cannot make a model of the config of this 'mixtral' \(\w+: .*mend") as refusal:
        meta_model(config)
    assert "\n" not in str(refusal.value)


def test_error_that_says_it_in_its_second_line_is_told_with_both():
    assert one_line(ValueError("field 'a':\n    wrong\n  more")) == "field 'a': wrong"
    assert one_line(ValueError("first\nsecond")) == "first"
    assert one_line(ValueError("field:")) == "field:"
    assert one_line(AssertionError()) == "AssertionError"


# ------------------------------------------------------------------------------- quantisation within


def test_quantisation_is_found_in_the_config_of_a_tower():
    how = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    config = Qwen3VLMoeConfig(text_config={"quantization_config": how})
    assert quantisation(config.to_dict()) == quantisation({"text_config": {"quantization_config": how}}) == how
    assert quantisation(Qwen3VLMoeConfig().to_dict()) is None
