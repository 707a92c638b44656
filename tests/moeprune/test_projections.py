"""Projections found by the shapes of a save path, against weights that say themselves what they are."""

import re

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moeprune.checkpoint import open_checkpoint
from moeprune.errors import BadInput
from moeprune.projections import Projection, projections, unnumbered

_SMALL = {
    "vocab_size": 64,
    "hidden_size": 20,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
# Layouts that no family of tiny.py has: transposed under other names, stacked under other names, without a gate.
_OTHERS = {
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "nemotron_h": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "hybrid_override_pattern": "*E*E",
        "head_dim": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 2,
    },
}


def config_of(family):
    if family in _OTHERS:
        values = _SMALL | _OTHERS[family]
        if family == "nemotron_h":
            del values["num_hidden_layers"]
        return CONFIG_MAPPING[family](**values)
    return tiny.new_model(family).config


@torch.no_grad()
def coded_checkpoint(config, folder):
    """A saved model whose expert weights hold the number of their input, counted from 1; negative for down."""
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        parameter.zero_()
        found = re.search(r"experts\.(gate_up_proj|up_proj|down_proj)$", name)
        if found:
            transposed = config.model_type in ("gpt_oss", "aria_text")  # as their modelling files say
            axis = 1 if transposed else 2
            code = torch.arange(1.0, parameter.shape[axis] + 1) * (-1 if found[1] == "down_proj" else 1)
            parameter.copy_(code[:, None] if transposed else code)
    model.save_pretrained(folder)
    return open_checkpoint(folder)


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *_OTHERS])
def test_projections_are_the_tensors_that_hold_the_codes_along_the_axis_they_vary(family, tmp_path):
    config = config_of(family)
    checkpoint, found = coded_checkpoint(config, tmp_path), projections(config)
    kinds = set()
    for name in checkpoint.tensors:
        tensor, projection = checkpoint.read(name), found.get(unnumbered(name))
        if projection is None:
            assert not tensor.any(), f"{name} holds expert weights"
            continue
        code = tensor.movedim(projection.input_axis, -1).abs()
        assert torch.equal(code, torch.arange(1.0, code.shape[-1] + 1).expand_as(code)), name
        assert bool((tensor > 0).all()) == (projection.kind == "up"), name
        kinds.add(projection.kind)
    assert kinds == {"up", "down"}


def test_projections_are_named_on_disk_and_in_memory():
    assert projections(tiny.shared_model("mixtral").config) == {
        "model.layers.#.block_sparse_moe.experts.#.w1.weight": Projection("up", 1),
        "model.layers.#.block_sparse_moe.experts.#.w3.weight": Projection("up", 1),
        "model.layers.#.block_sparse_moe.experts.#.w2.weight": Projection("down", 1),
        "model.layers.#.mlp.experts.gate_up_proj": Projection("up", 2),
        "model.layers.#.mlp.experts.down_proj": Projection("down", 2),
    }


def test_transposed_stacks_have_their_inputs_first_and_biases_are_no_projections():
    assert projections(tiny.shared_model("gpt_oss").config) == {
        "model.layers.#.mlp.experts.gate_up_proj": Projection("up", 1),
        "model.layers.#.mlp.experts.down_proj": Projection("down", 1),
    }


def test_projections_of_a_model_too_large_for_any_memory_here_are_found():
    found = projections(CONFIG_MAPPING["deepseek_v3"]())  # 61 layers, 671 billion weights
    assert found["model.layers.#.mlp.experts.#.gate_proj.weight"] == Projection("up", 1)


def test_projection_that_the_save_path_moves_in_two_dimensions_is_refused(monkeypatch):
    def turn_what_is_longer(model):
        memory = model.state_dict()
        longer = {name for name, tensor in memory.items() if name.endswith("proj") and 33 in tensor.shape}
        return memory, {name: tensor.mT if name in longer else tensor for name, tensor in memory.items()}

    monkeypatch.setattr("moeprune.projections.meta_tensors", turn_what_is_longer)
    with pytest.raises(BadInput, match=r"where the inputs of \S+\.gate_up_proj lie cannot be told from its shape"):
        projections(tiny.new_model("qwen3_moe", moe_intermediate_size=24).config)


def test_family_without_the_experts_interface_is_refused():
    config = CONFIG_MAPPING["llama4_text"](**_SMALL, num_local_experts=4, head_dim=8, intermediate_size_mlp=12)
    with pytest.raises(BadInput, match="Llama4TextExperts does not tell"):
        projections(config)
