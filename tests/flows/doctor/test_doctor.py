"""What `moeprune doctor` says of real servers, projects and environments, well and ill."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sample
import team_page
from servers import BUCKET, S3, Team
from started import free_port

from flows import doctor
from flows.doctor import machine, servers
from flows.doctor.health import Finding, refused
from moeprune.errors import BadInput
from tasks.artifacts import Store
from tasks.tracking import Tracker

STORE = Store(Path("store"))


def one(check: doctor.Check, subject: str = "") -> Finding:
    """What a check says of its subject."""
    (found,) = [finding for finding in check(STORE) if finding.subject == (subject or finding.subject)]
    return found


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def keys(storage: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The team's keys in the environment; nobody is asked for others."""
    for name, value in (storage.environ | {"AWS_EC2_METADATA_DISABLED": "true"}).items():
        monkeypatch.setenv(name, value)
    return storage


def test_doctor_in_an_empty_folder_says_how_to_mend_it_and_that_mends_it(moeprune, tmp_path, monkeypatch):
    monkeypatch.delenv("MOEPRUNE_STORE", raising=False)
    answer = moeprune("doctor", "--json")
    assert answer.status == 1
    assert answer.json["status"] == "failed" and answer.json["error"] in answer.err
    said = {found["subject"]: found for found in answer.json["findings"]}
    assert said["git"]["health"] == "warn" and said["DVC"]["health"] == "fail"
    assert {said[name]["mend"] for name in ("git", "DVC")} == {"run `moeprune init`"}
    assert "DVC remote" not in said

    assert moeprune("init").status == 0
    assert one(doctor.project.git).what.startswith("nothing is committed")
    sample.git(tmp_path, "add", "--all")
    sample.git(tmp_path, "commit", "--quiet", "--message", "project")
    answer = moeprune("doctor", "--json")
    assert answer.status == 0 and answer.json["status"] == "done", answer.out
    said = {found["subject"]: found for found in answer.json["findings"]}
    assert said["git"]["health"] == "ok" and said["DVC"]["health"] == "ok"
    assert said["DVC remote"]["health"] == "warn" and "dvc remote add" in said["DVC remote"]["mend"]

    Path("new").touch()
    assert one(doctor.project.git).health == "warn"


def test_doctor_of_a_whole_team_finds_nothing_ill(team: Team, template, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    team_page.name_remote(folder, team.s3.endpoint)
    sample.git(folder, "commit", "--all", "--quiet", "--message", "remote")
    command = [sys.executable, "-m", "flows.command", "doctor", "--json"]
    answer = subprocess.run(command, cwd=folder, env=os.environ | team.environ, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    said = {found["subject"]: found for found in json.loads(answer.stdout.splitlines()[-1])["findings"]}
    reached = ("git", "DVC", "DVC remote", "Prefect", "MLflow", "artifacts")
    assert {name: said[name]["health"] for name in reached} == dict.fromkeys(reached, "ok"), answer.stdout
    assert team.prefect in said["Prefect"]["what"] and said["MLflow"]["what"] == team.mlflow
    assert said["DVC remote"]["what"] == f"s3://{BUCKET}/dvc"
    assert said["artifacts"]["what"].startswith("mlflow-artifacts:/")
    assert not {"browser", "PostgreSQL", "fonts"} & said.keys(), "asked for in moeprune's own clone only"


def test_doctor_says_when_the_server_does_not_schedule(server, monkeypatch):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.states import Scheduled

    monkeypatch.setattr(servers, "SETTLED", timedelta(0))
    with get_client(sync_client=True) as client:
        flow = client.create_flow_from_name("nothing")
        yearly = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 0 1 1 *"), active=True)
        nightly = client.create_deployment(flow, "nightly", schedules=[yearly])
        client.create_deployment(flow, "by-hand")
        try:
            found = one(servers.prefect, "schedules")  # a server of tests has no scheduler
            assert found.health == "fail" and "of nightly no run is ahead" in found.what
            client.create_flow_run_from_deployment(nightly, state=Scheduled())
            assert "schedules" not in [found.subject for found in servers.prefect(STORE)]
        finally:
            client.delete_flow(flow)


def test_doctor_says_when_only_the_name_of_a_remote_is_known(project):
    subprocess.run([sys.executable, "-m", "dvc", "config", "core.remote", "team"], check=True)
    found = one(doctor.project.dvc, "DVC remote")
    assert found.health == "fail" and "no address is known here" in found.what
    assert found.mend == "`dvc remote add team ADDRESS`"


@pytest.mark.parametrize("ill", ["address", "keys", "bucket"])
def test_doctor_says_what_is_ill_with_a_remote_on_s3(ill, project, keys: S3, monkeypatch):
    endpoint = f"http://127.0.0.1:{free_port()}" if ill == "address" else keys.endpoint
    team_page.name_remote(project, endpoint, "s3://absent/dvc" if ill == "bucket" else f"s3://{BUCKET}/dvc")
    if ill == "keys":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    found = one(doctor.project.dvc, "DVC remote")
    assert found.health == "fail" and "team" in found.what
    told = {"address": "refused", "keys": "forbidden", "bucket": "no bucket 'absent'"}
    assert told[ill] in found.what.lower()
    assert "dvc remote modify" in found.mend


def test_doctor_says_when_a_remote_in_a_folder_cannot_be_made(project, tmp_path):
    (tmp_path / "remote").mkdir()
    place = tmp_path / "remote/dvc"
    subprocess.run([sys.executable, "-m", "dvc", "remote", "add", "--default", "team", str(place)], check=True)
    assert one(doctor.project.dvc, "DVC remote") == Finding("DVC remote", "ok", str(place))
    shutil.rmtree(tmp_path / "remote")
    (tmp_path / "remote").write_text("a file")
    assert one(doctor.project.dvc, "DVC remote").health == "fail"


def test_doctor_says_when_servers_do_not_answer(tmp_path, monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    dead = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead)
    with temporary_settings({PREFECT_API_URL: f"{dead}/api"}):
        found = [one(servers.prefect), one(servers.mlflow)]
    assert [finding.health for finding in found] == ["fail", "fail"]
    assert all(dead in finding.what for finding in found)
    assert "PREFECT_API_URL" in found[0].mend and "MLFLOW_TRACKING_URI" in found[1].mend


def test_doctor_says_when_the_store_behind_mlflow_does_not_answer(storage: S3, mlflow_url, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_url)
    os.kill(storage.pid, signal.SIGSTOP)
    try:
        found = list(servers.mlflow(Store(tmp_path)))
    finally:
        os.kill(storage.pid, signal.SIGCONT)
    assert [(finding.subject, finding.health) for finding in found] == [("MLflow", "ok"), ("artifacts", "fail")]
    assert "MLFLOW_S3_ENDPOINT_URL" in found[1].mend
    assert [finding.health for finding in servers.mlflow(Store(tmp_path))] == ["ok", "ok"]


def test_doctor_says_that_a_database_without_a_server_keeps_files_here(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", cluster.create())
    database, files = servers.mlflow(Store(tmp_path))
    assert database.health == "ok" and "team-secret" not in database.what
    assert files.health == "warn" and str(tmp_path) in files.what and "mlflow server" in files.mend


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, **metadata: Any) -> None:
    """Have moeprune's metadata say something else, ahead of that which is installed."""
    lines = [f"{key.replace('_', '-')}: {value}" for key, values in metadata.items() for value in values]
    info = folder / "moeprune-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", "Name: moeprune", "Version: 9", *lines, ""]))
    monkeypatch.syspath_prepend(folder)


def test_packages_that_are_not_as_required_fail(tmp_path, monkeypatch):
    wanted = ["pytest<1", "no-such-package>=2", "sample; extra == 'dev'", "pyyaml>=6"]
    installed(tmp_path, monkeypatch, Requires_Python=["<3.9"], Requires_Dist=wanted)
    found = one(machine.packages)
    assert found.health == "fail" and "pip install" in found.mend
    assert found.what == f"pytest {pytest.__version__} (<1), no-such-package is missing (>=2)"
    assert one(machine.python).health == "fail"


def test_packages_that_are_not_as_tested_are_warned_of(tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, Requires_Python=[">=3.9"], Requires_Dist=["pyyaml>=6"])
    monkeypatch.setattr(machine, "CLONE", tmp_path)
    constraints = tmp_path / "constraints.txt"
    import torch

    constraints.write_text(f"pytest==0.1\nnot-installed==1\ntorch=={torch.__version__.partition('+')[0]}\n")
    found = one(machine.packages)
    assert found.health == "warn" and found.what == f"not as tested: pytest {pytest.__version__} (0.1)"
    assert str(constraints) in found.mend
    constraints.write_text(f"pytest=={pytest.__version__}\n")
    assert one(machine.packages).health == "ok"
    constraints.unlink()
    assert one(machine.packages) == Finding("packages", "ok", "as required")


@pytest.mark.parametrize(("free", "health"), [(0.9e9, "fail"), (9.9e9, "warn"), (10e9, "ok")])
def test_disk_that_is_almost_full_is_told_of(free, health, tmp_path, monkeypatch):
    asked = []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage._replace(free=free))
    (found,) = machine.disk(Store(tmp_path / "not/yet"))
    assert found.health == health and f"{free / 1e9:.1f} GB" in found.what
    assert asked == [tmp_path]


@pytest.fixture
def shared() -> Iterator[Store]:
    """A store that root has made, and that this test looks at as somebody else."""
    if os.getuid():
        pytest.skip("only root can be another user")
    with tempfile.TemporaryDirectory(prefix="moeprune-store-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        os.chown(root, -1, 65534)
        os.chmod(root, 0o2775)
        before = os.umask(0o002)
        made = Store(root / "store")
        with made.lock("first"):
            pass
        (made.root / "mask/one").mkdir(parents=True)
        (made.root / "mask/one/manifest.json").write_text("{}")
        groups = os.getgroups()
        os.setgroups([])
        os.setegid(65534)
        os.seteuid(65534)
        yield made
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
        os.umask(before)


def test_store_of_a_group_is_well_and_what_others_cannot_write_is_told_of(shared: Store):
    assert list(machine.store(shared)) == [Finding("store", "ok", str(shared.root))]
    os.umask(0o022)
    (found,) = machine.store(shared)
    assert found.health == "warn" and "umask" in found.mend
    os.umask(0o002)
    for name in ("locks/first.lock", "mask/one/manifest.json", "locks"):
        path = shared.root / name
        os.seteuid(0)
        path.chmod(path.stat().st_mode & ~0o020)
        os.seteuid(65534)
        (found,) = machine.store(shared)
        assert found.health == "fail" and str(path) in found.what and "group" in found.mend
        os.seteuid(0)
        path.chmod(path.stat().st_mode | 0o020)
        os.seteuid(65534)


def test_store_that_is_yet_to_be_made_is_not_looked_at(tmp_path):
    assert list(machine.store(Store(tmp_path / "not/yet"))) == []


def test_run_that_prefect_knows_to_be_over_and_mlflow_does_not_is_told_of(server, moeprune, tmp_path, monkeypatch):
    from prefect import flow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(Store(tmp_path / "store"))
    tracker.check()
    begun = []

    @flow
    def dies(message: str) -> None:
        begun.append(tracker.run("lost", {}, {"place": "elsewhere:1"}))
        begun.append(begun[0].__enter__())
        assert not list(servers.runs(tracker.store)), "it is under way"
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="gone"):
        dies("its machine is gone")
    (found,) = servers.runs(tracker.store)
    run = begun[1].id
    assert found.health == "warn" and f"{run[:8]} (lost)" in found.what and "Failed" in found.what
    assert moeprune(*shlex.split(found.mend.split("`")[1])[1:]).status == 0
    assert tracker.find_run(run).status == "KILLED" and not list(servers.runs(tracker.store))


def test_run_that_was_wrongly_marked_as_crashed_goes_on_and_is_told_of_meanwhile(server, tmp_path, monkeypatch):
    from prefect import flow, runtime, task
    from prefect.client.orchestration import get_client
    from prefect.states import Crashed

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(Store(tmp_path / "store"))
    tracker.check()

    @task
    def add(one: int) -> int:
        return one + 1

    @flow
    def lives() -> tuple[int, str, str]:
        with tracker.run("living", {}) as run:
            first = add(0)
            with get_client(sync_client=True) as client:  # as the server does after ten minutes without a heartbeat
                client.set_flow_run_state(runtime.flow_run.id, Crashed(), force=True)
            (found,) = servers.runs(tracker.store)
            assert "(living) is RUNNING in MLflow and Crashed in Prefect" in found.what
            assert found.mend.startswith("if its process is gone")
            return add(first), runtime.flow_run.id, run.id

    done, flow_run, run = lives()
    with get_client(sync_client=True) as client:
        assert (done, client.read_flow_run(flow_run).state.name) == (2, "Completed")
    assert tracker.find_run(run).status == "FINISHED" and not list(servers.runs(tracker.store))


def test_accelerator_that_torch_does_not_see_is_told_of(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert one(machine.device).health == "ok"
    (tmp_path / "nvidia-smi").touch(0o755)
    assert one(machine.device).health == "warn"


def test_needs_of_tests_are_told_in_the_clone_only(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CLONE", tmp_path)
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path / "tests")
    assert not list(machine.tests(STORE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [(found.health, found.mend) for found in machine.tests(STORE) if found.subject == "browser"] == [
        ("warn", "`make browser`")
    ]


def test_check_that_breaks_does_not_stop_the_others(monkeypatch):
    def broken(store: Store) -> Any:
        yield Finding("one", "ok", "fine")
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(doctor, "CHECKS", (broken, machine.disk))
    assert [(found.subject, found.health) for found in doctor.examine(STORE)][:2] == [("one", "ok"), ("broken", "fail")]
    assert [found.subject for found in doctor.examine(STORE)][2:] == ["disk"]


def test_refusal_is_split_into_what_and_how_to_mend():
    found = refused("DVC", BadInput("it is broken: really: mend it"))
    assert found == Finding("DVC", "fail", "it is broken: really", "mend it")
