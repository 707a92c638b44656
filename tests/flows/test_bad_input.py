"""Input that cannot be worked with: one line that says what to do, exit status 2, and nothing long has run."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import sample
import torch
import yaml
from hub import closed_port, point_at
from safetensors.torch import load_file, save_file

QUICK, WHOLE = "params/quick.yaml", "params/whole.yaml"
LONG = ("calibrate", "observe", "score", "mask", "prune", "evaluate", "partial")


@pytest.fixture
def refuse(project, moeprune):
    """Run a recipe that must be refused, with changes; returns the one line."""

    def call(recipe: str, *changes: str, ran: tuple[str, ...] = ()) -> str:
        started = time.monotonic()
        answer = moeprune("run", recipe, *(word for change in changes for word in ("--set", change)), "--json")
        assert answer.status == 2, answer.err
        (line,) = [line for line in answer.err.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in answer.err
        error = line.removeprefix("error: ")
        assert answer.json == {
            "run_id": None,
            "status": "bad_input",
            "error": error,
            "stages": {},
            "metrics": {},
            "checkpoint": None,
        }
        store = project / ".moeprune"
        assert [name for name in LONG if name not in ran and list((store / name).glob("*"))] == []
        assert ran or answer.err.splitlines() == [line]
        assert time.monotonic() - started < 60
        return error

    return call


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["score.criterion=reep"], ["score.criterion", "'reep'", "did you mean 'reap'"]),
        (["score.options={sed: 1}", "score.criterion=uniform_random"], ["score.options", "'sed'", "'seed'"]),
        (["score.options={b: 1}"], ["score.options.b", "takes no options"]),
        (["score.combine=poled"], ["score.combine", "'pooled'"]),
        (["score.gate_mode=deploied"], ["score.gate_mode", "'deployed'"]),
        (["observe.sums=[vektors]"], ["observe.sums", "'vectors'"]),
        (["mask.selection=unifrom"], ["mask.selection", "'uniform'"]),
        (["calibrate.token=5"], ["calibrate.token", "'tokens'"]),
        (["calibrte.tokens=5"], ["calibrte", "'calibrate'"]),
        (["runtime.batchsize=5"], ["runtime.batchsize", "'batch_size'"]),
        (["mask.ratio=1.0"], ["mask.ratio", "less than 1", "1.0"]),
        (["mask.ratio=-0.1"], ["mask.ratio", "greater than or equal to 0"]),
        (["mask.ratio=half"], ["mask.ratio", "number", "'half'"]),
        (["mask={ratio: 0.5, keep: 4}"], ["mask", "exactly one of ratio, keep, bytes, sparsity", "ratio and keep"]),
        (["mask={}"], ["mask", "exactly one of ratio, keep, bytes, sparsity"]),
        (["mask.keep=1"], ["mask.keep: 1 of 8 experts", "top-k 2", "the nearest that works is 2"]),
        (["mask.ratio=0.9"], ["mask.ratio 0.9: 1 of 8", "top-k 2", "the nearest that works is 0.75 (2 of 8 kept)"]),
        (["mask.keep=9"], ["9 of 8 experts", "only 8"]),
        (["mask.bytes=10KB"], ["mask.bytes", "10000 bytes", "2 experts a layer", "at least that"]),
        (["calibrate.corpora=[]"], ["calibrate.corpora"]),
        (["calibrate=null"], ["calibrate", "'reap' needs a calibration corpus", "aimer"]),
        (["download.source=no/such/folder"], ["download.source", "no folder no/such/folder"]),
        (["calibrate.corpora=[{name: wiki, source: nowhere.jsonl}]"], ["'wiki'", "no file nowhere.jsonl"]),
        (["calibrate.corpora=[{name: wiki, source: model}]"], ["'wiki'", "no file model"]),
        (["mask.ratio"], ["--set mask.ratio", "section.key=value"]),
        (["mask.ratio.deep=3"], ["--set mask.ratio.deep=3", "'ratio' is not a section"]),
        (["mask.ratio=[0.25"], ["--set mask.ratio=[0.25", "not YAML"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value[0], str) else None,
)
def test_run_impossible_request_is_refused_in_one_line(changes: list[str], words: list[str], refuse):
    error = refuse(QUICK, *changes)
    assert all(word in error for word in words), error


def index_of(project: Path) -> tuple[Path, dict[str, Any]]:
    path = project / "model/model.safetensors.index.json"
    return path, json.loads(path.read_text())


def lose_shard(project: Path) -> None:
    (project / "model/model-00002-of-00005.safetensors").unlink()


def truncate_shard(project: Path) -> None:
    path = project / "model/model-00003-of-00005.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def truncate_header(project: Path) -> None:
    path = project / "model/model-00003-of-00005.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def name_absent_shard(project: Path) -> None:
    path, index = index_of(project)
    index["weight_map"]["model.norm.weight"] = "model-00009-of-00005.safetensors"
    path.write_text(json.dumps(index))


def name_absent_tensor(project: Path) -> None:
    path, index = index_of(project)
    index["weight_map"]["model.more.weight"] = "model-00001-of-00005.safetensors"
    path.write_text(json.dumps(index))


def lose_weights(project: Path) -> None:
    for path in (project / "model").glob("model*"):
        path.unlink()


def lose_config(project: Path) -> None:
    (project / "model/config.json").unlink()


def become_dense(project: Path) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "vocab_size": 320}
    (project / "model/config.json").write_text(json.dumps(config))


def become_unknown(project: Path) -> None:
    (project / "model/config.json").write_text(json.dumps({"model_type": "nothing-we-know"}))


def break_config(project: Path) -> None:
    (project / "model/config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose_shard, ["index.json names model-00002-of-00005.safetensors", "not there"]),
        (truncate_shard, ["model-00003-of-00005.safetensors", "bytes where its header says", "download it again"]),
        (truncate_header, ["model-00003-of-00005.safetensors", "truncated", "download it again"]),
        (name_absent_shard, ["names model-00009-of-00005.safetensors", "not there"]),
        (name_absent_tensor, ["names the tensor model.more.weight", "no shard holds"]),
        (lose_weights, ["neither model.safetensors nor model.safetensors.index.json"]),
        (lose_config, ["no config.json in model"]),
        (become_dense, ["'llama' is not a Mixture-of-Experts model"]),
        (become_unknown, ["config.json", "nothing-we-know"]),
        (break_config, ["config.json"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_run_damaged_model_is_refused_in_one_line(damage, words: list[str], project, refuse):
    damage(project)
    error = refuse(QUICK)
    assert all(word in error for word in words), error


def rewrite(path: str, content: str) -> Any:
    def damage(project: Path) -> None:
        (project / path).write_text(content)

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (rewrite("sources/code.jsonl", ""), ["'code'", "sources/code.jsonl", "holds no text"]),
        (rewrite("sources/code.jsonl", '{"text": " "}\n'), ["'code'", "holds no text"]),
        (rewrite("sources/code.jsonl", '{"texte": "a"}\n'), ["sources/code.jsonl, line 1", "'text'", "'texte'"]),
        (rewrite("sources/code.jsonl", '{"text": 3}\n'), ["sources/code.jsonl, line 1", "'text'"]),
        (rewrite("sources/code.jsonl", "plain text\n"), ["sources/code.jsonl, line 1", "not JSON"]),
    ],
    ids=["empty", "blank", "wrong field", "field of numbers", "not JSON"],
)
def test_run_unreadable_corpus_is_refused_in_one_line(damage, words: list[str], project, refuse):
    damage(project)
    error = refuse(QUICK)
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda project: (project / "sources/wiki.heldout.jsonl.gz").unlink(), ["'wiki'", "no file"]),
        (lambda project: (project / "questions/choice.jsonl").unlink(), ["choice.yaml", "data file", "not there"]),
        (lambda project: (project / "questions/choice.yaml").unlink(), ["no file questions/choice.yaml"]),
        (rewrite("questions/choice.yaml", "- 1\n"), ["choice.yaml names no task"]),
        (rewrite("questions/choice.yaml", "task: choice\ndoc_to_text: !function code.text\n"), ["!function", "trust"]),
        (rewrite("questions/choice.yaml", "task: choice\ninclude: ../../other.yaml\n"), ["other.yaml", "outside"]),
        (rewrite("questions/choice.yaml", "task: [\n"), ["choice.yaml", "not YAML"]),
    ],
    ids=["no corpus", "no data file", "no task", "not a task", "code", "include", "not YAML"],
)
def test_run_unusable_evaluation_is_refused_in_one_line(damage, words: list[str], project, refuse):
    damage(project)
    error = refuse(WHOLE)
    assert all(word in error for word in words), error


def test_run_evaluation_corpus_with_another_field_is_refused_before_any_work(project, refuse):
    sample.write_lines(project / "sources/wiki.heldout.jsonl.gz", [{"texte": "a b c"}])
    error = refuse(WHOLE)
    assert "'text'" in error and "'texte'" in error


def test_run_empty_evaluation_corpus_is_refused_before_any_work(project, refuse):
    sample.write_lines(project / "sources/wiki.heldout.jsonl.gz", [])
    assert "'wiki'" in refuse(WHOLE)


def test_run_unknown_task_of_lm_eval_names_the_nearest(refuse):
    error = refuse(WHOLE, "evaluate.tasks=[arc_esy]")
    assert "'arc_esy'" in error and "did you mean 'arc_easy'" in error


def test_run_weights_with_nan_are_refused_during_download(project, server, refuse):
    path = project / "model/model-00002-of-00005.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[3] = torch.nan
    save_file(tensors, path, {"format": "pt"})
    error = refuse(QUICK, ran=("download",))
    assert path.name in error and name in error and "NaN" in error
    assert not list((project / ".moeprune/download").glob("[0-9a-f]*"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["calibrate.tokens=100000"], ["calibrate.tokens", "100000 tokens wanted", "'wiki' gives", "lower"]),
        (["calibrate.chunks=200"], ["calibrate", "wanted", "'wiki'", "lower"]),
    ],
    ids=["tokens", "chunks"],
)
def test_run_corpus_too_small_is_refused_before_observing(changes: list[str], words: list[str], server, refuse):
    error = refuse(QUICK, *changes, ran=("calibrate",))
    assert all(word in error for word in words), error


def test_run_disk_too_small_is_refused(refuse, monkeypatch):
    whole = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: whole._replace(free=50_000))
    error = refuse(QUICK)
    assert all(word in error for word in ("runtime.store", "0.00 GB free", "this run needs about"))


def test_run_tracking_server_not_there_is_refused_within_seconds(refuse, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"http://127.0.0.1:{closed_port()}")
    started = time.monotonic()
    error = refuse(QUICK)
    assert uri in error and "MLFLOW_TRACKING_URI" in error
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("command", ["run", "sweep", "audit"])
def test_remote_of_dvc_that_does_not_answer_is_refused_before_any_work(command, project, moeprune):
    config, recipe = Path(".dvc/config"), Path("params/asked.yaml")
    sections = ("download", "calibrate", "observe", "runtime", *(("score", "mask") if command != "audit" else ()))
    own = {"audit": {"criteria": ["reap"], "ratios": [0.25]}} if command == "audit" else {}
    recipe.write_text(yaml.safe_dump({word: sample.RECIPE[word] for word in sections} | own))
    config.write_text(f"{config.read_text()}    remote = team\n")
    named = moeprune(command, str(recipe))
    assert named.status == 2 and "core.remote names 'team'" in named.err, named.err
    remote = f"['remote \"team\"']\n    url = s3://moeprune/dvc\n    endpointurl = http://127.0.0.1:{closed_port()}\n"
    config.write_text(config.read_text() + remote)
    dead = moeprune(command, str(recipe))
    assert dead.status == 2 and "DVC remote 'team' (s3://moeprune/dvc)" in dead.err and "refused" in dead.err
    assert len((named.err + dead.err).splitlines()) == 2
    assert not [name for name in LONG if list(Path(".moeprune", name).glob("*"))]


def test_run_hub_not_there_is_refused(refuse, monkeypatch, tmp_path):
    endpoint = f"http://127.0.0.1:{closed_port()}"
    point_at(monkeypatch, endpoint, tmp_path / "cache")
    error = refuse(QUICK, "download.source=owner/name")
    assert "owner/name" in error and endpoint in error and "cannot be reached" in error


def test_run_project_without_dvc_is_refused_before_any_work(project, refuse):
    shutil.rmtree(project / ".dvc")
    error = refuse(QUICK)
    assert "DVC" in error and "moeprune init" in error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["params/quick.yaml", "no such recipe"]),
        ("{", ["params/quick.yaml", "not YAML"]),
        ("[1, 2]", ["params/quick.yaml", "sections"]),
        ("", ["params/quick.yaml", "sections"]),
        ("mask: {ratio: 0.5}", ["params/quick.yaml", "download", "required"]),
    ],
    ids=["missing", "not YAML", "a list", "empty", "no download"],
)
def test_run_unusable_recipe_is_refused_in_one_line(content: str | None, words: list[str], project, refuse):
    path = project / QUICK
    path.unlink() if content is None else path.write_text(content)
    error = refuse(QUICK)
    assert all(word.lower() in error.lower() for word in words), error


@pytest.mark.parametrize(
    "words",
    [("rum", QUICK), ("run",), ("run", QUICK, "--jason"), ("runs", "compare", "abc"), ("runs", "compare", "zz", "yy")],
    ids=" ".join,
)
def test_command_line_misspelt_is_refused(words: tuple[str, ...], project, moeprune):
    answer = moeprune(*words)
    assert answer.status == 2
    assert len(answer.err.splitlines()) == 1 and answer.err.startswith("error: ")


@pytest.mark.parametrize("command", ["plan", "sweep"])
def test_other_commands_refuse_the_same_input(command: str, project, moeprune):
    answer = moeprune(command, QUICK, "--set", "score.criterion=reep")
    assert answer.status == 2
    assert "did you mean 'reap'" in answer.err and len(answer.err.splitlines()) == 1


def test_process_bad_input_exits_with_2_and_one_json_object(project, process):
    answer = process(project, "run", QUICK, "--set", "mask.keep=1", "--json")
    assert answer.status == 2
    assert answer.json["status"] == "bad_input" and answer.json["error"] in answer.err
    assert len(answer.out.splitlines()) == len(answer.err.splitlines()) == 1


def test_run_failure_exits_with_1_and_one_json_object(project, server, moeprune, monkeypatch):
    def fail(*_):
        raise OSError("the disk went away")

    monkeypatch.setattr("moeprune.files.save_corpus", fail)
    answer = moeprune("run", QUICK, "--json")
    assert answer.status == 1
    assert answer.json["status"] == "failed" and "the disk went away" in answer.json["error"]
