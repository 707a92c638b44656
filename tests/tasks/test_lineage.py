"""What is read back of runs, as they were logged in a real tracker from manifests."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from mlflow.tracking import MlflowClient

from moeprune.errors import BadInput
from moeprune.hashing import digest_of
from tasks.artifacts import Artifact, Step, Store
from tasks.lineage import by_digest, lineage_of, read_lineage, read_lineages, read_manifest, recipe_text, upstream
from tasks.tracked import LoggedModel
from tasks.tracking import Tracker

MD5 = "0cc175b9c0f1b6a831c399e269772661"
CHAIN = {
    "download": {},
    "calibrate": {"download": "download"},
    "observe": {"download": "download", "calibrate": "calibrate"},
    "score": {"observe.0": "observe"},
    "mask": {"download": "download", "score": "score"},
    "prune": {"download": "download", "mask": "mask"},
    "evaluate": {"checkpoint": "prune"},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return Tracker(Store(tmp_path_factory.mktemp("store")))


@pytest.fixture
def tracker(shared: Tracker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tracker:
    """An experiment of its own in the shared database."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    return Tracker(shared.store)


def hashed(*words: str) -> str:
    return hashlib.sha256(" ".join(words).encode()).hexdigest()


def step_of(stage: str, key: str) -> Step:
    inputs = {name: step_of(one, key) for name, one in CHAIN[stage].items()}
    made = {
        name: Artifact(stage=one.stage, key=str(one.key), digest=digest_of({"file": hashed(one.stage, key)}))
        for name, one in inputs.items()
    }
    return Step(stage, "it", "code", {"seed": 3, "of": key}, {**made})


def place(stage: str, key: str) -> str:
    return f"{stage}/{step_of(stage, key).key}"


def digest(stage: str, key: str) -> str:
    return digest_of({"file": hashed(stage, key)})


def manifest(stage: str, key: str, started: datetime | None = None, seconds: float = 2.5) -> dict[str, Any]:
    return {
        "stage": stage,
        "of": "it",
        "key": step_of(stage, key).key,
        "digest": digest_of({"file": hashed(stage, key)}),
        "code": "code",
        "params": {"seed": 3, "of": key},
        "files": {"file": {"sha256": hashed(stage, key), "bytes": 3}},
        "facts": {"bytes": 12},
        "inputs": {name: artifact.model_dump() for name, artifact in step_of(stage, key).inputs.items() if artifact},
        "producer": {
            "flow_run": "flow-1",
            "git_commit": None,
            "git_dirty": None,
            "seconds": seconds,
            "peak_memory_bytes": 4096,
            "started": (started or datetime.now(UTC)).isoformat(),
        },
    }


def record(tracker: Tracker, folder: Path, key: str, **options: Any) -> str:
    """A whole run whose keys end in `key`."""
    with tracker.run("a run", {"mask": {"ratio": 0.25}}, recipe="mask: {ratio: 0.25}\n", **options) as run:
        for stage in CHAIN:
            content = manifest(stage, key)
            (folder / "manifest.json").write_text(json.dumps(content))
            child = run.log_stage(f"{stage} it", stage, "it", content, "miss", [folder / "manifest.json"])
            if stage == "calibrate":
                run.log_version(child, MD5)
        run.log_model("base", digest("download", key), "model")
        run.log_model("pruned", digest("prune", key), "model-pruned", {"keep": 6})
    return run.id


def test_lineage_of_a_run_is_what_its_manifests_say(tracker, tmp_path):
    record(tracker, tmp_path, "other")
    run = record(tracker, tmp_path, "mine")
    found = read_lineage(tracker, run[:12])
    assert (found.run.id, found.run.status, found.run.params) == (run, "FINISHED", {"mask.ratio": "0.25"})
    assert [stage.stage for stage in found.stages] == list(CHAIN)
    mask = found.find("mask", "it")
    assert mask is not None and found.by_path[place("mask", "mine")] is mask
    assert (mask.title, mask.digest, mask.cache, mask.md5) == ("mask it", digest("mask", "mine"), "miss", None)
    assert (mask.produced_by, mask.git_commit, mask.git_dirty) == (mask.id, None, None)
    assert mask.inputs == {"download": place("download", "mine"), "score": place("score", "mine")}
    assert mask.params == {"seed": "3", "of": "mine"} and mask.metrics["bytes"] == 12
    assert [stage.md5 for stage in found.stages if stage.md5] == [MD5]
    assert {(model.kind, model.digest, model.run) for model in found.models} == {
        ("base", digest("download", "mine"), run),
        ("pruned", digest("prune", "mine"), run),
    }
    assert read_manifest(tracker, mask)["inputs"] == manifest("mask", "mine")["inputs"]
    assert recipe_text(tracker, run) == "mask: {ratio: 0.25}\n"


def test_upstream_of_a_report_is_the_whole_chain_and_each_result_once(tracker, tmp_path):
    found = read_lineage(tracker, record(tracker, tmp_path, "k"))
    paths = [path.split("/")[0] for path in upstream(found.by_path, place("evaluate", "k"))]
    assert paths == ["evaluate", "prune", "download", "mask", "score", "observe", "calibrate"]
    assert list(upstream(found.by_path, place("download", "k"))) == [place("download", "k")]
    assert list(upstream({}, "mask/elsewhere")) == ["mask/elsewhere"]


def test_lineages_of_all_runs_are_those_of_each_newest_first_and_without_sweeps(tracker, tmp_path):
    with tracker.sweep("grid", "key", {}, "") as sweep:
        first = record(tracker, tmp_path, "a", sweep=sweep.id)
    second = record(tracker, tmp_path, "b")
    found = read_lineages(tracker).whole
    assert [one.run.id for one in found] == [second, first]
    assert found == [read_lineage(tracker, second), read_lineage(tracker, first)]
    assert lineage_of(found[0].run, by_digest(tracker.models())) == found[0]


def test_lineages_since_a_moment_have_stages_that_began_before_it(tracker, tmp_path):
    record(tracker, tmp_path, "old")
    moment = datetime.now(UTC)
    with tracker.run("goes on with what was begun", {}) as run:
        begun = (moment - timedelta(hours=1)).replace(microsecond=0)  # as manifests have it
        run.log_stage("mask", "mask", "", manifest("mask", "new", begun, 3600), "miss")
    (found,) = read_lineages(tracker, moment - timedelta(milliseconds=1)).whole
    assert found.run.id == run.id and [stage.path for stage in found.stages] == [place("mask", "new")]


def test_lineages_since_a_moment_ask_for_its_models_and_have_those_known(tracker, tmp_path, monkeypatch):
    record(tracker, tmp_path, "old")
    known = by_digest(tracker.models())
    moment = datetime.now(UTC)
    run = record(tracker, tmp_path, "new")
    with tracker.run("reads a base model that is known", {}) as later:
        later.log_stage("download it", "download", "it", manifest("download", "old"), "hit")
    asked: list[list[LoggedModel]] = []
    ask = tracker.models
    monkeypatch.setattr(tracker, "models", lambda since: asked.append(ask(since)) or asked[-1])
    newest, found = read_lineages(tracker, moment, known).whole
    assert {model.digest for model in asked[0]} == {digest("download", "new"), digest("prune", "new")}
    assert found == read_lineage(Tracker(tracker.store), run)
    assert [model.digest for model in newest.models] == [digest("download", "old")]


def test_lineages_read_in_pages_have_each_run_once(tracker, tmp_path, monkeypatch):
    for key in "abc":
        record(tracker, tmp_path, key)
    search, pages = MlflowClient.search_runs, []

    def two_by_two(client: MlflowClient, *words: Any, **options: Any) -> Any:
        if "page_token" not in options:
            return search(client, *words, **options)
        pages.append(options["page_token"])
        if len(pages) == 5:  # of stages
            record(tracker, tmp_path, "d")  # moves those that follow it
        return search(client, *words, **options, max_results=2)

    monkeypatch.setattr(MlflowClient, "search_runs", two_by_two)
    stages = [[stage.path for stage in one.stages] for one in read_lineages(tracker).whole]
    assert stages[-3:] == [[place(stage, key) for stage in CHAIN] for key in "cba"]


def test_a_file_that_the_tracker_lost_is_named(tracker, tmp_path):
    with tracker.run("bare", {}) as run:
        run.log_stage("mask", "mask", "", manifest("mask", "bare"), "miss")
    found = read_lineage(tracker, run.id)
    with pytest.raises(BadInput, match=r"manifest\.json"):
        read_manifest(tracker, found.stages[0])
    with pytest.raises(BadInput, match=r"recipe\.yaml"):
        recipe_text(tracker, run.id)


def test_under_way_are_runs_of_live_processes_and_of_other_machines(tracker):
    with tracker.run("mine", {}) as mine:
        assert [run.id for run in tracker.under_way()] == [mine.id]
        mine.tag({"process": "1:0"})  # of a process that is gone
        assert tracker.under_way() == []
        mine.tag({"place": "elsewhere:1"})
        assert [run.id for run in tracker.under_way()] == [mine.id]
    assert tracker.under_way() == []


@pytest.mark.parametrize(
    ("tag", "value"),
    [("stage", "../.."), ("key", "../../elsewhere"), ("key", "/etc"), ("input.download", "download/../../elsewhere")],
)
def test_a_record_that_names_a_place_outside_of_the_store_is_refused(tag: str, value: str, tracker, tmp_path):
    run = record(tracker, tmp_path, "k")
    mask = read_lineage(tracker, run).find("mask", "it")
    assert mask is not None
    tracker.tag(mask.id, tag, value)
    with pytest.raises(BadInput, match="no place in a store"):
        read_lineage(tracker, run)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"seed": 3', '"seed": 4'),
        lambda text: text.replace('"stage": "mask"', '"stage": "prune"', 1),
        lambda text: text.replace('"file":', '"../file":'),
        lambda text: text.replace(
            '"inputs": {"download": {"stage": "download"', '"inputs": {"download": {"stage": ".."'
        ),
        lambda text: text.replace(hashed("mask", "k"), hashed("another")),
    ],
    ids=["empty", "cut short", "another shape", "other params", "another stage", "a path", "an input's path", "a file"],
)
def test_a_damaged_or_edited_manifest_is_refused(change: Callable[[str], str], tracker, tmp_path):
    run = record(tracker, tmp_path, "k")
    mask = read_lineage(tracker, run).find("mask", "it")
    assert mask is not None
    assert read_manifest(tracker, mask)["files"]
    file = Path(unquote(urlsplit(MlflowClient(tracker.uri).get_run(mask.id).info.artifact_uri).path)) / "manifest.json"
    before = file.read_text()
    file.write_text(change(before))
    assert file.read_text() != before
    with pytest.raises(BadInput, match=r"manifest\.json is damaged"):
        read_manifest(tracker, mask)


def test_a_child_that_somebody_made_by_hand_is_no_stage(tracker, tmp_path):
    run = record(tracker, tmp_path, "k")
    client = MlflowClient(tracker.uri)
    experiment = client.get_run(run).info.experiment_id
    client.create_run(experiment, tags={"mlflow.parentRunId": run}, run_name="notes")
    assert len(read_lineage(tracker, run).stages) == len(CHAIN)


def test_experiments_are_seen_each_by_its_own_runs(tracker, tmp_path, monkeypatch):
    mine = record(tracker, tmp_path, "k")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"{tmp_path.name} of others")
    others = record(Tracker(tracker.store), tmp_path, "k")
    seen = {one.experiment: [run.id for run in one.runs_with_stages()] for one in tracker.experiments()}
    assert seen[tmp_path.name] == [mine] and seen[f"{tmp_path.name} of others"] == [others]
