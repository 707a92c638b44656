"""What is to be deployed: `prefect.yaml`, and the recipes that its build steps read."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from flows.audit.recipe import read_audit
from flows.recipe import parse_recipe, read_yaml
from flows.sweep import grid
from moeprune.errors import BadInput

FILE = Path("prefect.yaml")
READ = f"{__name__}.read"
FLOWS = {"prune": "flows.pruning.prune_model", "audit": "flows.audit.flow.audit_model",
         "sweep": "flows.sweep.flow.prune_models"}  # fmt: skip
"""By which entrypoint each kind of recipe is run."""


def read(recipe: str) -> dict[str, Any]:
    """A build step of prefect.yaml: a recipe, checked, as the parameters `recipe` and `name` of its flow.

    What the file leaves out stays out: the worker's own defaults hold. A sweep's stays as written, lists and all.
    BadInput as `read_recipe`.
    """
    path = Path(recipe)
    content = read_yaml(path)
    match _kind(content):
        case "audit":
            content = read_audit(path).model_dump(mode="json", exclude_unset=True)
        case "sweep":
            grid.recipes_of(content, recipe)
        case _:
            content = parse_recipe(content, recipe).model_dump(mode="json", exclude_unset=True)
    return {"recipe": content, "name": path.stem}


@dataclass(frozen=True)
class Wanted:
    """A deployment that prefect.yaml lists."""

    name: str
    """Of its flow and its own, such as prune/nightly."""
    entry: dict[str, Any]
    version: str
    """Digest of the entry, the recipes it reads and the parameters that the flow takes."""

    @property
    def pool(self) -> str:
        """The work pool whose workers run it."""
        return str(self.entry["work_pool"]["name"])

    @property
    def limit(self) -> int | None:
        """How many of its runs may be under way at once."""
        limit: int | None = _limit(self.entry)
        return limit


def read_file() -> list[Wanted]:
    """The deployments of `prefect.yaml` in the working directory, their recipes checked. BadInput if one is wrong."""
    if not FILE.is_file():
        raise BadInput(f"{FILE.absolute()}: there is no such file: it lists what to deploy, see docs/schedules.md")
    try:
        content = yaml.safe_load(FILE.read_text())
    except yaml.YAMLError as error:
        raise BadInput(f"{FILE}: not YAML: {' '.join(str(error).split())}") from error
    entries = content.get("deployments") if isinstance(content, dict) else None
    if not entries:
        raise BadInput(f"{FILE}: it lists no deployments, see docs/schedules.md")
    names = [entry.get("name") for entry in entries]
    if len(set(names)) < len(names):
        raise BadInput(f"{FILE}: two deployments have the same name: give each its own")
    return [_wanted(entry, content, number) for number, entry in enumerate(entries, 1)]


def _wanted(entry: dict[str, Any], content: dict[str, Any], number: int) -> Wanted:
    where = f"{FILE}: deployment {repr(entry['name']) if entry.get('name') else f'number {number}'}"
    needed = {key: entry.get(key) for key in ("name", "entrypoint")}
    needed["work_pool.name"] = (entry.get("work_pool") or {}).get("name")
    if missing := [key for key, value in needed.items() if not value]:
        raise BadInput(f"{where}: {missing[0]} is missing, see docs/schedules.md")
    limit = _limit(entry)
    if limit is not None and not (type(limit) is int and limit >= 1):
        raise BadInput(f"{where}: concurrency_limit: {limit} is no whole number from 1 on")
    if "schedule" in entry:  # which Prefect takes, and deploying would take away again
        raise BadInput(f"{where}: schedule: write `schedules`, a list, in its place")
    try:
        flow: Any = load_flow_from_entrypoint(entry["entrypoint"])
    except Exception as error:  # importing fails in as many ways as there are modules
        raise BadInput(f"{where}: entrypoint {entry['entrypoint']}: {' '.join(str(error).split())}") from error
    steps = entry.get("build", content.get("build")) or []
    read_by = [read(step[READ]["recipe"]) for step in steps if READ in step]
    for one in read_by:
        kind = _kind(one["recipe"])
        if flow.name in FLOWS and (flow.name, kind) != ("sweep", "prune") and flow.name != kind:
            raise BadInput(f"{where}: the recipe {one['name']} is for {FLOWS[kind]}, not for {entry['entrypoint']}")
    schema = parameter_schema(flow).model_dump()
    text = yaml.safe_dump([entry, content.get("pull"), read_by, schema])
    return Wanted(f"{flow.name}/{entry['name']}", entry, hashlib.sha256(text.encode()).hexdigest()[:12])


def _limit(entry: dict[str, Any]) -> Any:
    given = entry.get("concurrency_limit")
    return given.get("limit") if isinstance(given, dict) else given


def _kind(recipe: dict[str, Any]) -> str:
    return "audit" if "audit" in recipe else "sweep" if grid.is_sweep(recipe) else "prune"
