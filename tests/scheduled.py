"""A Prefect server that schedules, its workers, and what they have done."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from started import answers, free_port, running

PATIENCE = 600
"""Seconds that a flow run may take on a busy machine."""
QUICK = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT1S",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "3",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
}
"""A server and workers that look what is to be done every second or two."""
POOL = {"name": "moeprune", "job_variables": {"working_dir": "."}}


@contextmanager
def scheduler(folder: Path) -> Iterator[str]:
    """A server with a database of its own in `folder`; yields the address of its API."""
    folder.mkdir()
    port = free_port()
    environment = os.environ | QUICK | {"PREFECT_HOME": str(folder)}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, answers(f"http://127.0.0.1:{port}/api/health"), folder / "log", env=environment, cwd=folder):
        yield f"http://127.0.0.1:{port}/api"


@dataclass(frozen=True)
class Place:
    """A folder on a machine, with the environment in which people and workers are there."""

    folder: Path
    environ: dict[str, str]

    def moeprune(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command there."""
        return subprocess.run(
            [sys.executable, "-m", "flows.command", *words],
            cwd=self.folder, env=os.environ | self.environ, capture_output=True, text=True, check=False,
        )  # fmt: skip

    @contextmanager
    def serving(self, *words: str) -> Iterator[int]:
        """`moeprune serve` there meanwhile; yields its process id."""
        command = [sys.executable, "-m", "flows.command", "serve", *words]
        with running(
            command, lambda: None, self.folder / "serve.log", cwd=self.folder, env=os.environ | QUICK | self.environ
        ) as pid:
            yield pid

    def work_once(self) -> None:
        """A worker there, which runs what is due and ends."""
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL["name"], "--run-once"]
        done = subprocess.run(
            command, cwd=self.folder, env=os.environ | QUICK | self.environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def write_file(folder: Path, *entries: dict[str, Any]) -> None:
    """A prefect.yaml with these deployments of `prune` by params/quick.yaml, on one pool, one run at a time."""
    common = {
        "entrypoint": "flows.pruning.prune_model",
        "build": [{"flows.deployment.recipes.read": {"id": "file", "recipe": "params/quick.yaml"}}],
        "parameters": {"recipe": "{{ file.recipe }}", "name": "{{ file.name }}"},
        "tags": ["moeprune", "prune"],
        "work_pool": POOL,
        "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"},
    }
    content = {"name": "moeprune", "pull": [], "deployments": [common | entry for entry in entries]}
    (folder / "prefect.yaml").write_text(yaml.safe_dump(content))


@contextmanager
def client_of(api: str) -> Iterator[SyncPrefectClient]:
    """A client of a server, which this process otherwise does not use."""
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        yield client


def wait(what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What is true at last; fails if nothing is."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if found := what():
            return found
        time.sleep(0.5)
    raise AssertionError("it has not come about")
