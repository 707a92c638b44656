"""The weights of experts and routers as files hold them."""

import json
from dataclasses import replace

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from moeprune import criteria
from moeprune.checkpoint import open_checkpoint
from moeprune.configs import read_config
from moeprune.errors import BadInput
from moeprune.experts import LayerExperts, layer_router
from moeprune.schema import Axis, read_plan

FOUND = {word: criteria.find(word) for word in criteria.words()}
OF_WEIGHTS = [word for word, found in FOUND.items() if found.reads == "experts"]
LAYOUT_FREE = [word for word in OF_WEIGHTS if word != "weight_stable_rank"]  # that one sees each matrix by itself


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("word", LAYOUT_FREE)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_weight_criterion_on_files_equals_that_in_memory(family, word, dtype, tmp_path):
    model = tiny.new_model(family).to(dtype)
    model.save_pretrained(tmp_path)
    plan, checkpoint = read_plan(read_config(tmp_path)), open_checkpoint(tmp_path)
    blocks = tiny.moe_blocks(model)
    assert plan.layers == list(blocks)
    for layer, block in blocks.items():
        weights = [
            [block.experts.gate_up_proj[e].detach(), block.experts.down_proj[e].detach()] for e in range(tiny.EXPERTS)
        ]
        found = FOUND[word].score(LayerExperts(checkpoint, plan, layer))
        torch.testing.assert_close(found, FOUND[word].score(weights), rtol=1e-6, atol=0)


@pytest.mark.parametrize("word", LAYOUT_FREE)
def test_weight_criterion_on_a_fused_file_equals_that_on_single_experts(word, tmp_path):
    model = tiny.new_model("qwen3_moe")
    model.save_pretrained(tmp_path / "single")
    model.save_pretrained(tmp_path / "fused")
    save_file(dict(model.state_dict()), tmp_path / "fused" / "model.safetensors", metadata={"format": "pt"})
    single, fused = open_checkpoint(tmp_path / "single"), open_checkpoint(tmp_path / "fused")
    assert len(single.tensors) > len(fused.tensors)
    plan = read_plan(read_config(single.folder))
    for layer in plan.layers:
        one, other = (FOUND[word].score(LayerExperts(source, plan, layer)) for source in (single, fused))
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
        assert len(set(one.tolist())) == tiny.EXPERTS


def test_weight_stable_rank_is_the_mean_over_the_matrices_of_the_file(tmp_path):
    model = tiny.new_model("qwen3_moe")
    model.save_pretrained(tmp_path)
    plan, checkpoint = read_plan(read_config(tmp_path)), open_checkpoint(tmp_path)
    for layer, block in tiny.moe_blocks(model).items():
        weights = [[*block.experts.gate_up_proj[e].chunk(2), block.experts.down_proj[e]] for e in range(tiny.EXPERTS)]
        squares = [[torch.linalg.svdvals(m.detach().double()).square() for m in matrices] for matrices in weights]
        expected = [sum(float(s.sum() / s.max()) for s in expert) / 3 for expert in squares]
        found = FOUND["weight_stable_rank"].score(LayerExperts(checkpoint, plan, layer))
        assert found.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("word", OF_WEIGHTS)
def test_weight_criterion_on_an_expert_torn_between_shards_equals_that_on_one_file(word, tmp_path):
    model = tiny.new_model("mixtral")
    for name in ("one", "two"):
        model.save_pretrained(tmp_path / name)
    tensors = load_file(tmp_path / "two" / "model.safetensors")
    last = [name for name in tensors if "experts.1.w1" in name]
    (tmp_path / "two" / "model.safetensors").unlink()
    save_file({name: tensors[name] for name in tensors if name not in last}, tmp_path / "two" / "a.safetensors")
    save_file({name: tensors[name] for name in last}, tmp_path / "two" / "b.safetensors")
    weight_map = {name: "b.safetensors" if name in last else "a.safetensors" for name in tensors}
    (tmp_path / "two" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    one, two = open_checkpoint(tmp_path / "one"), open_checkpoint(tmp_path / "two")
    plan = read_plan(read_config(one.folder))
    for layer in plan.layers:
        whole, torn = (FOUND[word].score(LayerExperts(source, plan, layer)) for source in (one, two))
        assert torch.equal(whole, torn)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_layer_experts_are_matrices_of_the_file_in_one_order(family, tmp_path):
    tiny.new_model(family).save_pretrained(tmp_path)
    plan, checkpoint = read_plan(read_config(tmp_path)), open_checkpoint(tmp_path)
    shapes = [
        [tuple(matrix.shape) for matrix in matrices] for matrices in LayerExperts(checkpoint, plan, plan.layers[0])
    ]
    assert len(shapes) == tiny.EXPERTS and all(other == shapes[0] for other in shapes)
    assert all(len(shape) == 2 for shape in shapes[0])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_layer_router_equals_the_weight_of_the_module(family, tmp_path):
    model = tiny.new_model(family)
    model.save_pretrained(tmp_path)
    plan, checkpoint = read_plan(read_config(tmp_path)), open_checkpoint(tmp_path)
    for layer, block in tiny.moe_blocks(model).items():
        assert torch.equal(layer_router(checkpoint, plan, layer), tiny.router_of(block).weight.detach())


def test_layer_router_cuts_off_rows_of_no_expert(tmp_path):
    tiny.new_model("olmoe").save_pretrained(tmp_path)
    plan = read_plan(read_config(tmp_path))
    name = "model.layers.1.mlp.gate.weight"
    tensors = load_file(tmp_path / "model.safetensors")
    experts = tensors[name]
    save_file(tensors | {name: torch.cat([experts, torch.ones(3, tiny.HIDDEN)])}, tmp_path / "model.safetensors")
    plan = replace(plan, axes=plan.axes | {name: Axis(0, 1, 3)})
    assert torch.equal(layer_router(open_checkpoint(tmp_path), plan, 1), experts)


def test_layer_router_none_or_several_are_refused(tmp_path):
    tiny.new_model("olmoe").save_pretrained(tmp_path)
    plan, checkpoint = read_plan(read_config(tmp_path)), open_checkpoint(tmp_path)
    with pytest.raises(BadInput, match="layer 7 has 0 tensors that could be its router"):
        layer_router(checkpoint, plan, 7)
    both = replace(plan, axes=plan.axes | {"model.layers.1.self_attn.q_proj.weight": Axis(0, 1, 0)})
    with pytest.raises(BadInput, match="layer 1 has 2 tensors"):
        layer_router(checkpoint, both, 1)
