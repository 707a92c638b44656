"""What is read back of runs, as they were logged in a real tracker from manifests."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from moeprune.errors import BadInput
from tasks.artifacts import Store
from tasks.lineage import lineage_of, read_lineage, read_lineages, read_manifest, recipe_text, upstream
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


def manifest(stage: str, key: str, started: datetime | None = None) -> dict[str, Any]:
    return {
        "stage": stage,
        "key": f"{stage}-{key}",
        "digest": f"digest-{stage}-{key}",
        "params": {"seed": 3},
        "facts": {"bytes": 12},
        "inputs": {name: {"stage": one, "key": f"{one}-{key}", "digest": "d"} for name, one in CHAIN[stage].items()},
        "producer": {
            "flow_run": "flow-1",
            "git_commit": None,
            "git_dirty": None,
            "seconds": 2.5,
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
        run.log_model("base", f"digest-download-{key}", "model")
        run.log_model("pruned", f"digest-prune-{key}", "model-pruned", {"keep": 6})
    return run.id


def test_lineage_of_a_run_is_what_its_manifests_say(tracker, tmp_path):
    record(tracker, tmp_path, "other")
    run = record(tracker, tmp_path, "mine")
    found = read_lineage(tracker, run[:12])
    assert (found.run.id, found.run.status, found.run.params) == (run, "FINISHED", {"mask.ratio": "0.25"})
    assert [stage.stage for stage in found.stages] == list(CHAIN)
    mask = found.find("mask", "it")
    assert mask is not None and found.by_path["mask/mask-mine"] is mask
    assert (mask.title, mask.digest, mask.cache, mask.md5) == ("mask it", "digest-mask-mine", "miss", None)
    assert (mask.produced_by, mask.git_commit, mask.git_dirty) == (mask.id, None, None)
    assert mask.inputs == {"download": "download/download-mine", "score": "score/score-mine"}
    assert mask.params == {"seed": "3"} and mask.metrics["bytes"] == 12
    assert [stage.md5 for stage in found.stages if stage.md5] == [MD5]
    assert {(model.kind, model.digest, model.run) for model in found.models} == {
        ("base", "digest-download-mine", run),
        ("pruned", "digest-prune-mine", run),
    }
    assert read_manifest(tracker, mask)["inputs"] == manifest("mask", "mine")["inputs"]
    assert recipe_text(tracker, run) == "mask: {ratio: 0.25}\n"


def test_upstream_of_a_report_is_the_whole_chain_and_each_result_once(tracker, tmp_path):
    found = read_lineage(tracker, record(tracker, tmp_path, "k"))
    paths = [path.split("/")[0] for path in upstream(found.by_path, "evaluate/evaluate-k")]
    assert paths == ["evaluate", "prune", "download", "mask", "score", "observe", "calibrate"]
    assert list(upstream(found.by_path, "download/download-k")) == ["download/download-k"]
    assert list(upstream({}, "mask/elsewhere")) == ["mask/elsewhere"]


def test_lineages_of_all_runs_are_those_of_each_newest_first_and_without_sweeps(tracker, tmp_path):
    with tracker.sweep("grid", "key", {}, "") as sweep:
        first = record(tracker, tmp_path, "a", sweep=sweep.id)
    second = record(tracker, tmp_path, "b")
    found = read_lineages(tracker)
    assert [one.run.id for one in found] == [second, first]
    assert found == [read_lineage(tracker, second), read_lineage(tracker, first)]
    assert lineage_of(found[0].run, tracker.models()) == found[0]


def test_lineages_since_a_moment_have_stages_that_began_before_it(tracker, tmp_path):
    record(tracker, tmp_path, "old")
    moment = datetime.now(UTC)
    with tracker.run("waits for another process", {}) as run:
        run.log_stage("mask", "mask", "", manifest("mask", "new", moment - timedelta(hours=1)), "miss")
    (found,) = read_lineages(tracker, moment - timedelta(milliseconds=1))
    assert found.run.id == run.id and [stage.key for stage in found.stages] == ["mask-new"]


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
