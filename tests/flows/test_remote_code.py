"""A family that brings its own code, from download to evaluation; and that none of it runs without the user's word."""

import json
import math
from pathlib import Path

import pytest
import remote
import sample

RECIPE = "params/remote.yaml"
CORPORA = [{"name": name, "source": f"sources/{name}.heldout.jsonl.gz"} for name in sample.CORPORA]


@pytest.fixture
def theirs(project: Path) -> Path:
    """A project whose recipe prunes a tiny DeepSeekMoE; the folder of the checkpoint."""
    folder = project / "theirs"
    vocabulary = sample.write_tokenizer(folder)
    remote.write_deepseek(folder, "60KB", vocab_size=vocabulary, bos_token_id=0, eos_token_id=0)
    sample.write_recipe(
        project / RECIPE,
        {"corpora": CORPORA, "sequence_length": 32},
        download={"source": "theirs", "trust_remote_code": True},
        mask={"selection": "tb_coverage"},
    )
    return folder


def test_run_prunes_and_measures_a_family_with_its_own_code(theirs, run):
    answer = run(RECIPE)
    assert list(answer.json["stages"]) == ["download", "calibrate", "observe", "score", "mask", "prune", "evaluate"]
    for side in ("base", "pruned"):
        for name in sample.CORPORA:
            assert math.isfinite(answer.json["metrics"][side][f"perplexity/{name}"]["value"])
    checkpoint = Path(answer.json["checkpoint"])
    for path in theirs.glob("*.py"):
        assert (checkpoint / path.name).read_bytes() == path.read_bytes()
    model = remote.load(checkpoint)
    assert [len(model.model.layers[layer].mlp.experts) for layer in remote.LAYERS] == [6, 6]
    assert json.loads((checkpoint / "config.json").read_text())["n_routed_experts"] == 6
    assert run(RECIPE).missed == []
    code = theirs / "modeling_deepseek.py"
    code.write_text(code.read_text() + "# an edit\n")
    assert "observe wiki" in run(RECIPE).missed, "the code is part of what the checkpoint is"


@pytest.mark.parametrize(
    "changes",
    [
        ["mask.options={fill: reconstruction, fill_tokens: 64}"],
        ["mask.selection=hope", "observe.sums=[pairs]"],
        ["score.criterion=aimer", "mask.selection=uniform"],
        ["distill={epochs: 1, learning_rate: 1.0e-3}"],
    ],
    ids=" ".join,
)
def test_run_other_ways_work_for_such_a_family_too(changes, theirs, run):
    checkpoint = Path(run(RECIPE, *changes, "evaluate=null").json["checkpoint"])
    assert remote.load(checkpoint).config.n_routed_experts == 6


def test_run_that_would_zero_weights_inside_such_experts_is_refused_at_once(theirs, moeprune):
    changes = ["score.criterion=wanda", "observe.sums=[inputs]", "mask={sparsity: 0.5}"]
    answer = moeprune("run", RECIPE, *(word for change in changes for word in ("--set", change)), "--json")
    assert answer.status == 2 and answer.err.count("\n") == 1
    assert "remove whole experts instead (mask.ratio)" in answer.json["error"]


def test_run_without_trust_is_refused_and_runs_none_of_the_code(theirs, project, moeprune):
    for path in theirs.glob("*.py"):
        path.write_text(f"open({str(project / 'ran')!r}, 'w')\n" + path.read_text())
    answer = moeprune("run", RECIPE, "--set", "download.trust_remote_code=false", "--json")
    assert answer.status == 2
    assert "set download.trust_remote_code: true" in answer.json["error"] and answer.err.count("\n") == 1
    assert not (project / "ran").exists()
    assert not [stage for stage in ("calibrate", "observe", "prune") if (project / ".moeprune" / stage).exists()]
