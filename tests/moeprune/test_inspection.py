"""Inspections against models that are built, pruned and counted."""

import math
from dataclasses import replace
from pathlib import Path

import packed
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, Qwen3VLMoeConfig

from moeprune import methods
from moeprune.checkpoint import open_checkpoint
from moeprune.configs import read_config
from moeprune.errors import BadInput
from moeprune.file_plan import read_file_plan
from moeprune.inspection import Inspection, inspect
from moeprune.masks import Mask
from moeprune.surgery import prune_checkpoint


def inspected(folder: Path, files: bool = True) -> Inspection:
    return inspect(read_config(folder), folder, open_checkpoint(folder).tensors if files else None)


def elements(folder: Path) -> dict[str, int]:
    return {name: tensor.numel() for name, tensor in load_file(folder / "model.safetensors").items()}


def refused(found: Inspection) -> set[str]:
    return {method.word for method in found.methods if method.refusal}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_inspect_checkpoint_tells_what_the_loaded_model_is(family, saved):
    model, found = tiny.load(saved(family)), inspected(saved(family))
    blocks = tiny.moe_blocks(model)
    one_expert = sum(math.prod(weight.shape[1:]) for weight in next(iter(blocks.values())).experts.parameters())
    total = sum(elements(saved(family)).values())
    assert (found.model_type, found.architecture) == (model.config.model_type, type(model).__name__)
    assert (found.layers, found.expert_layers) == (len(model.model.layers), tuple(blocks))
    assert (found.routing.experts, found.routing.top_k) == (tiny.EXPERTS, tiny.TOP_K)
    assert found.in_experts == len(blocks) * tiny.EXPERTS * one_expert
    assert found.size.parameters == total
    assert found.size.active == total - len(blocks) * (tiny.EXPERTS - tiny.TOP_K) * one_expert
    assert found.size.bytes == 4 * total
    assert found.dtypes == {"F32": 4 * total}
    assert (found.computed, found.quantised, found.unobservable, found.heads) == (False, None, "", 0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_inspect_pruned_sizes_are_those_of_the_files_that_pruning_writes(family, saved, tmp_path):
    source = open_checkpoint(saved(family))
    plan = read_file_plan(source)
    # Of the two groups of deepseek_v3 only one may be chosen, so that each must keep top-k experts.
    least = 4 if family == "deepseek_v3" else 2
    for pruned, keep in zip(inspected(saved(family)).pruned, (6, 4, least), strict=True):
        assert (pruned.keep, bool(pruned.refusal)) == (keep, pruned.ratio == 0.75 and least == 4)
        target = tmp_path / f"{pruned.ratio}"
        target.mkdir()
        kept = {layer: (*range(keep // 2), *range(4, 4 + keep // 2)) for layer in plan.layers}
        prune_checkpoint(source, plan, Mask("", tiny.EXPERTS, kept), target, 10**9)
        total = sum(elements(target).values())
        assert (pruned.size.parameters, pruned.size.bytes) == (total, 4 * total)
        assert inspected(target).size == pruned.size


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inspect_config_alone_computes_what_saving_would_write(family, dtype, saved, tmp_path):
    tiny.AutoModelForCausalLM.from_pretrained(saved(family), dtype=dtype).save_pretrained(tmp_path)
    whole, alone = inspected(tmp_path), inspected(tmp_path, files=False)
    assert alone.computed
    assert replace(alone, computed=False) == whole


def test_inspect_tied_embeddings_are_counted_once(tmp_path):
    tiny.new_model("olmoe", tie_word_embeddings=True).save_pretrained(tmp_path)
    untied = tiny.shared_model("olmoe")
    head = untied.lm_head.weight.numel()
    assert inspected(tmp_path, files=False).size.parameters == sum(map(torch.numel, untied.parameters())) - head
    assert inspected(tmp_path).size == inspected(tmp_path, files=False).size


@pytest.mark.parametrize(
    ("family", "named", "shared"),
    # Qwen2's config gives the width of what is shared, not a number.
    [("qwen2_moe", {}, 1), ("deepseek_v3", {"n_shared_experts": 3}, 3), ("mixtral", {}, 0)],
)
def test_inspect_counts_shared_experts(family, named, shared, tmp_path):
    tiny.new_model(family, **named).save_pretrained(tmp_path)
    assert inspected(tmp_path).shared_experts == shared


def test_inspect_top_k_that_forbids_a_ratio_gives_the_reason_and_the_nearest(tmp_path):
    tiny.new_model("mixtral", num_experts_per_tok=4).save_pretrained(tmp_path)
    found = inspected(tmp_path)
    quarter, half, three_quarters = found.pruned
    assert (quarter.refusal, half.refusal) == ("", "")
    assert "needs 4 (top-k 4)" in three_quarters.refusal
    assert (three_quarters.keep, three_quarters.size) == (4, half.size)


def test_inspect_groups_forbid_what_does_not_divide(tmp_path):
    tiny.new_model("deepseek_v3", n_group=4, topk_group=2).save_pretrained(tmp_path)
    found = inspected(tmp_path)
    assert (found.routing.groups, found.routing.top_groups) == (4, 2)
    # Groups of two are ranked by their best two: nothing can go.
    assert [(pruned.keep, pruned.size) for pruned in found.pruned] == [(None, None)] * 3
    assert all(pruned.refusal for pruned in found.pruned)


def test_inspect_file_with_an_unexplained_tensor_is_told_but_cannot_be_pruned(saved, tmp_path):
    found = inspected(with_tensors(saved("olmoe"), tmp_path, {"model.layers.1.extra.experts.0.odd": torch.zeros(2, 3)}))
    assert found.size.parameters == sum(elements(saved("olmoe")).values())
    assert all("model.layers.1.extra.experts.0.odd" in pruned.refusal for pruned in found.pruned)
    assert {"aimer", "router_weight_norm"} <= refused(found)
    assert not {"reap", "uniform_random", "uniform"} & refused(found)


def test_inspect_prediction_heads_with_experts_are_told(saved, tmp_path):
    head = {
        "model.layers.61.mlp.experts.0.gate_proj.weight": torch.zeros(16, 32),
        "model.layers.61.mlp.gate.weight": torch.zeros(8, 32),
    }
    found = inspected(with_tensors(saved("deepseek_v3"), tmp_path, head))
    assert found.heads == 4 * (16 * 32 + 8 * 32)
    assert found.layers == 3
    without = inspected(saved("deepseek_v3"))
    assert (found.size.parameters, found.pruned) == (without.size.parameters, without.pruned)


def test_inspect_model_that_cannot_be_observed_leaves_the_weights(saved, monkeypatch):
    def experts_of(model: torch.nn.Module) -> None:
        raise BadInput("made of one stone")

    monkeypatch.setattr(methods, "experts_of", experts_of)
    found = inspected(saved("olmoe"))
    assert found.unobservable == "made of one stone"
    possible = {method.word for method in found.methods} - refused(found)
    assert {"aimer", "magnitude", "router_weight_norm", "uniform_random", "uniform", "tb_coverage"} <= possible
    assert {"reap", "mone", "frequency", "wanda", "hope", "reconstruction"} <= refused(found)


def test_inspect_router_that_cannot_be_told_forbids_criteria_that_read_it(saved, tmp_path):
    # A second matrix with a row for each expert.
    plan = read_file_plan(open_checkpoint(saved("olmoe")))
    doubled = replace(plan, axes=plan.axes | {"model.layers.0.twin": plan.axes["model.layers.0.mlp.gate.weight"]})
    files = open_checkpoint(with_tensors(saved("olmoe"), tmp_path, {"model.layers.0.twin": torch.zeros(8, 32)}))
    methods.check_routers(open_checkpoint(saved("olmoe")), plan)
    with pytest.raises(BadInput, match="layer 0 has 2 tensors"):
        methods.check_routers(files, doubled)


def test_inspect_quantisation_within_the_config_of_a_tower_is_told(tmp_path):
    how = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    tower = {"num_hidden_layers": 1, "num_experts": 8, "num_experts_per_tok": 2, "hidden_size": 64, "vocab_size": 64}
    assert inspect(Qwen3VLMoeConfig(text_config=tower), tmp_path, None).quantised is None
    assert inspect(Qwen3VLMoeConfig(text_config=tower | {"quantization_config": how}), tmp_path, None).quantised == how


def test_inspect_dense_model_is_refused(tmp_path):
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="'llama' is not a Mixture-of-Experts model"):
        inspected(tmp_path, files=False)


@pytest.mark.parametrize(
    ("family", "quantise", "suffixes", "config"),
    [
        (
            "deepseek_v3",
            packed.fp8_blocks(16, 16),
            (".weight",),
            {"quant_method": "fp8", "weight_block_size": [16, 16]},
        ),
        ("gpt_oss", packed.mxfp4_stacks, ("gate_up_proj", "down_proj"), {"quant_method": "mxfp4"}),
    ],
)
def test_inspect_quantised_files_counts_numbers_and_tells_bytes(family, quantise, suffixes, config, tmp_path):
    tiny.new_model(family, hidden_size=64, intermediate_size=64, moe_intermediate_size=32).save_pretrained(tmp_path)
    before = inspected(tmp_path)
    packed.quantise_file(tmp_path, lambda name: ".experts." in name and name.endswith(suffixes), quantise, config)
    found = inspected(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert (found.size.parameters, found.size.active) == (before.size.parameters, before.size.active)
    assert found.in_experts == before.in_experts
    assert found.size.bytes == sum(tensor.nbytes for tensor in tensors.values()) < before.size.bytes
    assert sum(found.dtypes.values()) == found.size.bytes and len(found.dtypes) > 1
    assert found.quantised.items() >= config.items()
    assert {"wanda", "moe_pruner"} == refused(found) - refused(before)
    plan = read_file_plan(open_checkpoint(tmp_path))
    (tmp_path / "pruned").mkdir()
    mask = Mask("", tiny.EXPERTS, dict.fromkeys(plan.layers, (0, 1, 4, 5)))
    prune_checkpoint(open_checkpoint(tmp_path), plan, mask, tmp_path / "pruned", 10**9)
    assert found.pruned[1].size.bytes == open_checkpoint(tmp_path / "pruned").weight_bytes


def with_tensors(source: Path, target: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(load_file(source / "model.safetensors") | tensors, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    return target
