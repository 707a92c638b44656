"""Recipes that a model does not allow are refused by its config and headers alone, and say what to do instead."""

import dataclasses
from pathlib import Path
from typing import Any

import families
import pytest
import remote
import sample
from hub import point_at, serve

from flows.fit import check_fit
from flows.recipe import parse_recipe
from moeprune.checkpoint import Checkpoint
from moeprune.configs import read_routing
from moeprune.errors import BadInput
from moeprune.inspection import written
from moeprune.meta import meta_model
from moeprune.schema import read_plan

CORPUS = {"calibrate": {"corpora": [{"name": "wiki", "source": "wiki.jsonl"}]}}
REAP = CORPUS | {"mask": {"ratio": 0.25}}
AIMER = {"mask": {"ratio": 0.25}, "score": {"criterion": "aimer"}}
WANDA = CORPUS | {"mask": {"sparsity": 0.5}, "score": {"criterion": "wanda"}, "observe": {"sums": ["inputs"]}}
SEARCH = CORPUS | {"mask": {"ratio": 0.25, "selection": "reconstruction"}}
SKIP = AIMER | CORPUS | {"evaluate": {"corpora": [{"name": "w", "source": "w"}], "expert_skipping": True}}
EVERY = {"reap": REAP, "search": SEARCH, "distill": AIMER | CORPUS | {"distill": {}}, "skip": SKIP, "wanda": WANDA}


def fit(family: str, content: dict[str, Any], change_plan: Any = lambda plan, files: plan) -> None:
    """Check a recipe on a family's tiny model, of which there is only a config."""
    config = families.tiny_config(family)
    model = meta_model(config)
    files = Checkpoint(Path(), written(model))
    recipe = parse_recipe({"download": {"source": "model"}, **content}, "recipe")
    check_fit(recipe, model, files, change_plan(read_plan(config), files), read_routing(config))


@pytest.mark.parametrize("content", [*EVERY.values(), AIMER], ids=[*EVERY, "aimer"])
def test_family_like_most_allows_every_recipe(content):
    fit("mixtral", content)


@pytest.mark.parametrize("content", EVERY.values(), ids=EVERY)
def test_model_that_cannot_be_observed_is_refused_for_what_observes_it(content, monkeypatch):
    monkeypatch.setattr("moeprune.interface._KINDS", ())
    with pytest.raises(BadInput, match=r"MixtralForCausalLM.*a weight-only criterion"):
        fit("mixtral", content)
    fit("mixtral", AIMER)


def test_layer_whose_experts_cannot_be_observed_is_refused(monkeypatch):
    from flows.fit import experts_of

    monkeypatch.setattr("flows.fit.experts_of", lambda model: {0: experts_of(model)[0]})
    with pytest.raises(BadInput, match=r"layers \[1, 2\] of MixtralForCausalLM cannot be observed"):
        fit("mixtral", REAP)


@pytest.mark.parametrize("family", ["dbrx", "jetmoe", "llama4_text"])
def test_inputs_of_down_projections_that_cannot_be_seen_are_refused(family):
    with pytest.raises(BadInput, match=r"mask.sparsity cannot be: the inputs.*remove whole experts"):
        fit(family, WANDA)
    with pytest.raises(BadInput, match=r"observe.sums: .*leave 'inputs' out"):
        fit(family, REAP | {"observe": {"sums": ["inputs"]}})


def test_gate_modes_that_need_a_router_which_cannot_be_told_are_refused(monkeypatch):
    softmax = REAP | {"observe": {"gate_modes": ["deployed", "softmax_full"]}}
    fit("mixtral", softmax)
    monkeypatch.setattr("moeprune.observer.routers_of", lambda model, experts: {0: experts[0]})
    with pytest.raises(BadInput, match=r"observe.gate_modes: .* router logits in layers \[1, 2\]"):
        fit("mixtral", softmax)
    fit("mixtral", REAP)


def test_criterion_that_reads_routers_is_refused_where_none_can_be_told():
    def without_routers(plan, files):
        axes = {name: axis for name, axis in plan.axes.items() if not plan.is_router(name, files.tensors[name].shape)}
        return dataclasses.replace(plan, axes=axes)

    router = {"mask": {"ratio": 0.25}, "score": {"criterion": "router_weight_norm"}}
    fit("gpt_oss", router)
    with pytest.raises(BadInput, match=r"'router_weight_norm' cannot be: layer 0 has 0 tensors.*moeprune inspect"):
        fit("mixtral", router, lambda plan, files: dataclasses.replace(plan, axes={}))


def test_criterion_that_reads_experts_is_refused_where_none_can_be_told():
    with pytest.raises(BadInput, match="'aimer' cannot be: layer 0 has no weights of experts"):
        fit("mixtral", AIMER, lambda plan, files: dataclasses.replace(plan, shapes={}))


def test_pattern_that_does_not_fit_the_rows_is_refused():
    with pytest.raises(BadInput, match="sparsity"):
        fit("mixtral", WANDA | {"mask": {"sparsity": "5:7"}})


def test_expert_skipping_of_a_model_that_does_not_choose_two_is_refused():
    with pytest.raises(BadInput, match="chooses 1"):
        fit("zaya", SKIP)


def test_experts_elsewhere_under_the_same_count_are_told(capsys):
    fit("jetmoe", REAP)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: ") and "self_attention.experts" in line and "not observed" in line
    fit("mixtral", REAP)
    assert not capsys.readouterr().err


def test_run_pattern_that_does_not_fit_a_model_of_the_hub_is_refused_before_its_weights_are_fetched(
    project, moeprune, monkeypatch
):
    with serve({"owner/model": {"a" * 40: project / "model"}}) as hub:
        point_at(monkeypatch, hub.url, project.parent / "cache")
        answer = moeprune(
            "run", "params/quick.yaml", "--set", "download.source=owner/model", "--set", 'mask.sparsity="5:7"',
            "--set", "score.criterion=wanda", "--set", "observe.sums=[inputs]",
        )  # fmt: skip
        assert not list((project.parent / "cache").rglob("*.safetensors"))
    assert answer.status == 2 and "5:7" in answer.err and len(answer.err.splitlines()) == 1


def test_run_uneven_counts_of_remote_code_are_refused(project, moeprune):
    remote.write_deepseek(project / "remote")
    sample.write_tokenizer(project / "remote")
    words = ["download.source=remote", "download.trust_remote_code=true", "mask.selection=across_layers"]
    answer = moeprune("run", "params/quick.yaml", *(word for change in words for word in ("--set", change)))
    assert answer.status == 2 and "transformers' own" in answer.err and "uniform" in answer.err, answer.err
