"""Sweeps: what is shared is made once, one after another or several at once; failures; what is left is gone on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import killed
import pytest
import sample
from browser import browser
from mlflow.tracking import MlflowClient
from sweeps import GRID, counts, grid

from flows.engine import here
from flows.outcome import Outcome
from flows.preflight import preflight
from flows.recipe import parse_recipe, read_recipe
from flows.sweep import flow
from flows.sweep.flow import divided
from flows.walk import walk
from moeprune.hashing import sha256
from tasks.artifacts import Store
from tasks.tracking import Tracker


def tracked(folder: Path) -> tuple[MlflowClient, str]:
    """MLflow's client and the id of the experiment."""
    client = MlflowClient(f"sqlite:///{folder}/.moeprune/mlflow.db")
    return client, client.get_experiment_by_name("moeprune").experiment_id


def contents(store: Path, *stages: str) -> dict[str, str]:
    """sha256 of every file but the manifests, which tell when and by which run."""
    return {
        str(path.relative_to(store)): sha256(path)
        for stage in stages
        for path in (store / stage).rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def test_threads_are_divided_among_recipes_at_once_and_each_has_one_at_least():
    recipe = parse_recipe(sample.RECIPE | {"runtime": {"threads": 5, "device": "cpu"}}, "")
    assert [divided(recipe, count).runtime.threads for count in (2, 4, 8)] == [2, 1, 1]
    assert divided(recipe, 2).runtime.device == "cpu" and divided(recipe, 2).mask == recipe.mask


def test_sweep_runs_every_combination_and_what_they_share_once(done, server, moeprune):
    grid(sample.EVALUATE | {"tasks": []}, mask={"ratio": [0.25, 0.5]}, score={"criterion": ["reap", "frequency"]})
    planned = counts(moeprune("plan", GRID))
    answer = moeprune("sweep", GRID, "--json")
    assert answer.status == 0, answer.err
    missed = [line.split("  ")[1].strip() for line in answer.err.splitlines() if line.startswith("miss ")]
    assert missed.count("evaluate base") == 1
    assert missed.count("score frequency") == 1
    assert not [title for title in missed if title.split()[0] in ("download", "calibrate", "observe")]
    assert len(missed) == planned["all"][3]
    assert "recipe 3 of 4: reap, 50%" in answer.err.splitlines()
    rows = [line for line in answer.out.splitlines() if "│" in line and "%" in line]
    assert len(rows) == 4

    result = answer.json
    assert [(run["method"], run["budget"]) for run in result["runs"]] == [
        ("reap", "25%"), ("frequency", "25%"), ("reap", "50%"), ("frequency", "50%"),
    ]  # fmt: skip
    assert result["status"] == "done" and {run["status"] for run in result["runs"]} == {"done"}
    assert all(run["metrics"]["delta"] and Path(run["checkpoint"]).is_dir() for run in result["runs"])
    assert len(result["table"]) == 4

    client, experiment = tracked(done)
    parent = client.get_run(result["run_id"])
    assert parent.info.status == "FINISHED" and parent.data.params["mask.ratio"] == "0.25 | 0.5"
    assert parent.data.metrics["done"] == 4 and parent.data.metrics["stages_made"] == len(missed)
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "recipes.yaml", "report.html", "table.md",
    }  # fmt: skip
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.info.run_id for run in runs} == {run["run_id"] for run in result["runs"]}
    stages = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{result['runs'][0]['run_id']}'")
    assert {stage.data.tags["stage"] for stage in stages} >= {"download", "mask", "evaluate"}

    listed = moeprune("runs", "list").out
    assert "sweep, 4 of 4 recipes" in listed and "frequency" not in listed
    nested = moeprune("runs", "list", parent.info.run_id[:8]).out
    assert nested.count("frequency, ") == nested.count("reap, ") == 2
    assert counts(moeprune("plan", GRID))["all"][3] == 0
    assert moeprune("runs", "compare", *(run["run_id"][:12] for run in result["runs"][:2])).status == 0

    report = Path(client.download_artifacts(parent.info.run_id, "report.html", str(done)))
    with browser(done) as window:
        window.open(report)
        assert window.messages() == [] and window.crowded() == [] and window.requests() == [report.as_uri()]
        (table,) = window.find("table")
        told = [[cell.text for cell in line.find_elements("css selector", "td")] for line in window.find("tbody tr")]
        assert {(line[0], line[1]) for line in told} == {(line["removed"], line["method"]) for line in result["table"]}
        assert {line[2] for line in told} == {line["Δ ln ppl wiki"] for line in result["table"]}
        assert table.is_displayed() and len(window.find(".plot .main-svg")) > 0


def test_sweep_with_two_at_once_makes_the_same_and_nothing_twice_and_failures_stop_nobody(
    project, finished, server, moeprune
):
    # 100,000 tokens are more than the corpora have, which is found out when they are tokenised.
    grid(
        calibrate={"tokens": [256, 100_000]}, mask={"ratio": [0.25, 0.5]}, score={"criterion": ["reap", "ean"]},
        runtime={"threads": 2},
    )  # fmt: skip
    answer = moeprune("sweep", GRID, "--max-parallel", "2", "--json")
    assert answer.status == 1, answer.err
    result = answer.json
    statuses = ["done", "done", "done", "done", "failed", "failed", "failed", "failed"]
    assert [run["status"] for run in result["runs"]] == statuses and result["status"] == "failed"
    errors = [run["error"] for run in result["runs"]]
    assert errors[:4] == [None] * 4 and all("100000 tokens wanted" in error for error in errors[4:])
    assert sum("failed for another recipe already" in error for error in errors[4:]) == 3
    assert "error: 4 of 8 recipes failed" in answer.err and "recipe 5 (reap, 25%): " in answer.err

    client, experiment = tracked(project)
    children = client.search_runs([experiment], "tags.role = 'stage'")
    made = Counter(child.data.tags["key"] for child in children if child.data.tags["cache"] == "miss")
    assert set(made.values()) == {1}
    manifests = [json.loads(path.read_text()) for path in (project / ".moeprune").glob("*/*/manifest.json")]
    assert set(made) == {manifest["key"] for manifest in manifests}
    assert {manifest["producer"]["runtime"]["threads"] for manifest in manifests} == {1}, "two were not divided by two"
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{result['run_id']}'")
    assert Counter(run.info.status for run in runs) == {"FINISHED": 4, "FAILED": 4}
    assert client.get_run(result["run_id"]).info.status == "FAILED"

    # In other processes, beside others, yet to the byte what one run alone has made with one thread.
    alone = contents(finished[0] / ".moeprune", "calibrate", "observe", "score", "mask", "prune")
    assert alone.items() <= contents(project / ".moeprune", "calibrate", "observe", "score", "mask", "prune").items()
    assert prefect_states(server, "recipe 1 of 8: observe wiki") | prefect_states(
        server, "recipe 2 of 8: observe wiki"
    ) == {"Completed", "Cached"}

    # Once more, one after another: the same sweep goes on, and what is done is not recorded again.
    again = moeprune("sweep", GRID, "--json")
    assert again.status == 1 and again.json["run_id"] == result["run_id"]
    assert [run["run_id"] for run in again.json["runs"][:4]] == [run["run_id"] for run in result["runs"][:4]]
    assert again.err.count("done before") == 4
    assert client.get_run(result["run_id"]).info.status == "FAILED"


def test_recipe_done_before_whose_results_went_since_they_were_looked_up_is_run_again(done, monkeypatch):
    store, recipe = Store(done / ".moeprune"), read_recipe(Path("params/whole.yaml"))
    sources = preflight(recipe, store, done)
    job = flow.Job(1, recipe, sources, walk(recipe, sources, store))
    course = flow.Course("grid", store, SimpleNamespace(id="sweep"), 1, {job.walk.origin: "before"})
    monkeypatch.setattr(flow, "run_recipe", lambda *_: Outcome("anew"))
    assert course.entry(job, here).outcome.run_id == "before"
    shutil.rmtree(store.folder(job.walk.made.mask))
    assert course.entry(job, here).outcome.run_id == "anew"


def prefect_states(server: str, name: str) -> set[str]:
    """The names of the states that task runs of this name have ended in."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterName

    with get_client(sync_client=True) as client:
        found = client.read_task_runs(task_run_filter=TaskRunFilter(name=TaskRunFilterName(any_=[name])))
    return {run.state_name for run in found}


def processes_of(session: int) -> dict[int, str]:
    """The commands of the processes of a session that are not dead."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, own, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(own) == session and state not in "ZX":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it has ended meanwhile
    return found


def wait(reached: Callable[[], object], seconds: int) -> None:
    for _ in range(10 * seconds):
        if reached():
            return
        threading.Event().wait(0.1)
    pytest.fail("it has not come to that")


MEASURING = """
import subprocess
from flows.command import main
from moeprune import footprint

footprint.measure = lambda *_: subprocess.run(["sleep", "1000"])  # in workers too, which import this file

if __name__ == "__main__":
    main()
"""


def test_sweep_interrupted_with_two_at_once_leaves_no_process_and_goes_on(done, server, moeprune):
    grid(sample.EVALUATE | {"tasks": []}, mask={"ratio": [0.375, 0.5]}, score={"criterion": ["reap", "frequency"]})
    Path("measuring.py").write_text(MEASURING)
    command = [sys.executable, "measuring.py", "sweep", GRID, "--max-parallel", "2"]
    environment = os.environ | {"PREFECT_API_URL": server}
    with Path("interrupted.log").open("w") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    # One recipe has the memory of the base measured, by a process of its worker's; the other waits for that.
    wait(lambda: "sleep 1000 " in processes_of(child.pid).values(), 300)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    assert child.wait(120) == 1
    assert "error: interrupted" in Path("interrupted.log").read_text()
    wait(lambda: not processes_of(child.pid), 30)
    tracker = Tracker(Store(done / ".moeprune"))
    (sweep, _) = tracker.list_runs()
    assert sweep.status == "KILLED"
    assert [run.status for run in tracker.find_sweep(sweep.id).children] == ["KILLED", "KILLED"]

    answer = moeprune("sweep", GRID, "--json")
    assert answer.status == 0, answer.err
    assert answer.json["run_id"] == sweep.id
    assert Counter(run.status for run in tracker.find_sweep(sweep.id).children) == {"KILLED": 2, "FINISHED": 4}


def test_sweep_killed_goes_on_in_the_same_run(done, server, moeprune, monkeypatch):
    grid(score={"criterion": ["reap", "frequency", "ean"]})
    # The first recipe has seven stages, all hits; the second dies as its scores are to be recorded.
    assert killed.moeprune(done, ("sweep", GRID), "tasks.tracking.Run.log_stage", 7 + 6, server) == -9
    tracker = Tracker(Store(done / ".moeprune"))
    sweep = tracker.list_runs()[0]
    before = tracker.find_sweep(sweep.id).children
    assert sweep.status == "RUNNING" and [run.status for run in before] == ["FINISHED", "RUNNING"]

    answer = moeprune("sweep", GRID, "--json")
    assert answer.status == 0, answer.err
    assert answer.json["run_id"] == sweep.id
    assert "recipe 1 of 3: reap, 25%: done before" in answer.err.splitlines()
    after = tracker.find_sweep(sweep.id)
    assert after.status == "FINISHED" and after.metrics["done"] == 3
    assert [run.status for run in after.children] == ["FINISHED", "KILLED", "FINISHED", "FINISHED"]
    assert answer.json["runs"][0]["run_id"] == before[0].id
    assert [record.tags["role"] for record in tracker.list_runs()] == ["sweep", "run"]

    # One that came to its end is not gone on with: it is run anew, all hits. Nor is it lost for want of a report.
    monkeypatch.setattr("flows.sweep.report.report_of", lambda *_: [].pop())
    ended = moeprune("sweep", GRID, "--json")
    assert ended.status == 0 and "the report cannot be made: IndexError" in ended.err
    anew = ended.json
    assert anew["run_id"] != sweep.id and {run["run_id"] for run in anew["runs"]}.isdisjoint(
        {run.id for run in after.children}
    )
    assert {stage["cache"] for run in anew["runs"] for stage in run["stages"].values()} == {"hit"}
