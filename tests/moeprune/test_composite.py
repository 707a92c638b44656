"""Multimodal checkpoints: the experts of the text tower are observed, scored and pruned, all else stays as it is."""

from functools import lru_cache
from typing import Any

import pytest
import tiny
import torch
from observed import corpus_of
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moeprune.checkpoint import open_checkpoint
from moeprune.configs import read_config, read_routing
from moeprune.criteria.aimer import score
from moeprune.criteria.wanda import score as wanda
from moeprune.errors import BadInput
from moeprune.experts import LayerExperts
from moeprune.file_plan import read_file_plan
from moeprune.inspection import inspect
from moeprune.interface import experts_of
from moeprune.masks import Mask
from moeprune.meta import meta_model, model_class
from moeprune.models import load_model
from moeprune.observation import observe_chunk
from moeprune.observer import Observer
from moeprune.projections import projections
from moeprune.sparsity import Energies, sparsify_checkpoint
from moeprune.surgery import prune_checkpoint
from moeprune.trained import trained_contents
from moeprune.weight_masks import parse_pattern
from moeprune.writing import write_checkpoint

TOLERANCE = 1e-5
IDS = torch.stack(tiny.token_ids(24, 24))
KEPT = {0: (0, 1, 3, 4, 6, 7), 1: (1, 2, 3, 4, 5, 6)}

_TEXT = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_ROTARY = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_vl_moe": {
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "text_config": _TEXT
        | {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2, "rope_parameters": _ROTARY},
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
        "image_token_id": 120,
        "video_token_id": 121,
        "vision_start_token_id": 122,
        "vision_end_token_id": 123,
    },
    "llama4": {
        "architectures": ["Llama4ForConditionalGeneration"],
        "text_config": _TEXT | {"intermediate_size_mlp": 48, "num_local_experts": 8, "num_experts_per_tok": 1},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
            "vision_output_dim": 16,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
        },
    },
}
every_family = pytest.mark.parametrize("family", _FAMILIES)


@lru_cache
def composite(family: str) -> PreTrainedModel:
    """A tiny random model with a text and a vision tower: not to be changed."""
    torch.manual_seed(0)
    model = AutoModelForMultimodalLM.from_config(CONFIG_MAPPING[family](**_FAMILIES[family])).eval()
    with torch.no_grad():
        for block in blocks(model).values():
            block_router(block).weight.normal_(std=0.5)
    return model


def blocks(model: nn.Module) -> dict[int, nn.Module]:
    """The text tower's blocks with experts."""
    (text,) = (part for part in model.modules() if hasattr(part, "embed_tokens") and hasattr(part, "layers"))
    inner = (next(part for part in layer.children() if hasattr(part, "experts")) for layer in text.layers)
    return dict(enumerate(inner))


def block_router(block: nn.Module) -> nn.Module:
    return block.router if hasattr(block, "router") else block.gate


@torch.no_grad()
def masked_logits(model: PreTrainedModel, kept: dict[int, tuple[int, ...]]) -> Tensor:
    gone = {layer: sorted(set(range(8)) - set(kept[layer])) for layer in kept}
    with tiny.RouterLogits({id(block_router(b).weight): gone[i] for i, b in blocks(model).items()}) as masking:
        output = tiny.logits(model, IDS)
    assert masking.hits == len(kept)
    return output


@pytest.fixture
def folder(family, tmp_path):
    composite(family).save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@every_family
def test_composite_checkpoint_pruned_equals_the_masked_model_and_keeps_its_other_towers(family, folder, tmp_path):
    checkpoint, model = open_checkpoint(folder), composite(family)
    plan = read_file_plan(checkpoint)
    (tmp_path / "less").mkdir()
    prune_checkpoint(checkpoint, plan, Mask("0" * 64, 8, KEPT), tmp_path / "less", 10**9)
    pruned = load_model(tmp_path / "less")  # refuses any key that is missing, left over or of another shape
    assert type(pruned) is type(model)
    assert read_routing(pruned.config).experts == 6
    expected = masked_logits(model, KEPT)
    assert distance(tiny.logits(pruned, IDS), expected) < TOLERANCE < distance(tiny.logits(model, IDS), expected)
    wrong = KEPT | {1: (0, *KEPT[1][1:])}
    assert distance(tiny.logits(pruned, IDS), masked_logits(model, wrong)) > 1e-3
    vision = {name: tensor for name, tensor in model.state_dict().items() if "vision" in name or "visual" in name}
    assert vision and all(torch.equal(pruned.state_dict()[name], tensor) for name, tensor in vision.items())


@every_family
def test_composite_model_observed_counts_every_visit_and_computes_what_it_did(family):
    model, chosen = composite.__wrapped__(family), []
    corpus = corpus_of(tiny.token_ids(9, 20), [0, 0])
    for layer, block in blocks(model).items():
        weight = block_router(block).weight
        block.register_forward_pre_hook(
            lambda _, inputs, layer=layer, weight=weight: chosen.append(
                (layer, (inputs[0].reshape(-1, 32) @ weight.T).topk(read_routing(model.config).top_k).indices)
            )
        )
    before = tiny.logits(model, corpus.input_ids.long())
    chosen.clear()
    with Observer(model, ("core", "vectors"), ("deployed",)) as observer:
        assert distance(tiny.logits(model, corpus.input_ids.long()), before) < TOLERANCE
        observer.take()
        chosen.clear()
        statistics = observe_chunk(model, observer, corpus, 0, 2)
    counts = torch.zeros(2, 8, dtype=torch.long)
    for layer, experts in chosen:
        by_token = experts.reshape(2, 20, -1)
        for expert in [*by_token[0, :9].flatten().tolist(), *by_token[1].flatten().tolist()]:
            counts[layer, expert] += 1
    assert torch.equal(statistics.count[0], counts)


@every_family
def test_composite_checkpoint_scores_the_experts_of_its_text_tower(family, folder):
    checkpoint = open_checkpoint(folder)
    plan = read_file_plan(checkpoint)
    for layer, experts in experts_of(composite(family)).items():
        whole = [torch.cat([w[e].flatten() for w in experts.module.parameters()]).double() for e in range(8)]
        expected = torch.stack([-w.abs().mean() / w.square().mean().sqrt() for w in whole])
        torch.testing.assert_close(score(LayerExperts(checkpoint, plan, layer)), expected)


def test_model_class_goes_by_the_architecture_the_files_are_of():
    config = CONFIG_MAPPING["llama4"](**_FAMILIES["llama4"])
    assert model_class(config) is AutoModelForMultimodalLM
    config.architectures = ["Llama4ForCausalLM"]
    assert model_class(config) is AutoModelForCausalLM
    assert model_class(CONFIG_MAPPING["olmoe"]()) is AutoModelForCausalLM
    assert type(meta_model(CONFIG_MAPPING["qwen3_vl_moe"]())).__name__ == "Qwen3VLMoeForConditionalGeneration"


@every_family
def test_composite_config_is_edited_within_its_text_part_alone(family, folder, tmp_path):
    checkpoint = open_checkpoint(folder)
    (tmp_path / "less").mkdir()
    prune_checkpoint(checkpoint, read_file_plan(checkpoint), Mask("0" * 64, 8, KEPT), tmp_path / "less", 10**9)
    before, after = checkpoint.config, open_checkpoint(tmp_path / "less").config
    key = "num_experts" if "num_experts" in before["text_config"] else "num_local_experts"
    assert (before["text_config"][key], after["text_config"][key]) == (8, 6)
    before["text_config"].pop(key), after["text_config"].pop(key)
    assert after == before
    assert read_config(tmp_path / "less").model_type == family


@every_family
def test_composite_checkpoint_is_inspected_with_what_its_text_tower_allows(family, folder):
    model = composite(family)
    one = sum(weight[0].numel() for weight in next(iter(experts_of(model).values())).module.parameters())
    for tensors in (open_checkpoint(folder).tensors, None):
        found = inspect(read_config(folder), folder, tensors)
        assert (found.model_type, found.layers, found.expert_layers) == (family, 2, (0, 1))
        assert found.in_experts == 2 * 8 * one
        assert found.size.parameters == model.num_parameters()
        assert not any(pruned.refusal for pruned in found.pruned)
        refused = {method.word for method in found.methods if method.refusal}
        # Llama 4's experts do not show the inputs of their down projections.
        assert refused == ({"wanda", "moe_pruner"} if family == "llama4" else set())


# ------------------------------------------- published files of qwen3_vl_moe hold stacks with inputs before outputs


@pytest.fixture
def published(tmp_path):
    """A folder of a composite whose stacks of experts lie as in published files."""
    composite("qwen3_vl_moe").save_pretrained(tmp_path / "published")
    file = tmp_path / "published/model.safetensors"
    state = load_file(file)
    turned = {name: tensor.mT.contiguous() for name, tensor in state.items() if ".experts." in name}
    save_file(state | turned, file, {"format": "pt"})
    return tmp_path / "published"


def test_published_layout_is_pruned_in_that_layout(published, tmp_path):
    model, checkpoint = composite("qwen3_vl_moe"), open_checkpoint(published)
    assert checkpoint.tensors["model.language_model.layers.0.mlp.experts.gate_up_proj"].shape == (8, 32, 48)
    assert distance(tiny.logits(load_model(published), IDS), tiny.logits(model, IDS)) == 0
    (tmp_path / "less").mkdir()
    prune_checkpoint(checkpoint, read_file_plan(checkpoint), Mask("0" * 64, 8, KEPT), tmp_path / "less", 10**9)
    assert distance(tiny.logits(load_model(tmp_path / "less"), IDS), masked_logits(model, KEPT)) < TOLERANCE


def test_published_layout_has_its_zeros_where_the_saved_one_has_them(published, tmp_path):
    composite("qwen3_vl_moe").save_pretrained(tmp_path / "saved")
    energies = Energies((0, 1), *(torch.rand(2, 8, inputs, dtype=torch.float64) for inputs in (32, 24)))
    sparse = []
    for folder in (published, tmp_path / "saved"):
        checkpoint, target = open_checkpoint(folder), tmp_path / f"sparse-{folder.name}"
        target.mkdir()
        plan, found = read_file_plan(checkpoint), projections(read_config(folder))
        sparsify_checkpoint(checkpoint, plan, found, wanda, energies, parse_pattern("2:4"), target, 10**9)
        sparse.append(load_model(target).state_dict())
    assert all(torch.equal(tensor, sparse[1][name]) for name, tensor in sparse[0].items())
    assert all((tensor == 0).float().mean() == 0.5 for name, tensor in sparse[0].items() if ".experts." in name)


def test_published_layout_is_kept_by_what_was_trained(published, tmp_path):
    checkpoint, model = open_checkpoint(published), load_model(published)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    (tmp_path / "trained").mkdir()
    write_checkpoint(checkpoint, trained_contents(model, checkpoint), checkpoint.config, tmp_path / "trained", 10**9)
    loaded = load_model(tmp_path / "trained").state_dict()
    assert all(torch.equal(loaded[name], parameter) for name, parameter in model.named_parameters())
    shapes = {name: info.shape for name, info in open_checkpoint(tmp_path / "trained").tensors.items()}
    assert shapes == {name: info.shape for name, info in checkpoint.tensors.items()}


def test_stack_that_is_neither_way_is_refused(published):
    file = published / "model.safetensors"
    name = "model.language_model.layers.0.mlp.experts.down_proj"
    save_file(load_file(file) | {name: torch.zeros(8, 24, 31)}, file, {"format": "pt"})
    with pytest.raises(BadInput, match=rf"{name} of shape \[8, 24, 31\], by its config it has \[8, 32, 24\]"):
        read_file_plan(open_checkpoint(published))
