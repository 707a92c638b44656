"""A whole run that keeps more experts in one layer than in another."""

import io
import json
import shutil
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from flows.command import main

CHANGES = (
    "mask.selection=across_layers",
    "mask.ratio=0.25",
    "mask.options={normalise: share}",
    "distill={epochs: 1}",
    "evaluate.expert_skipping=true",
)
WORDS = [word for change in CHANGES for word in ("--set", change)]


@pytest.fixture(scope="module")
def uneven(template, tmp_path_factory, server):
    """A project after a run by the rule, with distilling and dynamic skipping, and the JSON that the run wrote."""
    folder = tmp_path_factory.mktemp("uneven") / "project"
    shutil.copytree(template, folder)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.chdir(folder)
        patch.setattr("moeprune.footprint.measure", lambda *_: {})
        patch.setattr(sys, "argv", ["moeprune", "run", "params/whole.yaml", *WORDS, "--json"])
        with suppress(SystemExit):
            main()
    content = json.loads(out.getvalue().splitlines()[-1])
    assert content["status"] == "done", content["error"]
    return folder, content


def made(uneven, word: str, of: str = "") -> Path:
    folder, content = uneven
    return folder / ".moeprune" / next(one["path"] for one in content["stages"][word]["artifacts"] if one["of"] == of)


def load(folder: Path):
    model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    MODEL_FOR_CAUSAL_LM_MAPPING._extra_content.clear()  # where it is noted for the process: other tests list families
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    return model


def test_run_across_layers_prunes_and_measures_what_it_kept(uneven):
    kept = json.loads((made(uneven, "mask") / "mask.json").read_text())["kept"]
    counts = [len(ids) for ids in kept.values()]
    assert sum(counts) == 12 and len(set(counts)) == 2  # 6 of 8 on average
    config = json.loads((made(uneven, "prune") / "config.json").read_text())
    assert list(config["moeprune"]["experts"].values()) == counts
    memory = {
        of: json.loads((made(uneven, "evaluate", of) / "report.json").read_text())["memory"]
        for of in ("base", "pruned")
    }
    tensors = [tensor for path in made(uneven, "prune").glob("*.safetensors") for tensor in load_file(path).values()]
    assert memory["pruned"]["parameters"] == sum(tensor.numel() for tensor in tensors)
    # A token is given two experts of each model; beside experts, routers have lost four rows, each 32 wide.
    assert memory["base"]["active_parameters"] - memory["pruned"]["active_parameters"] == 4 * 32
    assert uneven[1]["metrics"].keys() >= {"delta", "delta_distilled", "delta_skipped"}


def test_run_across_layers_leaves_checkpoints_that_transformers_loads_by_the_code_beside_them(uneven):
    for word in ("prune", "distill"):
        folder = made(uneven, word)
        model = load(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer("the river of", return_tensors="pt")["input_ids"]
        assert model.generate(ids, max_new_tokens=3).shape == (1, ids.shape[1] + 3)


def test_export_of_an_uneven_distilled_checkpoint_loads_and_says_how(uneven, moeprune, monkeypatch, tmp_path):
    monkeypatch.chdir(uneven[0])
    answer = moeprune("export", uneven[1]["run_id"], str(tmp_path / "smaller"))
    assert answer.status == 0, answer.err
    card = ModelCard.load(tmp_path / "smaller/README.md")
    assert {"custom_code", "distillation", "expert-pruning"} <= set(card.data.tags)
    assert 'from_pretrained("smaller", dtype="auto", trust_remote_code=True)' in card.text
    assert "vLLM and llama.cpp cannot read it" in card.text and "vllm serve" not in card.text
    assert "then trained all weights: epochs 1" in card.text
    counts = sorted({len(ids) for ids in json.loads((made(uneven, "mask") / "mask.json").read_text())["kept"].values()})
    assert f"keeps between {counts[0]} and {counts[1]} of 8 experts" in card.text
    ids = AutoTokenizer.from_pretrained(tmp_path / "smaller")("the river of", return_tensors="pt")["input_ids"]
    ours, stores = load(tmp_path / "smaller").eval(), load(made(uneven, "distill")).eval()
    assert torch.equal(ours(ids).logits, stores(ids).logits)


def test_run_of_what_was_pruned_unequally_is_refused_before_any_work(uneven, moeprune, monkeypatch):
    monkeypatch.chdir(uneven[0])
    answer = moeprune("run", "params/quick.yaml", "--set", f"download.source={made(uneven, 'prune')}")
    assert answer.status == 2 and "different numbers of experts already" in answer.err
    assert len(answer.err.splitlines()) == 1


def test_plan_after_a_run_across_layers_has_nothing_to_do(uneven, moeprune, monkeypatch):
    monkeypatch.chdir(uneven[0])
    answer = moeprune("plan", "params/whole.yaml", *WORDS)
    assert answer.status == 0 and " run " not in answer.out, answer.out
