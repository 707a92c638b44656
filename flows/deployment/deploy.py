"""Registering flows with a Prefect server: deployments as `prefect.yaml` lists them, their work pool, an automation."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker

from flows.deployment.recipes import FILE, Wanted, read_file
from flows.deployment.zombies import crash_zombies
from moeprune.errors import BadInput

PATIENCE = 5
"""Seconds the server may take to answer at first."""


@dataclass(frozen=True)
class Deployed:
    """A deployment as the server holds it."""

    wanted: Wanted
    found: DeploymentResponse
    changed: bool
    """Whether it was registered just now; else it was there already as prefect.yaml has it."""


def deploy() -> list[Deployed]:
    """Register what `prefect.yaml` in the working directory lists and is not registered like that.

    Raises BadInput for a file that cannot be used, or if no server answers; RuntimeError if the server does not hold
    the limits that were asked for.
    """
    listed = read_file()
    with _server() as client:
        for pool in sorted({wanted.pool for wanted in listed}):
            _ensure_pool(client, pool)
        stale = [wanted for wanted in listed if not _is_deployed(wanted, _find(client, wanted))]
        if stale:
            _register(client, stale)
        found = {wanted.name: _find(client, wanted) for wanted in listed}
        deployed = [Deployed(wanted, there, wanted in stale) for wanted in listed if (there := found[wanted.name])]
        crash_zombies(client, {one.found.flow_id for one in deployed})
    wrong = [one.wanted.name for one in deployed if not _is_deployed(one.wanted, one.found)]
    if wrong or len(deployed) < len(listed):
        raise RuntimeError(f"the Prefect server did not take what {FILE} says of {', '.join(wrong) or 'deployments'}")
    return deployed


@contextmanager
def _server() -> Iterator[SyncPrefectClient]:
    """A client of the server. BadInput if there is none that stays."""
    url = get_current_settings().api.url
    if not url:
        raise BadInput(
            "PREFECT_API_URL is not set: schedules need a Prefect server that stays: start one "
            "(`prefect server start`) and set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    with get_client(sync_client=True, httpx_settings={"timeout": PATIENCE}) as client:
        if error := client.api_healthcheck():
            raise BadInput(
                f"PREFECT_API_URL: no Prefect server answers at {url} ({error}): start it, or mend the address"
            )
    with get_client(sync_client=True) as client:
        yield client


def _ensure_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=name, type=ProcessWorker.type, base_job_template=template))


def _find(client: SyncPrefectClient, wanted: Wanted) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(wanted.name)
    except ObjectNotFound:
        return None


def _is_deployed(wanted: Wanted, found: DeploymentResponse | None) -> bool:
    """Whether the server has it. Schedules that people have paused there, and the like, are left to them."""
    if found is None or found.version != wanted.version:
        return False
    limit = found.global_concurrency_limit
    return (limit.limit if limit else None) == wanted.limit and found.work_pool_name == wanted.pool


def _register(client: SyncPrefectClient, stale: list[Wanted]) -> None:
    """Have Prefect's own command register them, and note by which version of the file."""
    names = [word for wanted in stale for word in ("--name", wanted.entry["name"])]
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(FILE), *names]
    environment = os.environ | {"PREFECT_API_URL": str(client.api_url), "COLUMNS": "1000", "NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BadInput(f"{FILE}: Prefect refuses it: {_reason(done.stdout + done.stderr)}")
    for wanted in stale:
        found = _find(client, wanted)
        if found is None:
            continue
        if not wanted.entry.get("schedules"):  # Prefect leaves those that the file no longer has
            for schedule in found.schedules:
                client.delete_deployment_schedule(found.id, schedule.id)
        client.update_deployment(found.id, DeploymentUpdate(version=wanted.version))


def _reason(said: str) -> str:
    """The error with which a command's output ends, in one line."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and "For further information" not in line]
    start = max((number for number, line in enumerate(lines) if "Error" in line), default=-1)
    return " ".join(lines[start:])
