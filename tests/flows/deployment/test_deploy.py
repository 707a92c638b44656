"""prefect.yaml on a Prefect server: what `moeprune deploy` registers, what it refuses, that twice is once."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from scheduled import client_of, scheduler, write_file
from started import free_port

NIGHTLY = {"name": "nightly", "schedules": [{"cron": "0 2 * * *", "timezone": "Europe/Berlin", "active": True}]}
PRUNE, AUDIT = "flows.pruning.prune_model", "flows.audit.flow.audit_model"
OTHER = {"name": "on-demand", "schedules": [], "concurrency_limit": 3}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scheduler(tmp_path_factory.mktemp("scheduler") / "server") as found:
        yield found


@pytest.fixture
def place(project: Path, api: str) -> Iterator[Path]:
    """A project whose prefect.yaml lists two deployments; this process uses the server."""
    write_file(project, NIGHTLY, OTHER)
    with temporary_settings({PREFECT_API_URL: api}):
        yield project


def held(api: str) -> dict[str, Any]:
    """All that the server holds of deployments, and when each was last touched."""
    with client_of(api) as client:
        deployments = {
            one.name: one.model_dump(mode="json", exclude={"last_polled", "status"})
            for one in client.read_deployments()
        }
        automations = [one.model_dump(mode="json") for one in client.read_automations()]
        pools = [(one.name, one.type, str(one.updated)) for one in client.read_work_pools()]
    return {"deployments": deployments, "automations": automations, "pools": pools}


def test_deploy_registers_what_the_file_says_and_twice_is_once(place, api, moeprune):
    done = moeprune("deploy")
    assert done.status == 0, done.err
    first = held(api)
    nightly, other = first["deployments"]["nightly"], first["deployments"]["on-demand"]
    assert [(one["schedule"]["cron"], one["schedule"]["timezone"], one["active"]) for one in nightly["schedules"]] == [
        ("0 2 * * *", "Europe/Berlin", True)
    ]
    assert other["schedules"] == []
    assert [one["global_concurrency_limit"]["limit"] for one in (nightly, other)] == [1, 3]
    assert nightly["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert nightly["tags"] == ["moeprune", "prune"] and nightly["work_pool_name"] == "moeprune"
    assert nightly["parameters"]["recipe"] == yaml.safe_load(Path("params/quick.yaml").read_text()) | {
        "prune": {"shard_size": 30_000}
    }
    assert [pool[:2] for pool in first["pools"]] == [("moeprune", "process")]
    (automation,) = first["automations"]
    assert automation["trigger"]["match_related"]["prefect.resource.id"] == [f"prefect.flow.{nightly['flow_id']}"]

    with client_of(api) as client:  # what a person has paused stays so
        client.update_deployment_schedule(nightly["id"], nightly["schedules"][0]["id"], active=False)
    paused = held(api)
    assert not paused["deployments"]["nightly"]["schedules"][0]["active"]
    again = moeprune("deploy")
    assert again.status == 0 and again.out.count("unchanged") == 2
    assert held(api) == paused

    write_file(place, NIGHTLY | {"concurrency_limit": 2, "schedules": []}, OTHER)
    changed = moeprune("deploy")
    assert (changed.out.count("unchanged"), changed.out.count("registered")) == (1, 1), changed.err
    now = held(api)
    assert now["deployments"]["nightly"]["global_concurrency_limit"]["limit"] == 2
    assert now["deployments"]["nightly"]["schedules"] == []
    assert now["deployments"]["on-demand"] == other
    assert now["automations"] == first["automations"] and now["pools"] == first["pools"]


def test_deploy_form_explains_and_the_server_refuses_what_the_params_do(place, api, moeprune):
    assert moeprune("deploy").status == 0
    with client_of(api) as client:
        deployment = client.read_deployment_by_name("prune/nightly")
        forms = deployment.parameter_openapi_schema["definitions"]
        assert forms["MaskParams"]["properties"]["ratio"]["description"]
        for section in forms.values():
            for name, key in section["properties"].items():
                assert key.get("description") or "$ref" in str(key), f"{section['title']}.{name} is not explained"
        recipe = deployment.parameters["recipe"]
        for wrong in ({"mask": {"ratio": 1.5}}, {"mask": {"ratoi": 0.5}}, {"score": {"criterion": "reep"}}):
            with pytest.raises(PrefectHTTPStatusError) as refused:
                client.create_flow_run_from_deployment(deployment.id, parameters={"recipe": recipe | wrong})
            assert refused.value.response.status_code == 409
        assert client.create_flow_run_from_deployment(
            deployment.id, parameters={"recipe": recipe | {"mask": {"ratio": 0.5}}}
        )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "prefect.yaml").unlink(), "prefect.yaml: there is no such file"),
        (lambda folder: (folder / "prefect.yaml").write_text("deployments: [:"), "prefect.yaml: not YAML"),
        (lambda folder: write_file(folder, NIGHTLY | {"entrypoint": "flows.no.flow"}), "entrypoint flows.no.flow"),
        (lambda folder: write_file(folder, NIGHTLY | {"work_pool": None}), "'nightly': work_pool.name is missing"),
        (lambda folder: write_file(folder, NIGHTLY, NIGHTLY), "two deployments have the same name"),
        (lambda folder: write_file(folder, {"name": "a", "schedules": [{"cron": "never"}]}), "never"),
        (lambda folder: write_file(folder, {"name": "a", "schedule": {"cron": "0 2 * * *"}}), "write `schedules`"),
        (lambda folder: write_file(folder, {"name": None}), "deployment number 1: name is missing"),
        (lambda folder: write_file(folder, NIGHTLY | {"concurrency_limit": {"limit": 0}}), "0 is no whole number"),
        (lambda folder: write_file(folder, NIGHTLY | {"concurrency_limit": True}), "True is no whole number"),
        (lambda folder: write_file(folder, NIGHTLY | {"entrypoint": AUDIT}), f"is for {PRUNE}, not for {AUDIT}"),
        (lambda folder: shutil.copy(folder / "sources/wiki.jsonl", folder / "params/quick.yaml"), "params/quick.yaml"),
    ],
    ids=["no file", "no YAML", "no flow", "no pool", "one name", "cron", "schedule", "no name", "limit", "no limit",
         "kind", "recipe"],
)  # fmt: skip
def test_deploy_of_a_file_that_cannot_be_used_is_refused_in_one_line(spoil, said, place, moeprune):
    spoil(place)
    done = moeprune("deploy")
    assert done.status == 2 and said in done.err, done.err
    assert len(done.err.splitlines()) == 1


def test_serve_of_what_this_process_cannot_work_for_is_refused_in_one_line(place, api, moeprune):
    write_file(place, NIGHTLY | {"work_pool": {"name": "one"}}, OTHER | {"work_pool": {"name": "two"}})
    done = moeprune("serve")
    assert done.status == 2 and "the work pools one and two" in done.err and len(done.err.splitlines()) == 1, done.err
    with client_of(api) as client:
        client.create_work_pool(WorkPoolCreate(name="elsewhere", type="docker"))
    write_file(place, NIGHTLY | {"work_pool": {"name": "elsewhere"}})
    done = moeprune("serve")
    assert done.status == 2 and "'elsewhere' is for workers of type docker" in done.err, done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("address", "said"),
    [(None, "PREFECT_API_URL is not set"), (f"http://127.0.0.1:{free_port()}/api", "no Prefect server answers at")],
    ids=["none", "dead"],
)
def test_deploy_without_a_server_is_refused_in_one_line(address, said, project, moeprune):
    write_file(project, NIGHTLY)
    with temporary_settings({PREFECT_API_URL: address}):
        done = moeprune("deploy")
    assert done.status == 2 and said in done.err and len(done.err.splitlines()) == 1, done.err


def test_deployments_of_the_repository_are_the_nightly_prune_the_weekly_audit_and_the_sweep(monkeypatch):
    from flows.audit.recipe import AuditRecipe, read_audit
    from flows.deployment.recipes import read, read_file
    from flows.recipe import Recipe, read_recipe

    monkeypatch.chdir(Path(__file__).parents[3])
    monkeypatch.setitem(os.environ, "MOEPRUNE_STORE", "somewhere/else")
    schedules = {one.name: [each["cron"] for each in one.entry["schedules"]] for one in read_file()}
    assert schedules == {"prune/nightly": ["0 2 * * *"], "audit/weekly": ["0 4 * * 0"], "sweep/on-demand": []}
    prune, audit = "params/demo.yaml", "params/audit-demo.yaml"
    # What is registered is the recipe, but for what the worker's environment decides.
    assert "runtime" not in read(prune)["recipe"]
    assert Recipe(**read(prune)["recipe"]) == read_recipe(Path(prune))
    assert AuditRecipe(**read(audit)["recipe"]) == read_audit(Path(audit))
    assert read("params/sweep-demo.yaml")["recipe"] == yaml.safe_load(Path("params/sweep-demo.yaml").read_text())
