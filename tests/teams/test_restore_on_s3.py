"""A run on one machine, restored on another, that share nothing but MLflow's server, S3 and git."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sample
import team_page
from clones import contents
from servers import S3, Team

from flows.project import init


@pytest.fixture
def origin(storage: S3, tmp_path: Path) -> Path:
    """A committed project whose DVC remote is on S3."""
    folder = sample.write_project(tmp_path / "origin")
    init(folder)
    team_page.name_remote(folder, storage.endpoint)
    sample.git(folder, "add", "--all")
    sample.git(folder, "commit", "--quiet", "--message", "project")
    return folder


def moeprune(folder: Path, environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_EXPERIMENT_NAME": "restored"} | environ
    command = [sys.executable, "-m", "flows.command", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_run_of_one_machine_is_restored_on_another(origin: Path, team: Team, storage: S3, tmp_path: Path):
    made = moeprune(origin, team.environ, "run", "params/quick.yaml", "--json")
    assert made.returncode == 0, made.stderr
    run = json.loads(made.stdout.splitlines()[-1])["run_id"]
    fresh = tmp_path / "fresh"
    sample.git(tmp_path, "clone", "--quiet", str(origin), str(fresh))  # data.dvc of the run was not committed
    store = origin / ".moeprune"
    before = {stage: contents(store / stage) for stage in ("download", "calibrate", "score", "mask", "prune")}
    shutil.rmtree(store)
    shutil.rmtree(origin / "data")
    shutil.rmtree(origin / ".dvc/cache")

    done = moeprune(fresh, team.environ, "restore", run[:8], "--json")
    assert done.returncode == 0, done.stderr
    assert {stage: contents(fresh / ".moeprune" / stage) for stage in before} == before
    how = {result["title"]: result["how"] for result in json.loads(done.stdout.splitlines()[-1])["results"]}
    assert (how["calibrate wiki"], how["mask"], how["score reap"]) == ("from DVC", "from DVC", "from the tracker")

    found = json.loads(moeprune(fresh, team.environ, "verify", run[:8], "--json").stdout.splitlines()[-1])
    faults = {(thing["where"], thing["name"]) for thing in found["things"] if thing["state"] != "ok"}
    assert faults == {("store", "observe wiki"), ("store", "observe code")}

    # One file of the run is lost in the bucket, and one damaged.
    (lost,) = storage.folder.rglob("scores.safetensors")
    lost.unlink()
    (damaged,) = storage.folder.rglob("mask.json")
    damaged.write_text(damaged.read_text().replace("0", "1", 1))
    found = json.loads(moeprune(fresh, team.environ, "verify", run[:8], "--json").stdout.splitlines()[-1])
    faults = {(thing["name"], thing["state"]) for thing in found["things"] if thing["where"] == "tracker"} - {
        (thing["name"], "ok") for thing in found["things"]
    }
    assert faults == {("score reap: scores.safetensors", "missing"), ("mask: mask.json", "changed")}
