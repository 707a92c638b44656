"""A whole run, as users start it, and what DVC, MLflow and git hold afterwards."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sample
from hub import closed_port, point_at, serve
from mlflow.entities import LoggedModelStatus
from mlflow.tracking import MlflowClient
from pyarrow import parquet

from moeprune.masks import Mask

WORDS = ["download", "calibrate", "observe", "score", "mask", "prune", "evaluate"]


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def client_of(project: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{project}/.moeprune/mlflow.db")


def children_of(client: MlflowClient, run_id: str) -> dict[str, Any]:
    parent = client.get_run(run_id)
    found = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    return {child.info.run_name: child for child in found}


def test_run_json_has_every_stage_and_artifact(finished):
    project, answer = finished
    result = answer.json
    assert list(result) == ["run_id", "status", "error", "stages", "metrics", "checkpoint"]
    assert (result["status"], result["error"]) == ("done", None)
    assert list(result["stages"]) == WORDS
    labels = {word: [artifact["of"] for artifact in stage["artifacts"]] for word, stage in result["stages"].items()}
    assert labels["calibrate"] == labels["observe"] == list(sample.CORPORA)
    assert labels["evaluate"] == ["base", "pruned"]
    for word, stage in result["stages"].items():
        assert stage["cache"] == "miss" and stage["seconds"] > 0
        for artifact in stage["artifacts"]:
            assert artifact["path"] == f"{word}/{artifact['key']}" and len(artifact["key"]) == 64
            manifest = json.loads((project / ".moeprune" / artifact["path"] / "manifest.json").read_text())
            assert (manifest["stage"], manifest["key"], manifest["of"]) == (word, artifact["key"], artifact["of"])
    assert set(result["metrics"]) == {"base", "pruned", "delta"}
    for metrics in result["metrics"].values():
        for metric in metrics.values():
            assert set(metric) == {"value", "stderr", "n"}
    assert set(result["metrics"]["base"]) == set(result["metrics"]["pruned"]) >= {"perplexity/wiki", "choice/acc"}
    assert result["metrics"]["delta"]["choice/acc"]["n"] == 24


def test_run_checkpoint_loads_with_transformers_alone_and_has_the_experts_of_the_mask(finished):
    project, answer = finished
    script = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "ids = AutoTokenizer.from_pretrained(sys.argv[1])('the river of a small town', return_tensors='pt')\n"
        "assert model(**ids).logits.isfinite().all()\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('moeprune', 'tasks', 'flows')]\n"
        "print(model.config.num_experts)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, answer.json["checkpoint"]], capture_output=True, text=True, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sample.EXPERTS * 3 // 4
    (mask,) = answer.json["stages"]["mask"]["artifacts"]
    kept = Mask.from_json((project / ".moeprune" / mask["path"] / "mask.json").read_text())
    assert set(kept.counts.values()) == {int(done.stdout)}


def test_run_manifests_name_inputs_code_and_producer(finished):
    project, answer = finished
    keys = answer.keys
    manifest = json.loads((project / ".moeprune/score" / keys["score reap"] / "manifest.json").read_text())
    assert {entry["key"] for entry in manifest["inputs"].values()} == {keys["observe wiki"], keys["observe code"]}
    producer = manifest["producer"]
    assert producer["git_commit"] == sample.git(project, "rev-parse", "HEAD").strip()
    assert producer["runtime"]["batch_size"] == 4 and "store" not in producer["runtime"]
    assert producer["peak_memory_bytes"] > 1e7 and producer["flow_run"]
    assert "batch_size" not in json.dumps(manifest["params"])


def test_run_memory_is_measured(finished):
    project, answer = finished
    reports = [
        json.loads((project / ".moeprune/evaluate" / answer.keys[f"evaluate {of}"] / "report.json").read_text())
        for of in ("base", "pruned")
    ]
    assert all(report["memory"]["forward_peak_anonymous"] > 0 for report in reports)
    assert reports[1]["memory"]["disk"] < reports[0]["memory"]["disk"]


def test_run_git_sees_nothing_but_data_dvc(finished):
    project, _ = finished
    assert sample.git(project, "status", "--porcelain", "--untracked-files=all").split() == ["??", "data.dvc"]


def test_run_dvc_holds_the_corpora_and_the_mask(finished):
    project, answer = finished
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "ls", ".", "data", "--dvc-only", "--recursive"],
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    store, keys = project / ".moeprune", answer.keys
    expected = {
        f"corpora/{name}-{keys[f'calibrate {name}'][:8]}.safetensors": store
        / f"calibrate/{keys[f'calibrate {name}']}/tokens.safetensors"
        for name in sample.CORPORA
    }
    digest = json.loads((store / f"mask/{keys['mask']}/manifest.json").read_text())["digest"]
    expected[f"masks/{digest[:8]}.json"] = store / f"mask/{keys['mask']}/mask.json"
    assert set(listed) == set(expected)
    assert all((project / "data" / name).read_bytes() == path.read_bytes() for name, path in expected.items())


def test_run_mlflow_has_one_parent_and_a_child_for_each_thing_done(finished):
    project, answer = finished
    client = client_of(project)
    parent = client.get_run(answer.json["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["score.criterion"] == "reap" and parent.data.params["mask.ratio"] == "0.25"
    children = children_of(client, parent.info.run_id)
    assert set(children) == set(answer.cache)
    for title, child in children.items():
        assert child.info.status == "FINISHED"
        assert child.data.tags["cache"] == "miss"
        assert child.data.tags["key"] == answer.keys[title]
        assert child.data.tags["produced_by_run"] == child.info.run_id
    assert len(client.search_runs([parent.info.experiment_id])) == 1 + len(children)


def test_run_mlflow_datasets_are_named_by_the_md5_dvc_gives(finished):
    project, answer = finished
    client = client_of(project)
    expected = {path.name.rsplit("-", 1)[0]: md5(path) for path in (project / "data/corpora").iterdir()}
    assert set(expected) == set(sample.CORPORA)
    parent = client.get_run(answer.json["run_id"])
    found = {used.dataset.name: used.dataset.digest for used in parent.inputs.dataset_inputs}
    assert found == expected
    children = children_of(client, parent.info.run_id)
    for name in sample.CORPORA:
        (used,) = children[f"calibrate {name}"].inputs.dataset_inputs
        assert used.dataset.digest == expected[name]


def test_run_mlflow_models_carry_their_metrics(finished):
    project, answer = finished
    client = client_of(project)
    parent = client.get_run(answer.json["run_id"])
    models = {model.model_type: model for model in client.search_logged_models([parent.info.experiment_id])}
    assert set(models) == {"base", "pruned"}
    assert parent.inputs.model_inputs[0].model_id == models["base"].model_id
    assert parent.outputs.model_outputs[0].model_id == models["pruned"].model_id
    for of, model in models.items():
        assert model.status == LoggedModelStatus.READY
        measured = {metric.key: metric.value for metric in model.metrics}
        for name, metric in answer.json["metrics"][of].items():
            assert measured[name] == metric["value"]
            assert parent.data.metrics[f"{of}/{name}"] == metric["value"]
    assert models["pruned"].params["base_model_id"] == models["base"].model_id


def test_run_hits_are_recorded_as_hits_and_point_to_who_made_them(done, finished, run):
    answer = run("params/whole.yaml")
    client = client_of(done)
    children = children_of(client, answer.json["run_id"])
    makers = children_of(client, finished[1].json["run_id"])
    assert set(children) == set(makers)
    for title, child in children.items():
        assert child.data.tags["cache"] == "hit"
        assert child.data.tags["produced_by_run"] == makers[title].info.run_id
    # The same two models, not two more.
    assert len(client.search_logged_models([client.get_run(answer.json["run_id"]).info.experiment_id])) == 2


def test_run_without_evaluation_measures_nothing(done, run):
    answer = run("params/quick.yaml")
    assert answer.missed == [] and answer.json["metrics"] == {}
    assert "evaluate" not in answer.json["stages"]


def test_run_weight_criterion_needs_no_corpus(done, run):
    sample.write_recipe(done / "params/aimer.yaml", score={"criterion": "aimer"}, calibrate={"corpora": []})
    text = (done / "params/aimer.yaml").read_text()
    start = text.index("calibrate:")
    (done / "params/aimer.yaml").write_text(text[:start] + text[text.index("download:") :])
    assert list(run("params/aimer.yaml").json["stages"]) == ["download", "score", "mask", "prune"]


def test_run_prints_tables_for_people(done, moeprune, server):
    answer = moeprune("run", "params/whole.yaml")
    assert answer.status == 0
    for words in ("perplexity/wiki", "choice/acc", "experts removed", "pruned checkpoint: .moeprune/prune/"):
        assert words in answer.out
    assert "git add data.dvc" in answer.out  # it has changed since the last commit


def test_run_other_seed_then_losing_data_and_store_both_versions_come_back_by_hash(done, finished, run):
    import shutil

    from tasks import versioning
    from tasks.artifacts import Store
    from tasks.tracking import Tracker

    first = {path.name: path.read_bytes() for path in (done / "data/corpora").iterdir()}
    sample.git(done, "add", "data.dvc")
    sample.git(done, "commit", "--quiet", "--message", "seed 0")
    other = run("params/whole.yaml", "calibrate.seed=1")
    both = {path.name: path.read_bytes() for path in (done / "data/corpora").iterdir()}
    assert len(first) == 2 and len(both) == 4 and first.items() < both.items()
    assert len(set(both.values())) == 4

    shutil.rmtree(done / "data")
    shutil.rmtree(done / ".moeprune/calibrate")
    tracker = Tracker(Store(done / ".moeprune"))
    for name, content in both.items():
        digest = hashlib.md5(content).hexdigest()
        assert versioning.restore(digest, done).read_bytes() == content
        expected = finished[1] if name in first else other
        assert [record.id for record in tracker.runs_with_dataset(digest)] == [expected.json["run_id"]]


# plan


def planned(moeprune: Any, *words: str) -> dict[str, tuple[str, str]]:
    """(what it would do, why) of every stage of `moeprune plan`."""
    answer = moeprune("plan", *words)
    assert answer.status == 0, answer.err
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in answer.out.splitlines() if "│" in line]
    return {row[0]: (row[1], row[2]) for row in rows if len(row) >= 3 and row[0]}


def test_plan_of_a_first_run_says_what_is_unknown_until_when_and_runs_nothing(project, moeprune):
    found = planned(moeprune, "params/whole.yaml")
    assert found["download"] == ("run", "never run")
    for title in ("calibrate wiki", "observe code", "score reap", "mask", "prune", "evaluate pruned"):
        assert found[title][0] == "unknown"
    assert "download" in found["calibrate wiki"][1] and "calibrate" in found["observe code"][1]
    assert not [path for path in (project / ".moeprune").iterdir() if path.name in WORDS]
    assert sample.git(project, "status", "--porcelain") == ""


def test_plan_of_a_done_run_is_all_hits(done, moeprune):
    found = planned(moeprune, "params/whole.yaml")
    assert {state for state, _ in found.values()} == {"hit"} and len(found) == 10
    out = moeprune("plan", "params/whole.yaml").out
    assert "nothing would be done again" in out and "would be written" not in out


def test_plan_says_what_has_changed(done, moeprune):
    found = planned(moeprune, "params/whole.yaml", "--set", "mask.ratio=0.5")
    assert found["score reap"][0] == "hit"
    assert found["mask"] == ("run", "changed: keep 6 -> 4")
    assert found["prune"][0] == "unknown" and "mask" in found["prune"][1]
    assert found["evaluate base"][0] == "hit"
    assert found["evaluate pruned"] == ("unknown", "unknown until its checkpoint is known")


def test_plan_tells_disk_and_memory(done, moeprune):
    out = moeprune("plan", "params/quick.yaml", "--set", "score.criterion=frequency").out
    stored = sum(path.stat().st_size for path in (done / "model").glob("*.safetensors"))
    kept = sum(path.stat().st_size for path in (done / ".moeprune/prune").glob("*/*.safetensors"))
    disk, memory = (
        float(line.split(before)[1].split(" ")[0]) * 1e3
        for line, before in ((out, "at most "), (out, "the weights take "))
    )
    assert disk > kept and memory == pytest.approx(stored, rel=0.1)
    distilling = moeprune("plan", "params/quick.yaml", "--set", "distill={epochs: 1}").out
    training = float(distilling.split("distilling takes at most ")[1].split(" MB")[0]) * 1e6
    assert training == pytest.approx(5 * stored, rel=0.1), "two float32 models, gradients and two moments"


# runs


def test_runs_list_shows_the_newest_first_with_its_mean_damage(done, finished, run, moeprune):
    newer = run("params/whole.yaml", "mask.ratio=0.5").json
    rows = [line for line in moeprune("runs", "list").out.splitlines() if " ratio " in line]
    assert len(rows) == 2
    for row, answer, ratio in zip(rows, (newer, finished[1].json), ("ratio 0.5", "ratio 0.25"), strict=True):
        damage = [metric["value"] for name, metric in answer["metrics"]["delta"].items() if name.startswith("log_")]
        assert row.strip().startswith(answer["run_id"][:8]) and ratio in row
        assert f"{sum(damage) / len(damage):+.3f}" in row


def test_runs_compare_equals_pairs_of_the_samples(done, finished, run, moeprune):
    first = finished[1].json
    second = run("params/whole.yaml", "mask.ratio=0.5").json
    answer = moeprune("runs", "compare", first["run_id"][:8], second["run_id"])
    assert answer.status == 0, answer.err
    folders = [result["stages"]["evaluate"]["artifacts"][1]["path"] for result in (first, second)]
    tables = [parquet.read_table(done / ".moeprune" / folder / "samples.parquet") for folder in folders]
    before, after = (
        {(row["set"], row["id"]): row for row in table.to_pylist() if row["kind"] == "document"} for table in tables
    )
    wiki = [key for key in before if key[0] == "wiki"]
    shift = sum(after[key]["nll"] - before[key]["nll"] for key in wiki) / sum(before[key]["tokens"] for key in wiki)
    assert f"{shift:.4f}" in next(line for line in answer.out.splitlines() if "log_perplexity/wiki" in line)
    assert "mask.ratio: 0.25 -> 0.5" in answer.out
    assert "8 of 12 and 8 kept experts are the same" in answer.out  # of two layers: the fewer are among the more


def test_runs_compare_of_unlike_evaluations_is_refused(done, finished, run, moeprune):
    other = run("params/whole.yaml", "evaluate.limit=3").json["run_id"]
    answer = moeprune("runs", "compare", finished[1].json["run_id"], other)
    assert answer.status == 2 and "not evaluated on the same documents" in answer.err


# init


def test_init_twice_sets_up_once_and_changes_nothing_more(tmp_path, moeprune):
    folder = tmp_path / "new"
    first = moeprune("init", str(folder))
    assert first.status == 0, first.err
    assert (folder / ".git").is_dir() and (folder / ".dvc/config").is_file()
    state = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".git/" not in str(path)}
    assert Path(folder / "params/first.yaml") in state
    second = moeprune("init", str(folder))
    assert second.status == 0 and "everything is set up already" in second.out
    assert {path: path.read_bytes() for path in state} == state


def test_init_keeps_what_is_there(tmp_path, moeprune):
    (tmp_path / "params").mkdir()
    (tmp_path / "params/first.yaml").write_text("mine")
    (tmp_path / ".gitignore").write_text("*.log\n")
    assert moeprune("init", str(tmp_path)).status == 0
    assert (tmp_path / "params/first.yaml").read_text() == "mine"
    assert (tmp_path / ".gitignore").read_text().splitlines()[0] == "*.log"


def test_init_schedule_is_one_of_the_first_recipe(tmp_path, moeprune, monkeypatch):
    from flows.deployment.recipes import read_file

    moeprune("init", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (nightly,) = read_file()
    assert (nightly.name, nightly.pool, nightly.limit) == ("prune/nightly", "moeprune", 1)
    assert nightly.entry["build"][0]["flows.deployment.recipes.read"]["recipe"] == "params/first.yaml"


def test_init_first_recipe_is_valid_but_for_its_sources(tmp_path, moeprune, monkeypatch):
    from flows.recipe import Recipe, read_recipe

    moeprune("init", str(tmp_path))
    recipe = read_recipe(tmp_path / "params/first.yaml")
    written = recipe.model_fields_set
    assert written == set(Recipe.model_fields)  # every section is there
    for word in written:
        if (section := getattr(recipe, word)) is not None:
            left = {"keep", "bytes", "sparsity", "store"}
            assert section.model_fields_set >= set(type(section).model_fields) - left, word


def test_init_first_recipe_names_the_default_of_every_number_that_is_another(tmp_path, moeprune):
    from flows.recipe import Recipe, read_recipe

    moeprune("init", str(tmp_path))
    path = tmp_path / "params/first.yaml"
    recipe = read_recipe(path)
    others = []
    for word in Recipe.model_fields:
        section = getattr(recipe, word)
        for name, field in type(section).model_fields.items() if section is not None else ():
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            if isinstance(default, int | float) and getattr(section, name) != default:
                others.append((name, str(default)))
    named = re.findall(r"^  (\w+): .*\(default (\S+)\)$", path.read_text(), re.MULTILINE)
    assert named == others and named


# hub


def test_run_from_the_hub_is_pinned_to_its_commit_and_works_offline_afterwards(project, run, moeprune, monkeypatch):
    commit = "c" * 40
    with serve({"owner/tiny": {commit: project / "model"}}) as hub:
        point_at(monkeypatch, hub.url, project.parent / "cache")
        first = run("params/quick.yaml", "download.source=owner/tiny")
    (download,) = first.json["stages"]["download"]["artifacts"]
    manifest = json.loads((project / ".moeprune" / download["path"] / "manifest.json").read_text())
    assert manifest["params"] == {"source": {"repository": "owner/tiny", "commit": commit}}
    point_at(monkeypatch, f"http://127.0.0.1:{closed_port()}", project.parent / "cache")
    again = run("params/quick.yaml", "download.source=owner/tiny")
    assert again.missed == [] and again.keys == first.keys
    # The same files from a folder are the same model: nothing but download is new.
    assert run("params/quick.yaml").missed == ["download"]
