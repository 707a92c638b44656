"""A model on the Hub is judged by its files' headers before its weights are fetched, where the Hub gives them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hub import Fault, Hub, point_at, serve
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moeprune.checkpoint import open_checkpoint
from moeprune.file_plan import read_file_plan
from moeprune.sizes import pruned_bytes

SOURCE = ("--set", "download.source=owner/model")
HEADERS = r"GET /.*\.safetensors$"


@pytest.fixture
def model(project) -> Path:
    """The project's model, to be changed before it is asked for."""
    return Path(shutil.copytree(project / "model", project.parent / "on-hub"))


@pytest.fixture
def hub(project, model, monkeypatch):
    with serve({"owner/model": {"a" * 40: model}}) as running:
        point_at(monkeypatch, running.url, project.parent / "cache")
        yield running


@pytest.fixture
def plan(project, moeprune):
    """What `moeprune plan` says of the model on the Hub, and of a folder with the same files."""

    def call(*changes: str) -> tuple[str, str]:
        words = [word for change in changes for word in ("--set", change)]
        answers = [moeprune("plan", "params/quick.yaml", *source, *words) for source in (SOURCE, ())]
        assert all(answer.status == 0 for answer in answers), answers
        assert not list((project.parent / "cache").rglob("*.safetensors"))
        return answers[0].out, answers[1].out

    return call


def size_with(model: Path, keep: int) -> int:
    checkpoint = open_checkpoint(model)
    return pruned_bytes(checkpoint, read_file_plan(checkpoint), keep)


def test_plan_tells_disk_and_memory_of_a_model_on_the_hub(hub: Hub, model, plan):
    on_hub, in_folder = plan()
    (line,) = [line for line in in_folder.splitlines() if line.startswith("at most ")]
    assert line in on_hub.splitlines()
    assert "B would be fetched from the Hub" in on_hub and "fetched" not in in_folder


def test_plan_after_the_run_tells_the_same_and_that_nothing_is_fetched(hub: Hub, model, plan, run, moeprune):
    other = "score.criterion=frequency"  # for which there is something left to do
    (line,) = [line for line in plan(other)[0].splitlines() if line.startswith("at most ")]
    run("params/quick.yaml", "download.source=owner/model")
    shutil.rmtree(model.parent / "cache")
    after = moeprune("plan", "params/quick.yaml", *SOURCE, "--set", other).out
    assert line in after.splitlines() and "fetched" not in after


@pytest.mark.parametrize("keep", [3, 6])
def test_byte_budget_of_a_model_on_the_hub_is_told_before_it_is_fetched(keep: int, hub: Hub, model, plan):
    changes = ("mask.ratio=null", f"mask.bytes={size_with(model, keep)}")
    (line,) = [line for line in plan(*changes)[0].splitlines() if line.startswith("at most ")]
    assert line in plan("mask.ratio=null", f"mask.keep={keep}")[0].splitlines()


def test_byte_budget_that_no_number_of_experts_meets_is_refused_before_any_weight_is_fetched(
    hub: Hub, model, project, moeprune
):
    answer = moeprune("run", "params/quick.yaml", *SOURCE, "--set", "mask.ratio=null", "--set", "mask.bytes=1000")
    assert answer.status == 2 and "the fewest the router can work with" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not list((project.parent / "cache").rglob("*.safetensors"))


def test_files_that_are_not_those_of_their_config_are_refused_before_any_weight_is_fetched(
    hub: Hub, model, project, moeprune
):
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(model, max_shard_size="1GB")
    for path in model.glob("model*"):
        if path.name != "model.safetensors":
            path.unlink()
    state = load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.experts.9.up_proj.weight"
    save_file(state | {name: torch.zeros(2, 2)}, model / "model.safetensors", {"format": "pt"})
    answer = moeprune("plan", "params/quick.yaml", *SOURCE)
    assert answer.status == 2 and name in answer.err and len(answer.err.splitlines()) == 1
    assert not list((project.parent / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("status", [429, 503])
def test_headers_that_the_hub_does_not_give_now_leave_the_config_to_judge_by(
    status: int, hub: Hub, project, moeprune, run
):
    hub.faults.append(Fault(HEADERS, status))
    answer = moeprune("plan", "params/quick.yaml", *SOURCE)
    assert answer.status == 0 and "disk and memory can be told when the model has been downloaded" in answer.out
    refused = moeprune("plan", "params/quick.yaml", *SOURCE, "--set", "mask.ratio=null", "--set", "mask.keep=99")
    assert refused.status == 2 and "mask.keep: 99 of 8" in refused.err
    hub.faults.clear()
    config = json.loads((project / "model/config.json").read_text())
    budget = size_with(project / "model", 4)
    hub.faults.append(Fault(HEADERS, status, times=1))
    changes = ("download.source=owner/model", "mask.ratio=null", f"mask.bytes={budget}")
    pruned = run("params/quick.yaml", *changes).json["stages"]["prune"]["artifacts"][0]["path"]
    after = json.loads((project / ".moeprune" / pruned / "config.json").read_text())
    assert (config["num_experts"], after["num_experts"]) == (8, 4)


def test_headers_in_the_cache_are_enough_when_the_hub_is_gone(hub: Hub, project, moeprune, run, monkeypatch):
    run("params/quick.yaml", "download.source=owner/model")
    shutil.rmtree(project / ".moeprune/download")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    answer = moeprune("run", "params/quick.yaml", *SOURCE, "--json")
    assert answer.status == 0 and answer.missed == ["download"], answer.err
