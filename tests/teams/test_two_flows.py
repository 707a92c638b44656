"""Flows at once on what a team shares: a store, Prefect and MLflow on PostgreSQL, artifacts and DVC's remote on S3."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

import pytest
import sample
import team_page
from servers import BUCKET, S3, Team

from flows.project import init
from tasks import versioning
from tasks.artifacts import Store
from tasks.tracking import Tracker

QUIET = {"OMP_NUM_THREADS": "1"}


def clone(origin: Path, folder: Path) -> Path:
    """A fresh clone of a project."""
    sample.git(origin.parent, "clone", "--quiet", str(origin), str(folder))
    return folder


@pytest.fixture
def origin(storage: S3, tmp_path: Path) -> Path:
    """A committed project whose DVC remote is on S3."""
    folder = sample.write_project(tmp_path / "origin")
    init(folder)
    team_page.name_remote(folder, storage.endpoint)
    sample.git(folder, "add", "--all")
    sample.git(folder, "commit", "--quiet", "--message", "project")
    return folder


def start(folder: Path, environ: dict[str, str], *words: str) -> subprocess.Popen[str]:
    """A run from the command line."""
    command = [sys.executable, "-m", "flows.command", "run", "params/quick.yaml", *words, "--json"]
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"} | QUIET | environ
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, **pipes)


def states(team: Team, flow_runs: set[str]) -> dict[str, str]:
    """The states Prefect's server has of flow runs."""
    body = json.dumps({"flow_runs": {"id": {"any_": sorted(flow_runs)}}}).encode()
    request = Request(f"{team.prefect}/flow_runs/filter", body, {"Content-Type": "application/json"})
    with build_opener(ProxyHandler({})).open(request) as answer:
        return {found["id"]: found["state_type"] for found in json.load(answer)}


def test_flows_at_once_on_shared_state_lose_nothing(origin, team: Team, tmp_path, monkeypatch):
    store = tmp_path / "store"
    environ = team.environ | {"MOEPRUNE_STORE": str(store), "MLFLOW_EXPERIMENT_NAME": "two-flows"}
    # In one clone, so that both write its data.dvc; until the mask both want the same of the store.
    children = [start(origin, environ, *words) for words in ((), ("--set", "mask.ratio=0.5"))]
    answers = []
    for child in children:
        out, err = child.communicate(timeout=500)
        assert child.returncode == 0, err
        assert "lock" not in err.lower() and "Traceback" not in err, err
        answers.append(json.loads(out.splitlines()[-1]))

    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    tracker = Tracker(Store(tmp_path / "later"))
    runs = {run.id: run for run in tracker.runs_with_stages()}
    assert runs.keys() == {answer["run_id"] for answer in answers}
    stages = [stage for run in runs.values() for stage in run.children]
    assert {record.status for record in (*runs.values(), *stages)} == {"FINISHED"}
    wanted = {name: len(entry["artifacts"]) for name, entry in answers[0]["stages"].items()}
    assert Counter(stage.tags["stage"] for stage in stages) == {name: 2 * count for name, count in wanted.items()}
    made = Counter(stage.tags["key"] for stage in stages if stage.tags["cache"] == "miss")
    assert set(made.values()) == {1}, "two flows have made the same thing"
    assert made.keys() == {stage.tags["key"] for stage in stages}
    assert len([model for model in tracker.models() if model.kind == "base"]) == 1
    assert len([model for model in tracker.models() if model.kind == "pruned"]) == 2

    masks = [stage for stage in stages if stage.tags["stage"] == "mask"]
    for stage in masks:
        kept = tracker.fetch(stage.id, "mask.json", tmp_path)
        assert kept.read_bytes() == (store / "mask" / stage.tags["key"] / "mask.json").read_bytes()
        assert len(list((team.s3.folder / BUCKET / "mlflow").rglob(f"{stage.id}/artifacts/mask.json"))) == 1
    flow_runs = {stage.tags["produced_by_flow_run"] for stage in stages}
    assert states(team, flow_runs) == dict.fromkeys(flow_runs, "COMPLETED")

    # What was pushed is all that a colleague needs.
    sample.git(origin, "add", "data.dvc")
    sample.git(origin, "commit", "--quiet", "--message", "data")
    fresh = clone(origin, tmp_path / "fresh")
    versioning.pull(fresh)
    names = {f"{stage.tags['digest'][:8]}.json" for stage in masks}
    assert {path.name for path in (fresh / "data/masks").iterdir()} == names
    for stage in stages:
        if md5 := stage.tags.get("dvc.md5"):
            assert hashlib.md5(versioning.restore(md5, fresh).read_bytes()).hexdigest() == md5
