"""Quantised checkpoints are loaded as plain numbers on every machine, or refused in one line."""

import json
import shutil

import pytest
import quantised_kinds
import tiny
import torch
from observed import corpus_of
from quantised_kinds import KINDS, matrices
from transformers import GptOssForCausalLM

from moeprune.checkpoint import open_checkpoint
from moeprune.configs import read_config
from moeprune.dequantised import check_loadable, dequantising
from moeprune.errors import BadInput
from moeprune.models import load_model
from moeprune.observation import observe_chunk
from moeprune.observer import Observer

LOADABLE = [name for name, kind in KINDS.items() if kind.loads]
SEQUENCES = tiny.token_ids(9, 20)
IDS = torch.stack(tiny.token_ids(24, 24))


@pytest.mark.parametrize("kind", LOADABLE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_loaded_model_has_the_dtype_asked_for_and_the_numbers_of_the_file(kind, dtype, stored, tmp_path):
    model = load_model(quantised_kinds.write(kind, tmp_path, stored), dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert tiny.logits(model, IDS).isfinite().all()
    for layer, block in tiny.moe_blocks(model).items():
        for expert in range(tiny.EXPERTS):
            down, *up = matrices(tmp_path, KINDS[kind], layer, expert)
            found = [block.experts.down_proj[expert], block.experts.gate_up_proj[expert]]
            for weight, expected in zip(found, [down, torch.cat(up)], strict=True):
                turned = weight.T if kind == "mxfp4" else weight
                torch.testing.assert_close(turned.float(), expected, rtol=1e-6 if dtype == "float32" else 2**-8, atol=0)


def test_what_a_family_keeps_in_float32_stays_so(quantised, monkeypatch):
    monkeypatch.setattr(GptOssForCausalLM, "_keep_in_fp32_modules_strict", {"post_attention_layernorm"})
    model = load_model(quantised("mxfp4"), "bfloat16")
    wide = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert wide == {f"model.layers.{layer}.post_attention_layernorm.weight" for layer in (0, 1)}


@pytest.fixture
def gpu(monkeypatch):
    """What transformers asks finds a GPU that computes with packed weights, and the kernels for it."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (9, 0))
    mxfp4 = "transformers.quantizers.quantizer_mxfp4"
    monkeypatch.setattr(f"{mxfp4}.get_current_accelerator", lambda: torch.device("cuda"))
    for name in ("is_triton_available", "is_kernels_available"):
        monkeypatch.setattr(f"{mxfp4}.{name}", lambda *_: True)


@pytest.mark.parametrize(("kind", "name"), [("fp8-blocks", "DeepseekV3Experts"), ("mxfp4", "GptOssExperts")])
def test_experts_are_plain_and_observed_where_packed_ones_could_run(kind, name, quantised, gpu):
    model = load_model(quantised(kind), "float32")
    assert {type(block.experts).__name__ for block in tiny.moe_blocks(model).values()} == {name}
    with Observer(model, ("core",), ("deployed",)) as observer:
        found = observe_chunk(model, observer, corpus_of(SEQUENCES, [0, 0]), 0, 2)
    assert found.count.sum(-1).flatten().tolist() == [sum(map(len, SEQUENCES)) * tiny.TOP_K] * 2


def test_loading_a_quantised_checkpoint_warns_of_nothing(quantised, recwarn, capfd):
    load_model(quantised("compressed-int4"))
    assert not [str(warning.message) for warning in recwarn if "quantization" in str(warning.message)]
    assert "quantiz" not in capfd.readouterr().err


def test_unquantised_checkpoint_is_loaded_as_ever(saved):
    with dequantising(read_config(saved("olmoe")), open_checkpoint(saved("olmoe"))) as options:
        assert options == {}


# ---------------------------------------------------------------------------------------------------- refusals


def labelled(folder, target, quantisation):
    """A copy of a checkpoint whose config says that it is quantised so."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text()) | {"quantization_config": quantisation}
    (target / "config.json").write_text(json.dumps(config))
    return target


def refusal_of(call, *arguments):
    with pytest.raises(BadInput) as caught:
        call(*arguments)
    (line,) = str(caught.value).splitlines()
    assert "leave evaluate out, or give an unquantised checkpoint" in line
    return line


@pytest.mark.parametrize(
    ("quantisation", "reason"),
    [
        ({"quant_method": "gptq", "bits": 4}, "optimum"),
        ({"quant_method": "gptq"}, "bits"),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "fbgemm_fp8"}, "requires"),
        ({"quant_method": "ours"}, "ours"),
        ({"bits": 4}, "quant_method"),
    ],
    ids=str,
)
def test_methods_this_machine_cannot_load_are_refused_by_the_config_and_on_loading(
    quantisation, reason, saved, tmp_path
):
    folder = labelled(saved("olmoe"), tmp_path / "model", quantisation)
    assert reason in refusal_of(check_loadable, read_config(folder), open_checkpoint(folder))
    assert reason in refusal_of(load_model, folder)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("fp8-blocks-cut-at-the-ends", "not made of whole blocks"), ("compressed-nvfp4", "weight_global_scale")],
)
def test_weights_that_transformers_would_unpack_wrongly_are_refused_by_the_headers(kind, reason, quantised):
    folder = quantised(kind)
    assert reason in refusal_of(check_loadable, read_config(folder), open_checkpoint(folder))
    assert reason in refusal_of(load_model, folder)


def test_plain_weights_under_a_config_of_packed_ones_are_refused_on_loading(saved, tmp_path):
    refusal_of(load_model, labelled(saved("qwen3_moe"), tmp_path / "model", KINDS["compressed-int4"].config))


@pytest.mark.parametrize("kind", LOADABLE)
def test_methods_that_can_be_loaded_are_not_refused(kind, quantised):
    check_loadable(read_config(quantised(kind)), open_checkpoint(quantised(kind)))


def test_memory_that_does_not_suffice_is_not_blamed_on_the_weights(quantised):
    folder = quantised("mxfp4")
    with pytest.raises(torch.OutOfMemoryError), dequantising(read_config(folder), open_checkpoint(folder)):
        raise torch.OutOfMemoryError
