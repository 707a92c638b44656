"""Every method as users run it, on a small project: what each needs, makes and reports."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sample
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from moeprune.masks import Mask

KEEP = sample.EXPERTS * 3 // 4


def folder_of(project: Path, answer: Any, title: str) -> Path:
    stage, _, _ = title.partition(" ")
    return project / ".moeprune" / stage / answer.keys[title]


def manifest_of(project: Path, answer: Any, title: str) -> dict[str, Any]:
    return json.loads((folder_of(project, answer, title) / "manifest.json").read_text())


def mask_of(project: Path, answer: Any, title: str = "mask") -> Mask:
    return Mask.from_json((folder_of(project, answer, title) / "mask.json").read_text())


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        (["score.criterion=mone"], []),
        (["score.criterion=reap", "score.super_experts=all"], []),
        (["score.criterion=easy_ep", "score.combine=normalised"], []),
        (["score.criterion=reap", "score.weights={wiki: 3, code: 1}"], []),
        (["score.criterion=router_weight_norm"], ["calibrate", "observe"]),
        (["score.criterion=expert_weight_similarity"], ["calibrate", "observe"]),
        (["mask.selection=tb_coverage"], []),
        (["mask.selection=hope", "observe.sums=[pairs]"], ["score"]),
        (["mask.selection=reconstruction"], ["observe", "score"]),
        (["mask.selection=reconstruction", "mask.options={form: progressive, search: greedy}"], ["observe", "score"]),
    ],
    ids=" ".join,
)
def test_run_method_prunes_and_runs_only_the_stages_it_needs(changes: list[str], absent: list[str], project, run):
    answer = run("params/quick.yaml", *changes)
    kept = mask_of(project, answer)
    assert set(kept.counts.values()) == {KEEP}
    assert {"calibrate", "observe", "score"} - set(answer.json["stages"]) == set(absent)
    again = run("params/quick.yaml", *changes)
    assert again.missed == []


def test_run_tb_coverage_with_reconstruction_shares_the_search(project, run):
    searched = run("params/quick.yaml", "mask.selection=reconstruction")
    one = run("params/quick.yaml", "mask.selection=tb_coverage", "mask.options={fill: reconstruction, protected: 2}")
    assert one.keys["mask reconstruction"] == searched.keys["mask"]
    assert "mask reconstruction" not in one.missed and "mask" in one.missed
    other = run("params/quick.yaml", "mask.selection=tb_coverage", "mask.options={fill: reconstruction, protected: 0}")
    assert mask_of(project, other) == mask_of(project, searched), "nothing protected is what the search keeps"


def test_run_auto_criterion_follows_the_objective_and_says_why(project, run, moeprune):
    auto = run("params/quick.yaml", "score.criterion=auto", "score.objective=task-agnostic")
    named = run("params/quick.yaml", "score.criterion=man")
    assert auto.keys["score man"] == named.keys["score man"] and named.missed == []
    assert "man: a task-agnostic objective" in auto.err and "man: a task-agnostic objective" in auto.out
    tags = MlflowClient(f"sqlite:///{project}/.moeprune/mlflow.db").get_run(auto.json["run_id"]).data.tags
    assert tags["criterion.reason"].startswith("man: ")
    specific = run("params/quick.yaml", "score.criterion=auto", "score.objective=task-specific")
    assert "score gate_weighted_ean" in specific.keys
    answer = moeprune("run", "params/quick.yaml", "--set", "score.criterion=auto")
    assert answer.status == 2 and "task-agnostic" in answer.err


@pytest.mark.parametrize("order", ["as_printed", "sequential"])
@pytest.mark.parametrize("pattern", ["0.5", '"2:4"'])
def test_run_weight_sparsity_keeps_every_expert_and_zeroes_half_of_each(pattern: str, order: str, project, run):
    changes = ["score.criterion=moe_pruner", f"mask.sparsity={pattern}", f"mask.order={order}", "observe.sums=[inputs]"]
    answer = run("params/quick.yaml", *changes)
    facts = manifest_of(project, answer, "prune")["facts"]
    files = Path(answer.json["checkpoint"]).glob("*.safetensors")
    tensors = {name: tensor for path in files for name, tensor in load_file(path).items()}
    experts = {name: tensor for name, tensor in tensors.items() if ".experts." in name}
    assert len(experts) == 3 * sample.EXPERTS * sample.LAYERS
    assert all((tensor == 0).float().mean() == 0.5 for tensor in experts.values())
    assert not any((tensor == 0).all() for tensor in tensors.values() if tensor.dim() > 1)
    mask = json.loads((folder_of(project, answer, "mask") / "mask.json").read_text())
    read = "observe" if order == "as_printed" else "calibrate"
    assert mask["statistics"] == [manifest_of(project, answer, f"{read} {name}")["digest"] for name in sample.CORPORA]
    sizes = facts["sizes"]
    assert sizes["zeros"] == sum(int((tensor == 0).sum()) for tensor in experts.values())
    assert sizes["zstd_bytes"] < sizes["dense_bytes"] == facts["bytes"]
    assert run("params/quick.yaml", *changes).missed == []


def test_run_wanda_and_moe_pruner_differ_only_by_the_gate(project, run):
    changes = ["mask.sparsity=0.5", "observe.sums=[inputs]"]
    gated = run("params/quick.yaml", "score.criterion=moe_pruner", *changes)
    plain = run("params/quick.yaml", "score.criterion=wanda", *changes)
    assert gated.keys["observe wiki"] == plain.keys["observe wiki"]
    digests = [manifest_of(project, answer, "prune")["digest"] for answer in (gated, plain)]
    assert digests[0] != digests[1], "the gate made no difference"


@pytest.mark.parametrize(
    "changes",
    [["mask.ratio=0.5"], ["score.criterion=moe_pruner", "mask.sparsity=0.5", "observe.sums=[inputs]"]],
    ids=["experts", "weights"],
)
def test_run_distil_trains_the_pruned_model_and_logs_its_curve(changes: list[str], project, run):
    answer = run("params/whole.yaml", "distill={epochs: 2, learning_rate: 1.0e-3}", *changes)
    assert Path(answer.json["checkpoint"]) == folder_of(project, answer, "distill")
    curve = manifest_of(project, answer, "distill")["facts"]["curve"]
    assert curve[-1]["loss"] < curve[0]["loss"]
    metrics = answer.json["metrics"]
    assert list(metrics) == ["base", "pruned", "distilled", "delta", "delta_distilled"]
    assert metrics["delta_distilled"]["log_perplexity/wiki"] != metrics["delta"]["log_perplexity/wiki"]
    client = MlflowClient(f"sqlite:///{project}/.moeprune/mlflow.db")
    parent = client.get_run(answer.json["run_id"])
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    (child,) = [child for child in children if child.data.tags["stage"] == "distill"]
    assert [point.step for point in client.get_metric_history(child.info.run_id, "loss")] == [r["step"] for r in curve]
    assert run("params/whole.yaml", "distill={epochs: 2, learning_rate: 1.0e-3}", *changes).missed == []


def test_runs_compare_models_with_sparse_and_with_fewer_experts(project, run, moeprune):
    sparse = run("params/whole.yaml", "score.criterion=wanda", "mask.sparsity=0.5", "observe.sums=[inputs]")
    fewer = run("params/whole.yaml", "mask.selection=hope", "observe.sums=[pairs]")
    answer = moeprune("runs", "compare", sparse.json["run_id"], fewer.json["run_id"])
    assert answer.status == 0 and "log_perplexity/wiki" in answer.out and "of weights and of experts" in answer.out
    listed = moeprune("runs", "list").out
    assert "wanda" in listed and "sparsity 0.5" in listed and "hope" in listed and "reap" not in listed


def test_run_expert_skipping_is_measured_beside_the_pruned_model(project, run):
    answer = run("params/whole.yaml", "evaluate.expert_skipping=true")
    metrics = answer.json["metrics"]
    assert list(metrics) == ["base", "pruned", "skipped", "delta", "delta_skipped"]
    assert 1 < metrics["skipped"]["experts_per_token"]["value"] < sample.TOP_K
    assert "observe pruned wiki" in answer.keys and "experts_per_token" in answer.out
    assert metrics["delta_skipped"]["log_perplexity/wiki"] != metrics["delta"]["log_perplexity/wiki"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["score.criterion=moe_pruner"], "give mask.sparsity"),
        (["mask.sparsity=0.5"], "choose moe_pruner or wanda"),
        (["score.criterion=moe_pruner", "mask.sparsity=2:4", "observe.sums=[inputs]"], "quote"),
        (["score.criterion=moe_pruner", "mask.sparsity=0.5"], "observe.sums: 'moe_pruner' needs inputs"),
        (["mask.selection=hope"], "observe.sums: 'hope' needs pairs"),
        (["score.weights={wiki: 1}"], "give one for each of the corpora code, wiki"),
        (["score.combine=max", "score.weights={wiki: 1, code: 1}"], "other than by max"),
        (["score.objective=task-agnostic"], "set criterion: auto"),
        (["mask.options={fill: x}"], "mask.options"),
        (["mask.order=sequential"], "mask.order is for mask.sparsity"),
        (["score.super_experts=some"], "score.super_experts"),
        (["score.gate_mode=softmax_topk"], "observe.gate_modes: score.gate_mode is softmax_topk"),
        (["mask.selection=hope", "observe.sums=[pairs]", "score.combine=mean"], "score.combine: selection 'hope' does"),
        (["mask.selection=tb_coverage", "score.weights={wiki: 1, code: 2}"], "with selection 'tb_coverage' does not"),
        (["score.criterion=aimer", "score.combine=rank"], "score.combine: criterion 'aimer' does not read it"),
        (
            ["score.criterion=wanda", "mask.sparsity=0.5", "observe.sums=[inputs]", "score.super_experts=all"],
            "score.super_experts: criterion 'wanda' does not read it",
        ),
        (["score.criterion=unified", "score.options={b: 1, a: 0, c: 0}"], "scores every expert alike"),
        (["mask.selection=tb_coverage", "mask.options={protected: -1}"], "mask.options.protected"),
        (["mask.selection=reconstruction", "mask.options={corpus: wikipedia}"], "did you mean 'wiki'"),
        (["score.criterion=aimer", "calibrate=null", "score.super_experts=all"], "score.super_experts needs a calib"),
        (["score.criterion=moe_pruner", 'mask.sparsity="3:5"', "observe.sums=[inputs]"], "3:5 does not fit rows of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_run_what_does_not_go_together_is_refused_in_one_line(changes: list[str], words: str, project, moeprune):
    answer = moeprune("run", "params/quick.yaml", *(word for change in changes for word in ("--set", change)))
    assert answer.status == 2 and words in answer.err and len(answer.err.splitlines()) == 1, answer.err
    assert not (project / ".moeprune/calibrate").exists()


def test_score_and_mask_from_sums_need_no_model(project, run, monkeypatch):
    """What the docs say reads sums is computed after the model is gone; of the model only its config is left."""
    from flows.recipe import read_recipe
    from moeprune import criteria, selection
    from tasks import mask, score
    from tasks.artifacts import Artifact, Store

    answer = run("params/quick.yaml", "observe.sums=[vectors, pairs, inputs, ratios]")
    store = Store(project / ".moeprune")

    def artifact(title: str) -> Artifact:
        stage, _, _ = title.partition(" ")
        key, digest = answer.keys[title], manifest_of(project, answer, title)["digest"]
        return Artifact(stage=stage, key=key, digest=digest)

    base, statistics = artifact("download"), {name: artifact(f"observe {name}") for name in sample.CORPORA}
    shutil.rmtree(project / "model")
    for weights in store.folder(base).glob("*.safetensors*"):
        weights.unlink()
    runtime = read_recipe(Path("params/quick.yaml")).runtime
    from_sums = [word for word in criteria.words() if criteria.find(word).reads == "statistics"]
    assert len(from_sums) >= 11
    scores = {}
    for word in from_sums:
        params = score.ScoreParams(criterion=word)
        step = score.step(params, base, statistics)
        assert set(step.inputs) == {"observe.0", "observe.1"}
        scores[word] = score.score.fn(step=step, runtime=runtime, params=params, trust_remote_code=False)
    rules = [word for word in selection.words() if "model" not in selection.find(word).reads]
    assert set(rules) >= {"uniform", "tb_coverage", "hope"}
    for word in rules:
        params = mask.MaskParams(ratio=0.25, selection=word)
        step = mask.step(params, KEEP, base, scores["reap"], statistics)
        made = mask.mask.fn(step=step, runtime=runtime, params=params, trust_remote_code=False)
        kept = Mask.from_json((store.folder(made) / "mask.json").read_text())
        assert set(kept.counts.values()) == {KEEP}


def test_run_with_a_criterion_of_ones_own_needs_one_file(project, process):
    """A file in a folder of the user's own is a criterion like any other, and its code decides its key."""
    folder = project / "criteria"
    folder.mkdir()
    file = folder / "loudest.py"
    file.write_text(
        '"""The loudest experts, by their largest activation."""\n\n'
        "def score(statistics, *, sign: float = 1.0):\n"
        '    """Largest absolute element of any output; higher = keep."""\n'
        '    return sign * statistics.sum_of("max_abs_activation").amax(0)\n'
    )
    words = ["run", "params/quick.yaml", "--set", "score.criterion=loudest", "--json"]
    answer = process(project, *words, MOEPRUNE_CRITERIA=str(folder))
    assert answer.status == 0, answer.err
    upside_down = process(project, *words, "--set", "score.options={sign: -1.0}", MOEPRUNE_CRITERIA=str(folder))
    kept, others = mask_of(project, answer), mask_of(project, upside_down)
    assert all(set(kept.removed(layer)) <= set(others.kept[layer]) for layer in kept.kept)
    file.write_text(file.read_text().replace("return sign *", "return 2 * sign *"))
    again = process(project, *words, MOEPRUNE_CRITERIA=str(folder))
    assert again.missed[0] == "score loudest" and mask_of(project, again) == kept
    assert process(project, *words).status == 2, "without the folder there is no such criterion"
