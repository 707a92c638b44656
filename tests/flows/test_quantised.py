"""Quantised checkpoints, from the recipe to the measured result; and what cannot be done with them, said beforehand."""

import json
import math
from pathlib import Path
from typing import Any

import families
import pytest
import quantised_kinds
import sample

from flows.fit import check_fit
from flows.recipe import parse_recipe
from moeprune.checkpoint import Checkpoint, open_checkpoint
from moeprune.configs import read_routing
from moeprune.errors import BadInput
from moeprune.inspection import written
from moeprune.meta import meta_model
from moeprune.schema import read_plan

GPTQ = {"quant_method": "gptq", "bits": 4}
FP8 = quantised_kinds.KINDS["fp8-blocks"].config
CORPUS = {"calibrate": {"corpora": [{"name": "wiki", "source": "wiki.jsonl"}]}, "mask": {"ratio": 0.25}}
AIMER = {"mask": {"ratio": 0.25}, "score": {"criterion": "aimer"}}
EVALUATED = AIMER | {"evaluate": {"corpora": [{"name": "wiki", "source": "wiki.jsonl"}]}}
WANDA = CORPUS | {"mask": {"sparsity": 0.5}, "score": {"criterion": "wanda"}, "observe": {"sums": ["inputs"]}}


def fit(content: dict[str, Any], quantisation: dict[str, Any] | None, trusted: bool = False) -> None:
    """Check a recipe on a tiny model of whose files only the config is there."""
    config = families.tiny_config("mixtral")
    if quantisation:
        config.quantization_config = quantisation
    model = meta_model(config)
    files = Checkpoint(Path(), written(model))
    download = {"source": "model", "trust_remote_code": trusted}
    recipe = parse_recipe({"download": download, **content}, "recipe")
    check_fit(recipe, model, files, read_plan(config), read_routing(config))


@pytest.mark.parametrize("content", [CORPUS, EVALUATED], ids=["observe", "evaluate"])
def test_what_runs_a_model_that_this_machine_cannot_load_is_refused(content):
    with pytest.raises(BadInput, match=r"weights quantised by 'gptq' cannot be loaded here \(.*leave evaluate out"):
        fit(content, GPTQ)
    fit(content, FP8)
    fit(AIMER, GPTQ)


@pytest.mark.parametrize("quantisation", [GPTQ, FP8], ids=["gptq", "fp8"])
def test_distilling_quantised_weights_is_refused(quantisation):
    with pytest.raises(BadInput, match=r"distill: .*leave distill out"):
        fit(AIMER | CORPUS | {"distill": {}}, quantisation)
    fit(AIMER | CORPUS | {"distill": {}}, None)


@pytest.mark.parametrize("trusted", [True, False])
def test_projections_are_asked_for_with_the_trust_the_recipe_gives(trusted, monkeypatch):
    told = []
    for module in ("flows.fit", "moeprune.methods"):
        from moeprune.projections import projections

        monkeypatch.setattr(f"{module}.projections", lambda c, trust=False: told.append(trust) or projections(c, trust))
    fit(WANDA, None, trusted)
    assert told == [trusted] * 2


@pytest.mark.parametrize("kind", ["fp8-blocks", "mxfp4", "compressed-int4"])
def test_run_quantised_model_is_observed_pruned_and_measured(kind, project, run):
    folder = project / "packed"
    vocabulary = sample.write_tokenizer(folder)
    quantised_kinds.write(kind, folder, vocab_size=vocabulary, bos_token_id=0, eos_token_id=0)
    answer = run("params/whole.yaml", "download.source=packed", "evaluate.tasks=[]", "evaluate.generations=0")
    assert "observe wiki" in answer.keys and "evaluate pruned" in answer.keys
    for side in ("base", "pruned"):
        for name in sample.CORPORA:
            assert math.isfinite(answer.json["metrics"][side][f"perplexity/{name}"]["value"])
    pruned, source = open_checkpoint(Path(answer.json["checkpoint"])), open_checkpoint(folder)
    assert pruned.config["quantization_config"] == source.config["quantization_config"]
    assert {info.dtype for info in pruned.tensors.values()} == {info.dtype for info in source.tensors.values()}
    experts = [sum(info.bytes for name, info in c.tensors.items() if ".experts." in name) for c in (source, pruned)]
    assert experts[1] == experts[0] * 3 // 4


def test_run_model_this_machine_cannot_load_is_refused_before_any_work(project, moeprune):
    config = json.loads((project / "model/config.json").read_text()) | {"quantization_config": GPTQ}
    (project / "model/config.json").write_text(json.dumps(config))
    answer = moeprune("run", "params/quick.yaml")
    assert answer.status == 2 and "'gptq' cannot be loaded here" in answer.err
    assert len(answer.err.splitlines()) == 1 and not (project / ".moeprune/calibrate").exists()
