"""A run on one machine, restored on another, that share nothing but MLflow's server, S3 and git."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
import sample
import team_page
from clones import contents, flip_a_byte
from mlflow.tracking import MlflowClient
from servers import BUCKET, S3, Team

from flows.project import init


@pytest.fixture
def origin(storage: S3, tmp_path: Path) -> Path:
    """A committed project whose DVC remote is on S3."""
    folder = sample.write_project(tmp_path / "origin")
    init(folder)
    team_page.name_remote(folder, storage.endpoint, f"s3://{BUCKET}/restored")  # its own, as objects are damaged
    sample.git(folder, "add", "--all")
    sample.git(folder, "commit", "--quiet", "--message", "project")
    return folder


def moeprune(folder: Path, environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_EXPERIMENT_NAME": "restored"} | environ
    command = [sys.executable, "-m", "flows.command", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def delete(path: Path, storage: S3) -> None:
    """Have the S3 store delete an object, given by its file."""
    keys = {name.lower(): storage.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    client = boto3.client("s3", endpoint_url=storage.endpoint, region_name="us-east-1", **keys)
    client.delete_object(Bucket=BUCKET, Key=str(path.relative_to(storage.folder / BUCKET)))


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

    # In the bucket a file of the tracker is lost, one is damaged, and so is one of DVC.
    client = MlflowClient(team.mlflow)
    (experiment,) = client.search_experiments(filter_string="name = 'restored'")
    ids = {stage.info.run_name: stage.info.run_id for stage in client.search_runs([experiment.experiment_id])}
    delete(next(storage.folder.rglob(f"{ids['score reap']}/artifacts/scores.safetensors")), storage)
    flip_a_byte(next(storage.folder.rglob(f"{ids['mask']}/artifacts/mask.json")))
    (mask,) = (content for name, content in before["mask"].items() if name.endswith("mask.json"))
    md5 = hashlib.md5(mask).hexdigest()
    flip_a_byte(storage.folder / BUCKET / "restored/files/md5" / md5[:2] / md5[2:])
    shutil.rmtree(fresh / ".dvc/cache")
    found = json.loads(moeprune(fresh, team.environ, "verify", run[:8], "--json").stdout.splitlines()[-1])
    faults = {(thing["where"], thing["name"]): thing["state"] for thing in found["things"] if thing["state"] != "ok"}
    assert faults == {
        ("store", "observe wiki"): "missing",
        ("store", "observe code"): "missing",
        ("tracker", "score reap: scores.safetensors"): "missing",
        ("tracker", "mask: mask.json"): "changed",
        ("DVC", "mask"): "missing",
    }
