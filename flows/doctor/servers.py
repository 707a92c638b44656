"""Whether the servers that the environment names answer: Prefect, MLflow with its database, where its files go."""

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING
from uuid import UUID

from flows.doctor.health import Finding, fail, ok, refused, warn
from moeprune.errors import BadInput, one_line
from tasks.artifacts import Store
from tasks.reachable import without_password

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

PATIENCE = 5
"""Seconds that Prefect's server is given for an answer."""
SETTLED = timedelta(minutes=5)
"""After so long a schedule is known to the server's scheduler, which looks about once a minute."""


def prefect(store: Store) -> Iterator[Finding]:
    """The server that PREFECT_API_URL names, its database, and whether workers wait for work."""
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        yield ok("Prefect", "PREFECT_API_URL is not set: each run starts a server of its own, without schedules")
        return
    try:
        with get_client(sync_client=True, httpx_settings={"timeout": PATIENCE}) as client:
            server = client.api_version()
            client.read_flows(limit=1)  # which asks the database
            idle = [pool.name for pool in client.read_work_pools() if pool.status == "NOT_READY"]
            silent = _without_runs_ahead(client)
    except Exception as error:  # a server fails in many ways
        yield fail("Prefect", f"{url} does not answer: {one_line(error)}", "start that server, or mend PREFECT_API_URL")
        return
    ours = version("prefect")
    if _minor(server) != _minor(ours):
        yield warn("Prefect", f"{url} has version {server}, this machine {ours}", "let both have the same version")
    else:
        yield ok("Prefect", f"{url}, version {server}")
    for name in idle:
        yield warn("workers", f"none waits for work pool '{name}'", f"start one: `prefect worker start --pool {name}`")

    if silent:
        yield fail(
            "schedules",
            f"of {', '.join(silent)} no run is ahead: the server does not schedule",
            "see its log; with SQLAlchemy 2.1, `pip install 'sqlalchemy<2.1'` where it runs",
        )


def mlflow(store: Store) -> Iterator[Finding]:
    """The tracker, and the place of its runs' files."""
    from tasks.tracking import Tracker

    tracker = Tracker(store)
    named = bool(os.environ.get("MLFLOW_TRACKING_URI"))
    if not tracker.is_there:
        yield ok("MLflow", "MLFLOW_TRACKING_URI is not set: runs will be recorded in the store")
        return
    address = without_password(tracker.uri)
    try:
        tracker.check()
    except BadInput as error:
        yield refused("MLflow", error)
        return
    yield ok("MLflow", address if named else f"runs are recorded in {address}")
    try:
        place = tracker.check_artifacts()
    except BadInput as error:
        yield refused("artifacts", error)
        return
    if named and place.startswith("file:"):
        yield warn(
            "artifacts",
            f"{place}: only machines that have this folder read them",
            "set MLFLOW_TRACKING_URI to a server, `mlflow server`, not to its database",
        )
    else:
        yield ok("artifacts", place)


def runs(store: Store) -> Iterator[Finding]:
    """Runs that stay RUNNING in the tracker though Prefect's server knows that they are over: `gc` waits for them."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import get_current_settings

    from tasks.tracking import Tracker

    tracker = Tracker(store)
    if not get_current_settings().api.url or not tracker.is_there:
        return
    over = []
    try:
        tracker.check()
        with get_client(sync_client=True, httpx_settings={"timeout": PATIENCE}) as client:
            for run in tracker.under_way():
                with suppress(ObjectNotFound):  # another server's
                    state = client.read_flow_run(UUID(run.tags["flow_run"])).state if "flow_run" in run.tags else None
                    if state and state.is_final():
                        over.append((run, state.name))
    except Exception:  # what ails the servers is told where they are looked at
        return
    for run, ended in over:
        yield warn(
            "runs",
            f"{run.id[:8]} ({run.name}) is RUNNING in MLflow and {ended} in Prefect: `moeprune gc` waits for it",
            f"if its process is gone, close it: `moeprune runs close {run.id[:8]} --store {store.root}`",
        )


def _without_runs_ahead(client: "SyncPrefectClient") -> list[str]:
    """Deployments with a schedule whose next runs the server should have written down by now, and has not."""
    from prefect.client.schemas.filters import FlowRunFilter

    settled = datetime.now(UTC) - SETTLED
    asked = [
        found
        for found in client.read_deployments()
        if not found.paused and any(one.active for one in found.schedules) and found.updated and found.updated < settled
    ]
    ahead = {"type": {"any_": ["SCHEDULED"]}}
    return [
        found.name
        for found in asked
        if not client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({"deployment_id": {"any_": [found.id]}, "state": ahead}),
            limit=1,
        )
    ]


def _minor(text: str) -> list[str]:
    return text.split(".")[:2]
