"""What gc removes from stores of real runs, and what it never removes."""

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from clones import contents, copy_project
from mlflow.tracking import MlflowClient

from flows.upkeep.collect import Collection, results_of, take
from flows.upkeep.needing import USED
from flows.upkeep.rebuild import step_of
from tasks.artifacts import Runtime, Step, Store
from tasks.lineage import read_lineage
from tasks.registry import Registry
from tasks.tracking import Tracker

STAGES = ("download", "calibrate", "observe", "score", "mask", "prune", "evaluate")
STEP = Step("score", "", "code", {"of": "tests"}, {})


@pytest.fixture
def cleared(finished, tmp_path, monkeypatch) -> Path:
    """The store of a project after one whole run, made an hour ago and more: stages are last used in their order."""
    project = copy_project(finished[0], tmp_path / "project")
    monkeypatch.chdir(project)
    age(project / ".moeprune")
    return project / ".moeprune"


@pytest.fixture
def run_id(finished) -> str:
    return str(finished[1].json["run_id"])


def age(store: Path) -> None:
    for number, stage in enumerate(STAGES):
        for manifest in (store / stage).glob("*/manifest.json"):
            moment = time.time() - 3600 * (100 - number)
            os.utime(manifest, (moment, moment))


def folders(store: Path) -> dict[str, int]:
    """How many results of each stage there are."""
    return {stage: len([path for path in (store / stage).glob("*") if path.is_dir()]) for stage in STAGES}


def held(store: Path) -> int:
    return sum(path.lstat().st_size for path in store.rglob("*") if path.is_file())


def gc(moeprune, *words: str):
    return moeprune("gc", *words, "--json")


def test_gc_unless_told_to_delete_removes_nothing_and_says_what_it_would(cleared, moeprune):
    before = contents(cleared)
    answer = gc(moeprune, "--budget", "0B")
    assert {path: content for path, content in contents(cleared).items() if not path.startswith("locks/")} == {
        path: content for path, content in before.items() if not path.startswith("locks/")
    }
    assert answer.json["removed"] is False
    assert len(answer.json["items"]) == sum(folders(cleared).values()) == 10
    freed = sum(held(cleared / item["path"]) for item in answer.json["items"])
    assert answer.json["freed"] == sum(item["bytes"] for item in answer.json["items"]) == freed
    assert str(freed) in answer.out and "--delete" in answer.out


def test_gc_within_a_budget_removes_the_least_recently_used_first_and_no_more(cleared, moeprune):
    os.utime(next((cleared / "download").glob("*/manifest.json")))  # now the corpora are the oldest
    corpora = sum(held(path) for path in (cleared / "calibrate").iterdir())
    budget = held(cleared) - corpora - 1  # so that one thing more must go: the older of the statistics
    moment = time.time() - 3600 * 99
    first, second = sorted((cleared / "observe").iterdir())
    os.utime(first / "manifest.json", (moment, moment))
    answer = gc(moeprune, "--budget", str(budget), "--delete")
    assert answer.status == 0, answer.err
    assert folders(cleared) == {
        "download": 1, "calibrate": 0, "observe": 1, "score": 1, "mask": 1, "prune": 1, "evaluate": 2
    }  # fmt: skip
    assert second.is_dir()
    assert answer.json["held"] - answer.json["freed"] <= budget
    assert answer.json["freed"] == sum(item["bytes"] for item in answer.json["items"])
    assert gc(moeprune, "--budget", "1GB", "--delete").json["items"] == []


def test_gc_of_a_project_that_is_restored_afterwards_is_the_same(cleared, moeprune, run_id):
    before = {stage: contents(cleared / stage) for stage in STAGES}
    assert gc(moeprune, "--budget", "0B", "--delete").json["freed"] > 0
    assert set(folders(cleared).values()) == {0}
    assert moeprune("restore", run_id, "--everything").status == 0
    assert {stage: contents(cleared / stage) for stage in STAGES} == before


def test_gc_leaves_what_a_kept_run_needs_until_it_is_no_longer_kept(cleared, moeprune, run_id):
    assert moeprune("runs", "keep", run_id[:8]).status == 0
    assert "kept" in moeprune("runs", "list").out
    answer = gc(moeprune, "--budget", "0B", "--delete")
    assert answer.status == 1 and "missed by" in answer.json["error"] and "unkeep" in answer.json["error"]
    assert sum(folders(cleared).values()) == 10
    assert list(answer.json["stays"]) == [f"needed by kept run {run_id[:8]}"]
    assert moeprune("runs", "unkeep", run_id[:8]).status == 0
    assert moeprune("runs", "unkeep", run_id[:8]).status == 0  # twice is once
    assert "kept" not in moeprune("runs", "list").out
    gc(moeprune, "--budget", "0B", "--delete")
    assert sum(folders(cleared).values()) == 0


def test_gc_leaves_what_a_registered_model_needs_whether_or_not_an_alias_names_it(cleared, moeprune, run_id):
    tracker = Tracker(Store(cleared))
    registry = Registry(tracker)
    (model,) = (model for model in read_lineage(tracker, run_id).models if model.kind == "pruned")
    version = registry.register("small", model, run_id)
    answer = gc(moeprune, "--budget", "0B", "--delete")
    assert answer.json["items"] == [] and list(answer.json["stays"]) == ["needed by small version 1"]
    registry.move("candidate", version, run_id, {})
    assert list(gc(moeprune, "--budget", "0B").json["stays"]) == ["needed by small@candidate"]
    assert sum(folders(cleared).values()) == 10
    MlflowClient(tracker.uri).delete_registered_model("small")
    assert len(gc(moeprune, "--budget", "0B").json["items"]) == 10


def test_gc_leaves_a_registered_model_and_its_inputs_though_its_run_was_deleted(cleared, moeprune, run_id):
    tracker = Tracker(Store(cleared))
    (model,) = (model for model in read_lineage(tracker, run_id).models if model.kind == "pruned")
    Registry(tracker).register("small", model, run_id)
    MlflowClient(tracker.uri).delete_run(run_id)
    answer = gc(moeprune, "--unnamed", "--delete")
    assert list(answer.json["stays"]) == ["needed by small version 1"]
    assert folders(cleared) == {stage: {"calibrate": 2, "observe": 2, "evaluate": 0}.get(stage, 1) for stage in STAGES}


def test_gc_leaves_what_a_kept_run_of_another_experiment_needs(cleared, moeprune, run_id, monkeypatch):
    moeprune("runs", "keep", run_id)
    age(cleared)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    answer = gc(moeprune, "--budget", "0B", "--unnamed", "--delete")
    assert answer.json["items"] == [] and list(answer.json["stays"]) == [f"needed by kept run {run_id[:8]}"]


def test_gc_leaves_what_a_kept_run_names_though_the_records_of_its_stages_were_deleted(cleared, moeprune, run_id):
    tracker = Tracker(Store(cleared))
    for stage in read_lineage(tracker, run_id).stages:
        MlflowClient(tracker.uri).delete_run(stage.id)
    moeprune("runs", "keep", run_id)
    answer = gc(moeprune, "--budget", "0B", "--unnamed", "--delete")
    assert answer.json["items"] == [] and sum(folders(cleared).values()) == 10


def test_gc_leaves_what_was_used_since_a_run_under_way_began(cleared, moeprune):
    os.utime(next((cleared / "prune").glob("*/manifest.json")))
    with Tracker(Store(cleared)).run("under way", {}):
        answer = gc(moeprune, "--budget", "0B", "--delete")
    assert folders(cleared)["prune"] == 1 and sum(folders(cleared).values()) == 1
    assert list(answer.json["stays"]) == [USED]
    gc(moeprune, "--budget", "0B", "--delete")
    assert sum(folders(cleared).values()) == 0


def test_gc_leaves_what_a_run_finds_that_begins_while_it_reads_the_tracker(cleared, moeprune, monkeypatch):
    (manifest,) = (cleared / "prune").glob("*/manifest.json")
    step, read = step_of(json.loads(manifest.read_text())), Tracker.runs_with_stages

    def slowly(tracker: Tracker, *since: Any) -> Any:
        assert Store(cleared).find(step) is not None
        return read(tracker, *since)

    monkeypatch.setattr(Tracker, "runs_with_stages", slowly)
    answer = gc(moeprune, "--budget", "0B", "--delete")
    assert list(answer.json["stays"]) == [USED] and manifest.is_file()
    assert sum(folders(cleared).values()) == 1


def test_gc_leaves_what_is_kept_while_it_is_at_it(cleared, moeprune, run_id):
    seen = list(results_of(Store(cleared)))
    moeprune("runs", "keep", run_id)
    found = Collection(cleared, held=0, budget=0, removed=True)
    for item in seen:
        take(item, Store(cleared), found)
    assert len(seen) == 10 == sum(folders(cleared).values()) and found.freed == 0


def test_keep_says_what_is_not_there_to_be_kept(cleared, moeprune, run_id, caplog):
    assert moeprune("runs", "keep", run_id).status == 0 and caplog.text == ""
    shutil.rmtree(cleared / "prune")
    assert moeprune("runs", "keep", run_id).status == 0
    assert "1 of its results are not in the store, such as prune" in caplog.text


def test_gc_beside_another_takes_each_result_once(cleared):
    store = Store(cleared)
    seen = list(results_of(store))
    one, other = (Collection(cleared, held=0, budget=0, removed=True) for _ in range(2))
    for item in seen:
        take(item, store, one)
        take(item, store, other)
    assert one.items == seen and other.items == [] and sum(folders(cleared).values()) == 0


def test_gc_leaves_what_was_found_after_it_had_looked(cleared):
    store = Store(cleared)
    (seen,) = (item for item in results_of(store) if item.path.parts[0] == "prune")
    manifest = cleared / seen.path / "manifest.json"
    assert store.find(step_of(json.loads(manifest.read_text()))) is not None
    found = Collection(cleared, held=0, budget=0, removed=True)
    take(seen, store, found)
    assert manifest.is_file() and not found.items
    (again,) = (item for item in results_of(store) if item.path == seen.path)
    take(again, store, found)
    assert not manifest.parent.exists() and found.items == [again]


def half_way(store: Path, begun: Any) -> None:
    """A process that is making a result, with progress, until it is killed."""

    def build(target: Path) -> dict[str, Any]:
        (target / "half").write_text("half")
        (Store(store).partial(STEP) / "progress").write_text("progress")
        begun.set()
        time.sleep(600)
        return {}

    Store(store).produce(STEP, Runtime(store=store), build)


def test_gc_removes_what_a_killed_process_left_and_nothing_of_one_at_work(cleared, moeprune):
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    process = context.Process(target=half_way, args=(cleared, begun), daemon=True)
    process.start()
    assert begun.wait(120)
    building, progress = cleared / f"score/.{STEP.key}.building", cleared / f"partial/score-{STEP.key}"
    answer = gc(moeprune, "--delete")
    assert answer.json["items"] == [] and building.is_dir() and progress.is_dir()
    process.kill()
    process.join()
    assert gc(moeprune, "--budget", "1GB").json["freed"] == len("half")
    assert building.is_dir() and progress.is_dir()
    assert [item["what"] for item in gc(moeprune, "--delete").json["items"]] == ["unfinished"]
    assert not building.exists() and progress.is_dir()  # from there the run would go on


@pytest.mark.parametrize("words", [(), ("--budget", "0B")], ids=["a week old", "for a budget"])
def test_gc_removes_progress_first_for_a_budget_or_after_a_week(words: tuple[str, ...], cleared, moeprune, run_id):
    moeprune("runs", "keep", run_id)
    saved = Store(cleared).partial(STEP) / "progress"
    saved.write_text("progress")
    assert gc(moeprune, "--budget", "1GB").json["items"] == []
    if not words:
        week = time.time() - 8 * 24 * 3600
        os.utime(saved, (week, week))
        os.utime(saved.parent, (week, week))
    (item,) = gc(moeprune, *words, "--delete").json["items"]
    assert (item["what"], item["bytes"]) == ("progress", len("progress")) and not saved.parent.exists()


def test_gc_leaves_what_no_run_names_unless_told(cleared, moeprune, run_id):
    MlflowClient(Tracker(Store(cleared)).uri).delete_run(run_id)
    answer = gc(moeprune, "--budget", "0B", "--delete")
    assert answer.json["items"] == [] and list(answer.json["stays"]) == ["named by no run of this tracker"]
    assert sum(folders(cleared).values()) == 10
    assert len(gc(moeprune, "--unnamed", "--delete").json["items"]) == 10
    assert sum(folders(cleared).values()) == 0


def test_gc_leaves_files_that_have_another_name_elsewhere(cleared, moeprune):
    (base,) = (cleared / "download").iterdir()
    for shard in base.glob("*.safetensors"):
        os.link(shard, cleared.parent / shard.name)  # as in the cache of the Hub
    paths = [item["path"] for item in gc(moeprune, "--budget", "0B", "--delete").json["items"]]
    assert len(paths) == 9 and not any(path.startswith("download/") for path in paths)
    assert base.is_dir()


@pytest.mark.parametrize("words", [("--budget", "much"), ("--store", "nowhere")])
def test_gc_of_what_is_no_budget_or_no_store_is_refused(words: tuple[str, ...], cleared, moeprune):
    answer = moeprune("gc", *words)
    assert answer.status == 2 and words[1] in answer.err


def test_gc_without_the_tracker_that_knows_what_is_needed_is_refused(cleared, moeprune, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    answer = moeprune("gc", "--budget", "0B", "--delete")
    assert answer.status == 2 and "127.0.0.1:9" in answer.err
    assert sum(folders(cleared).values()) == 10


def test_keep_of_a_sweep_keeps_all_of_its_runs(cleared, moeprune):
    tracker = Tracker(Store(cleared))
    with tracker.sweep("grid", "key", {}, "") as sweep:
        for name in ("first", "second"):
            with tracker.run(name, {}, sweep=sweep.id):
                pass
    assert moeprune("runs", "keep", sweep.id).status == 0
    assert ["keep" in run.tags for run in tracker.find_sweep(sweep.id).children] == [True, True]
    assert moeprune("runs", "keep", "0123456789").status == 2
