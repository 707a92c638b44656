"""What Prefect's server and MLflow's have on record, asked over HTTP as anybody could."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

PATIENCE = 900
"""Seconds a flow run may take on a busy machine."""
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
Json = dict[str, Any]


@dataclass(frozen=True)
class Recorded:
    """A run of MLflow's."""

    id: str
    name: str
    status: str
    start: int
    tags: dict[str, str]
    params: dict[str, str]


@dataclass(frozen=True)
class Records:
    """Both servers."""

    prefect: str
    mlflow: str

    def deployment(self, name: str) -> Json:
        """A deployment, by its flow's name and its own."""
        found: Json = ask(f"{self.prefect}/deployments/name/{name}")
        return found

    def switch(self, deployment: str, active: bool) -> None:
        """Switch its schedules on or off, as on Prefect's page."""
        found = self.deployment(deployment)
        for schedule in found["schedules"]:
            address = f"{self.prefect}/deployments/{found['id']}/schedules/{schedule['id']}"
            ask(address, {"active": active}, "PATCH")

    def flow_runs(self, deployment: str, *states: str) -> list[Json]:
        """The flow runs of a deployment in these states, in the order in which they were expected."""
        wanted: Json = {"deployments": {"id": {"any_": [self.deployment(deployment)["id"]]}}}
        if states:
            wanted["flow_runs"] = {"state": {"type": {"any_": states}}}
        found: list[Json] = ask(
            f"{self.prefect}/flow_runs/filter", wanted | {"sort": "EXPECTED_START_TIME_ASC", "limit": 200}
        )
        return found

    def ended(self, flow_run: str) -> Json:
        """A flow run, once it has come to its end."""

        def look() -> Json | None:
            found: Json = ask(f"{self.prefect}/flow_runs/{flow_run}")
            return found if found["state_type"] in ENDED else None

        found: Json = wait(look)
        return found

    def runs(self, role: str, *conditions: str) -> list[Recorded]:
        """MLflow's runs of a role, the earliest first."""
        experiment = ask(f"{self.mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name=moeprune")
        query = {
            "experiment_ids": [experiment["experiment"]["experiment_id"]],
            "filter": " AND ".join([f"tags.role = '{role}'", *conditions]),
            "order_by": ["attributes.start_time ASC"],
            "max_results": 1000,
        }
        found = ask(f"{self.mlflow}/api/2.0/mlflow/runs/search", query)
        return [_recorded(run) for run in found.get("runs", ())]

    def stages(self, run: str) -> list[Recorded]:
        """The stages of a run."""
        return self.runs("stage", f"tags.`mlflow.parentRunId` = '{run}'")

    def alias(self, model: str, alias: str) -> Json | None:
        """The version of a registered model that an alias names."""
        query = urlencode({"name": model, "alias": alias})
        try:
            found: Json = ask(f"{self.mlflow}/api/2.0/mlflow/registered-models/alias?{query}")["model_version"]
        except HTTPError as error:
            if error.code not in (400, 404):
                raise
            return None
        return found


def wait(what: Callable[[], Any]) -> Any:
    """What comes about at last."""
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        with suppress(OSError):  # a server on a busy machine may be too late with its answer, and say 500
            if found := what():
                return found
        time.sleep(1)
    raise AssertionError("it has not come about")


def ask(address: str, body: Json | None = None, method: str | None = None) -> Any:
    """The JSON that an address answers with; None if it answers with nothing."""
    content = None if body is None else json.dumps(body).encode()
    request = Request(address, content, {"Content-Type": "application/json"}, method=method)
    with build_opener(ProxyHandler({})).open(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def _recorded(run: Json) -> Recorded:
    info, data = run["info"], run["data"]
    tags, params = ({one["key"]: one["value"] for one in data.get(kind, ())} for kind in ("tags", "params"))
    return Recorded(info["run_id"], info["run_name"], info["status"], int(info["start_time"]), tags, params)
