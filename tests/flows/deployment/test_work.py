"""Workers: a schedule that fires, work on a shared store from elsewhere, one run at a time, failures that are told."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from scheduled import QUICK, Place, client_of, scheduler, wait, write_file

from tasks.artifacts import Store
from tasks.tracking import Tracker


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scheduler(tmp_path_factory.mktemp("scheduler") / "server") as found:
        yield found


@pytest.fixture(scope="module")
def told() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a team's channel, and the messages that have come in."""
    messages: list[dict[str, Any]] = []

    class Channel(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    channel = ThreadingHTTPServer(("127.0.0.1", 0), Channel)
    Thread(target=channel.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{channel.server_port}/hook", messages
    channel.shutdown()


def soon(folder: Path) -> None:
    """A prefect.yaml there whose flow is due every minute."""
    write_file(folder, {"name": "soon", "schedules": [{"cron": "* * * * *", "active": True}]})


@pytest.fixture(scope="module")
def store(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A team's store, in which the results of params/whole.yaml are."""
    folder = tmp_path_factory.mktemp("shared") / "store"
    shutil.copytree(finished[0] / ".moeprune", folder)
    return folder


def place_of(template: Path, folder: Path, api: str, store: Path, **environ: str) -> Place:
    """A clone of the project with an environment of its own."""
    shutil.copytree(template, folder / "clone")
    home = folder / "home"
    home.mkdir()
    own = {"HOME": str(home), "PREFECT_HOME": str(home / "prefect")}
    return Place(folder / "clone", own | {"PREFECT_API_URL": api, "MOEPRUNE_STORE": str(store)} | environ)


def test_schedule_fires_and_a_worker_elsewhere_finds_the_results_of_others(api, template, finished, store, tmp_path):
    here = place_of(template, tmp_path / "here", api, store)
    soon(here.folder)
    done = here.moeprune("deploy")
    assert done.returncode == 0, done.stderr
    elsewhere = place_of(template, tmp_path / "elsewhere", api, store)
    with client_of(api) as client:
        deployment = client.read_deployment_by_name("prune/soon")
        wait(lambda: [run for run in client.read_flow_runs() if run.expected_start_time <= datetime.now(UTC)])
        client.update_deployment_schedule(deployment.id, deployment.schedules[0].id, active=False)
        elsewhere.work_once()
        ran = [run for run in client.read_flow_runs() if run.deployment_id == deployment.id]
    assert {run.state.name for run in ran} == {"Completed"} and all(run.auto_scheduled for run in ran)
    tracker = Tracker(Store(store))
    latest = next(run for run in tracker.list_runs() if run.name == "quick")
    made = tracker.find_run(finished[1].json["run_id"])
    makers = {child.name: child.id for child in made.children}
    stages = tracker.find_run(latest.id).children
    assert [stage.tags["cache"] for stage in stages] == ["hit"] * 8
    assert {stage.name: stage.tags["produced_by_run"] for stage in stages}.items() <= makers.items()
    own = elsewhere.folder / ".moeprune"  # with what the template has in it
    assert [path.name for path in own.iterdir()] == ["mlflow.db"] and (elsewhere.folder / "data/corpora").is_dir()


@pytest.fixture(scope="module")
def served(api, template, store, told, tmp_path_factory) -> Iterator[Place]:
    """A place where `moeprune serve` is running, two flows at once, one of each deployment."""
    place = place_of(template, tmp_path_factory.mktemp("served"), api, store, MOEPRUNE_WEBHOOK_URL=told[0])
    write_file(place.folder, {"name": "served", "schedules": []})
    with place.serving("--limit", "2"), client_of(api) as client:
        wait(lambda: [one for one in client.read_deployments() if one.name == "served"])
        yield place


def test_serve_runs_one_at_a_time_where_the_limit_says_so(served, api):
    with client_of(api) as client:
        deployment = client.read_deployment_by_name("prune/served")
        runs = [client.create_flow_run_from_deployment(deployment.id) for _ in range(2)]
    first, second = sorted((ended(api, run.id) for run in runs), key=lambda run: run.start_time)
    assert (first.state.name, second.state.name) == ("Completed", "Completed")
    assert second.start_time >= first.end_time
    with client_of(api) as client:  # both were asked for by the worker at once
        waited = {state.name for run in runs for state in client.read_flow_run_states(run.id)}
    assert "AwaitingConcurrencySlot" in waited


def test_serve_tells_of_a_run_that_fails_and_of_one_that_is_killed(served, api, told):
    with client_of(api) as client:
        deployment = client.read_deployment_by_name("prune/served")
        lost = deployment.parameters["recipe"] | {"download": {"source": "./nowhere"}}
        failing = client.create_flow_run_from_deployment(deployment.id, parameters={"recipe": lost})
        assert ended(api, failing.id).state.name == "Failed"
        (message,) = wait(lambda: [one for one in told[1] if one["id"] == str(failing.id)])
        assert message["state"] == "Failed" and "there is no folder ./nowhere" in message["message"]
        assert "there is no folder ./nowhere" in message["text"] and failing.name in message["text"]
        assert message["recipe"] == deployment.parameters["name"] and message["recipe"] in message["text"]
        assert message["deployment"] == str(deployment.id)

        killed = client.create_flow_run_from_deployment(deployment.id)
        os.kill(wait(lambda: process_of(killed.id)), signal.SIGKILL)
        assert ended(api, killed.id).state.name == "Crashed"
        (message,) = wait(lambda: [one for one in told[1] if one["id"] == str(killed.id)])
        assert message["state"] == "Crashed"


def ended(api: str, flow_run: Any) -> Any:
    """A flow run once it has come to its end."""
    with client_of(api) as client:
        return wait(lambda: (found := client.read_flow_run(flow_run)).state.is_final() and found)


def process_of(flow_run: Any) -> int | None:
    """The process that runs a flow run, once the flow is under way there."""
    own = f"PREFECT__FLOW_RUN_ID={flow_run}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (
                own in (folder / "environ").read_bytes().split(b"\0")
                and b"prefect.engine" in (folder / "cmdline").read_bytes()
            ):
                return int(folder.name)
        except OSError:
            continue
    return None


SILENCE = timedelta(seconds=20)
HANGING = """
import sys, time
from prefect import flow

@flow(name=sys.argv[1])
def hang(seconds: int):
    time.sleep(seconds)

hang(int(sys.argv[2]))
"""


def test_zombie_is_marked_as_crashed_and_nothing_else_is(api, tmp_path):
    from flows.deployment.zombies import crash_zombies

    (tmp_path / "hanging.py").write_text(HANGING)
    environ = os.environ | QUICK | {"PREFECT_API_URL": api, "PREFECT_HOME": str(tmp_path / "home")}

    def start(name: str, seconds: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "hanging.py", name, str(seconds)], cwd=tmp_path, env=environ)

    def states(name: str) -> list[str]:
        flows = {flow.id: flow.name for flow in client.read_flows()}
        return sorted(run.state.name for run in client.read_flow_runs() if flows[run.flow_id] == name)

    def heartbeats() -> int:
        asked = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}}}
        return len(
            {
                event["resource"]["prefect.resource.id"]
                for event in client.request("POST", "/events/filter", json=asked).json()["events"]
            }
        )

    with client_of(api) as client:
        ours = client.create_flow_from_name("ours")
        assert crash_zombies(client, [ours], SILENCE) and not crash_zombies(client, [ours], SILENCE)
        before = heartbeats()
        finishing, zombie, other = start("ours", 1), start("ours", 600), start("theirs", 600)
        wait(lambda: heartbeats() == before + 3)
        for killed in (zombie, other):
            killed.kill()
        assert finishing.wait() == 0
        wait(lambda: states("ours") == ["Completed", "Crashed"])
        assert states("theirs") == ["Running"]
