"""Trained models written back: they load, hold what was trained, and look like the checkpoint they came from."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from moeprune.checkpoint import Checkpoint, open_checkpoint
from moeprune.errors import BadInput
from moeprune.models import load_model
from moeprune.trained import trained_contents
from moeprune.writing import write_checkpoint

WEIGHTS = "model.safetensors"


def with_weights(source: Path, target: Path, weights: dict[str, Tensor]) -> Path:
    """The same checkpoint with other tensors in its file."""
    shutil.copytree(source, target)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, target / WEIGHTS, {"format": "pt"})
    return target


def train_and_write(folder: Path, target: Path, shard_bytes: int = 10**9) -> tuple[PreTrainedModel, Checkpoint]:
    """(model, checkpoint) with every parameter of the folder's model moved by half a spread."""
    model = load_model(folder, "float32")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator) * (parameter.std() + 0.1)
    source = open_checkpoint(folder)
    target.mkdir()
    write_checkpoint(source, trained_contents(model, source), source.config, target, shard_bytes)
    return model, open_checkpoint(target)


def assert_like(found: Checkpoint, source: Checkpoint) -> None:
    assert {name: (info.dtype, info.shape) for name, info in found.tensors.items()} == {
        name: (info.dtype, info.shape) for name, info in source.tensors.items()
    }
    assert found.config == source.config


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_trained_checkpoint_loads_as_the_trained_model(family, saved, tmp_path):
    model, found = train_and_write(saved(family), tmp_path / "trained")
    assert_like(found, open_checkpoint(saved(family)))
    loaded, before = tiny.load(tmp_path / "trained").state_dict(), tiny.shared_model(family).state_dict()
    trained = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value), name
        assert torch.equal(loaded[name], before[name]) == (name not in trained), name


def test_trained_checkpoint_keeps_each_precision_and_copies_what_is_no_parameter(saved, tmp_path):
    state = load_file(saved("deepseek_v3") / WEIGHTS)
    state = {name: value if "bias" in name or "norm" in name else value.bfloat16() for name, value in state.items()}
    folder = with_weights(saved("deepseek_v3"), tmp_path / "mixed", state)
    model, found = train_and_write(folder, tmp_path / "trained")
    assert_like(found, open_checkpoint(folder))
    assert {info.dtype for info in found.tensors.values()} == {"BF16", "F32"}
    biases = [name for name in found.tensors if name.endswith("e_score_correction_bias")]
    assert biases and all(torch.equal(found.read(name), state[name]) for name in biases)
    loaded = tiny.load(tmp_path / "trained").float().state_dict()
    for name, value in model.named_parameters():
        exact = "norm" in name
        assert torch.equal(loaded[name], value if exact else value.bfloat16().float()), name


def test_trained_checkpoint_of_a_fused_file_is_fused(saved, tmp_path):
    folder = with_weights(saved("qwen3_moe"), tmp_path / "fused", tiny.load(saved("qwen3_moe")).state_dict())
    model, found = train_and_write(folder, tmp_path / "trained")
    assert "model.layers.0.mlp.experts.gate_up_proj" in found.tensors
    assert_like(found, open_checkpoint(folder))
    loaded = tiny.load(tmp_path / "trained").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.named_parameters())


@pytest.mark.parametrize("stored", ["one", "both"])
def test_trained_checkpoint_tied_weights_stay_tied(stored, tmp_path):
    whole = tiny.new_model("olmoe", tie_word_embeddings=True)
    whole.save_pretrained(tmp_path / "one")
    state = load_file(tmp_path / "one" / WEIGHTS)
    assert "lm_head.weight" not in state
    with_weights(
        tmp_path / "one", tmp_path / "both", state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()}
    )
    model, found = train_and_write(tmp_path / stored, tmp_path / "trained")
    assert_like(found, open_checkpoint(tmp_path / stored))
    loaded = tiny.load(tmp_path / "trained")
    ids = tiny.padded(tiny.token_ids(12))[0]
    assert torch.equal(tiny.logits(loaded, ids), tiny.logits(model, ids))


def test_trained_checkpoint_tensors_that_are_not_loaded_are_copied(saved, tmp_path):
    extra = torch.arange(4.0)
    state = load_file(saved("deepseek_v3") / WEIGHTS) | {"model.layers.61.embed_tokens.weight": extra}
    folder = with_weights(saved("deepseek_v3"), tmp_path / "more", state)
    _, found = train_and_write(folder, tmp_path / "trained")
    assert torch.equal(found.read("model.layers.61.embed_tokens.weight"), extra)


def test_trained_checkpoint_shards_are_no_larger_than_told(saved, tmp_path):
    _, found = train_and_write(saved("mixtral"), tmp_path / "trained", shard_bytes=30_000)
    assert len(found.weight_files) > 3
    index = json.loads((tmp_path / "trained/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == open_checkpoint(saved("mixtral")).tensors.keys()
    tiny.load(tmp_path / "trained")


def test_trained_contents_parameter_without_a_place_is_refused(saved, tmp_path):
    state = load_file(saved("olmoe") / WEIGHTS)
    bare = {name.removeprefix("model."): value for name, value in state.items()}
    folder = with_weights(saved("olmoe"), tmp_path / "bare", bare)
    model = load_model(saved("olmoe"), "float32")
    with pytest.raises(BadInput, match=r"has no model\.\S+, which transformers would write"):
        trained_contents(model, open_checkpoint(folder))
