"""MLflow remembers what was run: numbers, lineage and the models. Only this, `recording` and `registry` import it.

One parent run per run of a recipe and one child per stage and thing worked on; the runs of a sweep's recipes are
children of a run of their own. Runs are addressed by id, never through MLflow's notion of an active run, so that
threads and nested flows cannot mix them up.
"""

import gc
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

# Before the import, which reads them: no telemetry, no links on stdout (it is for `--json`), no migration log.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from moeprune.errors import BadInput
from tasks.artifacts import Store, flow_run_id
from tasks.processes import is_alive, place, process
from tasks.reachable import check_database, impatient, without_password
from tasks.recording import PARENT, Run
from tasks.taking_turns import alone
from tasks.tracked import RECIPE, LoggedModel, Record, record_of, short

APART = "tags.role != 'stage' AND tags.role != 'page'"
"""Runs of recipes and audits, and sweeps."""

logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])  # if somebody imported it before us

SECOND = timedelta(seconds=1)


def open_tracker(store: Store) -> "Tracker":
    """The tracker of a store. Raises BadInput within seconds if it cannot be used."""
    tracker = Tracker(store)
    tracker.check()
    return tracker


class Tracker:
    """Where runs are recorded: MLFLOW_TRACKING_URI, else a database in the store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.root.absolute() / 'mlflow.db'}"
        self.experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "moeprune"

    @property
    def is_there(self) -> bool:
        """Whether there is something to be asked: a server that was named, or the database that a first run makes."""
        return bool(os.environ.get("MLFLOW_TRACKING_URI")) or (self.store.root / "mlflow.db").is_file()

    def check(self) -> None:
        """Raise BadInput within seconds if runs cannot be recorded."""
        try:
            with impatient():
                check_database(self.uri)
                _ = self._experiment_id
        except (MlflowException, SQLAlchemyError, ImportError, OSError, ValueError) as error:
            reason = without_password(" ".join(str(error).split()))[:300]
            remedy = (
                "start that server, or unset MLFLOW_TRACKING_URI to record runs in the store"
                if os.environ.get("MLFLOW_TRACKING_URI")
                else "mend or move that file"
            )
            raise BadInput(f"MLflow at {without_password(self.uri)} cannot be used ({reason}): {remedy}") from error

    def check_artifacts(self) -> str:
        """Where files of new runs are kept. Raises BadInput within seconds if that place cannot be asked."""
        place = str(self._client.get_experiment(self._experiment_id).artifact_location)
        try:
            with impatient():
                get_artifact_repository(place, tracking_uri=self.uri).list_artifacts()
        except Exception as error:  # stores of files fail in as many ways as there are clouds
            reason = " ".join(str(error).split())[:300]
            raise BadInput(
                f"MLflow's files at {place} cannot be listed ({reason}): start the store that MLflow's server puts "
                "them in, or mend the server's MLFLOW_S3_ENDPOINT_URL and keys"
            ) from error
        return place

    @cached_property
    def _client(self) -> MlflowClient:
        self.store.root.mkdir(parents=True, exist_ok=True)
        with alone(self.store, self.uri, "mlflow"):  # who make the same new database get in each other's way
            client = MlflowClient(tracking_uri=self.uri)
            client.search_experiments(max_results=1)
        return client

    @cached_property
    def _experiment_id(self) -> str:
        client = self._client
        with alone(self.store, self.uri, "mlflow"):
            found = client.get_experiment_by_name(self.experiment)
            if found is None:
                # A server knows where its artifacts go. Without one MLflow would put them into the working directory.
                served = self.uri.startswith(("http", "databricks"))
                folder = None if served else (self.store.root.absolute() / "mlruns").as_uri()
                try:
                    return str(client.create_experiment(self.experiment, artifact_location=folder))
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    found = client.get_experiment_by_name(self.experiment)  # made by somebody with another store
                    assert found is not None
        if found.lifecycle_stage != "active":
            raise BadInput(
                f"MLflow experiment '{self.experiment}' is deleted: bring it back with `mlflow experiments "
                f"restore -x {found.experiment_id}`, or set MLFLOW_EXPERIMENT_NAME to another one"
            )
        return str(found.experiment_id)

    @contextmanager
    def run(
        self,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        recipe: str | None = None,
        sweep: str | None = None,
    ) -> Iterator[Run]:
        """A run of a recipe, FINISHED when the block ends, FAILED with tag `error` if it raises, KILLED if interrupted.

        `recipe` is the resolved YAML, kept as recipe.yaml; `sweep` the id of the run it is a child of. Runs that
        killed processes left open here are closed.
        """
        self._close_stale()
        run = self._begin(name, {"role": "run", **({} if sweep is None else {PARENT: sweep}), **(tags or {})})
        with self._under_way(run):
            run.log_params(params)
            if recipe is not None:
                run.log_text(recipe, RECIPE)
            yield run

    @contextmanager
    def sweep(self, name: str, key: str, params: Mapping[str, Any], recipes: str) -> Iterator[Run]:
        """The run that is the parent of a sweep's runs; closed as a run is.

        The latest sweep with this key goes on if it was killed or failed; else a new one begins. `recipes` is the
        resolved YAML of them all, kept as recipes.yaml.
        """
        with alone(self.store, self.uri, "mlflow-sweeps"):
            self._close_stale()
            latest = self._search(f"tags.role = 'sweep' AND tags.sweep_key = '{key}'", 1)
            again = bool(latest) and latest[0].info.status in ("KILLED", "FAILED")
            run = self._reopen(latest[0]) if again else self._begin(name, {"role": "sweep", "sweep_key": key})
        with self._under_way(run):
            if not again:
                run.log_params(params)
                run.log_text(recipes, "recipes.yaml")
            yield run

    def _begin(self, name: str, tags: Mapping[str, str]) -> Run:
        tags = short({**_owner(), **tags})
        return self._run(self._client.create_run(self._experiment_id, run_name=name, tags=tags))

    def _run(self, found: Any) -> Run:
        return Run(self._client, self._experiment_id, self.store, found.info.run_id)

    def _reopen(self, closed: Any) -> Run:
        run = self._run(closed)
        self._client.update_run(run.id, "RUNNING")
        if "error" in closed.data.tags:
            self._client.delete_tag(run.id, "error")
        run.tag(_owner())
        return run

    @contextmanager
    def _under_way(self, run: Run) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            interrupted = not isinstance(error, Exception)
            run.tag({"error": f"{type(error).__name__}: {error}"})
            self._client.set_terminated(run.id, "KILLED" if interrupted else "FAILED")
            raise
        self._client.set_terminated(run.id, "FAILED" if run.failed else "FINISHED")

    def list_runs(self, limit: int = 20) -> list[Record]:
        """The latest runs and sweeps, newest first; the runs of a sweep are its children."""
        return [record_of(found) for found in self._search(f"{APART} AND tags.`{PARENT}` IS NULL", limit)]

    def find_run(self, prefix: str) -> Record:
        """The run with its stages whose id begins like that. Raises BadInput unless there is exactly one."""
        return self._find(prefix, "run", "tags.role = 'run'")

    def find_sweep(self, prefix: str) -> Record:
        """The sweep with its runs whose id begins like that. Raises BadInput unless there is exactly one."""
        return self._find(prefix, "sweep", "tags.role = 'sweep'")

    def find(self, prefix: str) -> Record:
        """The run or sweep with what is below it, whose id begins like that. BadInput unless there is exactly one."""
        return self._find(prefix, "run", APART)

    def finished(self, sweep: str) -> dict[str, str]:
        """The ids of a sweep's runs that came to their end, by their tag `recipe`."""
        done = self._search(f"tags.`{PARENT}` = '{sweep}' AND attributes.status = 'FINISHED'", 10_000)
        return {run.data.tags["recipe"]: run.info.run_id for run in done if "recipe" in run.data.tags}

    def close(self, prefix: str) -> Record:
        """Mark as KILLED the run or sweep whose id begins like that, and what is RUNNING below it: its process is gone.

        Raises BadInput unless there is exactly one, RUNNING, and for one whose process lives on this machine.
        """
        found = self.find(prefix)
        whose = f"{found.tags['role']} {found.id[:8]} ({found.name})"
        if found.status != "RUNNING":
            raise BadInput(f"{whose} is {found.status}: there is nothing to close")
        if found.tags.get("place") == place() and is_alive(found.tags.get("process", "")):
            raise BadInput(f"{whose} is under way on this machine: end its process, which closes it")
        self._close(found.id)
        return self.find(found.id)

    def _find(self, prefix: str, role: str, filter_string: str) -> Record:
        if not re.fullmatch(r"[0-9a-f]{1,32}", prefix):
            raise BadInput(f"{role} '{prefix}' is no MLflow run id: `moeprune runs list` lists them")
        found = self._search(f"{filter_string} AND attributes.run_id LIKE '{prefix}%'", 5)
        if len(found) != 1:
            what = (
                f"fits {', '.join(run.info.run_id for run in found)}: give more of it"
                if found
                else (
                    f"is not in {without_password(self.uri)}: `moeprune runs list` lists those that are; set "
                    "MLFLOW_TRACKING_URI if it is on record elsewhere"
                )
            )
            raise BadInput(f"{role} '{prefix}' {what}")
        return record_of(found[0], self._children(found[0]))

    def _children(self, run: Any) -> tuple[Record, ...]:
        return _in_order(self._search(f"tags.`{PARENT}` = '{run.info.run_id}'", 10_000, "attributes.start_time ASC"))

    def runs_with_dataset(self, md5: str) -> list[Record]:
        """The runs that used the corpus with this md5 (DVC's), newest first."""
        if not re.fullmatch(r"[0-9a-f]{32}(\.dir)?", md5):
            raise BadInput(f"'{md5}' is no md5 of DVC: data.dvc and `moeprune runs` name them")
        return [record_of(found) for found in self._search(f"tags.role = 'run' AND datasets.digest = '{md5}'", 10_000)]

    def runs_with_stages(self, since: datetime | None = None) -> list[Record]:
        """All runs of recipes and audits, those of sweeps too, newest first; `since`: begun then or later."""
        begun = f" AND attributes.start_time >= {_milliseconds(since)}" if since else ""
        # A stage may have begun before its run, but not ended; what is on record of its times is cut to whole seconds.
        ended = f" AND attributes.end_time >= {_milliseconds(since - SECOND)}" if since else ""
        runs = self._search_all(f"tags.role = 'run'{begun}")
        children: dict[str, list[Any]] = {}
        for child in self._search_all(f"tags.role = 'stage'{ended}"):
            children.setdefault(child.data.tags.get(PARENT, ""), []).append(child)
        return [record_of(run, _in_order(children.get(run.info.run_id, []))) for run in runs]

    def experiments(self) -> list["Tracker"]:
        """This tracker as it looks into each of its experiments."""
        found = []
        for experiment in _pages(lambda page: self._client.search_experiments(page_token=page)):
            one = copy(self)
            one.experiment, one._experiment_id = experiment.name, str(experiment.experiment_id)
            found.append(one)
        return found

    def under_way(self) -> list[Record]:
        """Runs and sweeps that have not come to their end; one of another machine may have died without a word."""
        found = self._search_all("tags.role != 'stage' AND attributes.status = 'RUNNING'")
        here = place()
        return [
            record_of(run)
            for run in found
            if run.data.tags.get("place") != here or is_alive(run.data.tags.get("process", ""))
        ]

    def models(self, since: datetime | None = None) -> list[LoggedModel]:
        """All models that runs read or made; `since`: recorded then or later."""
        recorded = f"creation_timestamp >= {_milliseconds(since)}" if since else None
        found = _pages(
            lambda page: self._client.search_logged_models(
                [self._experiment_id], recorded, max_results=1000, page_token=page
            )
        )
        return [
            LoggedModel(
                id=str(model.model_id),
                name=model.name,
                kind=model.tags["kind"],
                digest=model.params["sha256"],
                run=str(model.source_run_id),
                params=dict(model.params),
            )
            for model in found
            if "sha256" in model.params
        ]

    def files(self, run_id: str) -> list[str]:
        """Names of the small files that are kept with a run or a stage."""
        try:
            return _names(self._kept(run_id))
        except Exception:  # artifact stores fail in as many ways as there are clouds
            return []

    def fetch(self, run_id: str, name: str, folder: Path) -> Path | None:
        """Bring a small file of a run or a stage into `folder`; None if it is not to be had."""
        try:
            kept = self._kept(run_id)
            if name not in _names(kept):  # asked for it, MLflow would try its server again and again, for minutes
                return None
            return Path(kept.download_artifacts(name, str(folder)))  # type: ignore[no-untyped-call]
        except Exception:  # artifact stores fail in as many ways as there are clouds
            return None

    def _kept(self, run_id: str) -> ArtifactRepository:
        """The files of a run. MLflow's client would ask where they are for each look at them anew."""
        return get_artifact_repository(str(self._client.get_run(run_id).info.artifact_uri), tracking_uri=self.uri)

    def keep_page(self, path: Path, name: str) -> str:
        """Keep a page that is about many runs with a run of its own, of role `page`; returns that run's id.

        There is one such run of each name; a page of the same file name takes the place of the one before.
        """
        with self.store.lock("mlflow-pages"):
            found = self._search(f"tags.role = 'page' AND attributes.run_name = '{name}'", 1)
            run = self._run(found[0]) if found else self._begin(name, {"role": "page"})
            run.log_file(path)
            self._client.set_terminated(run.id, "FINISHED")
        return run.id

    def tag(self, run_id: str, name: str, value: str | None) -> None:
        """Set a tag of a run; None takes it away."""
        if value is not None:
            self._client.set_tag(run_id, name, value)
        elif name in self._client.get_run(run_id).data.tags:
            self._client.delete_tag(run_id, name)

    def _search(self, filter_string: str, limit: int, order: str = "attributes.start_time DESC") -> list[Any]:
        return list(self._client.search_runs([self._experiment_id], filter_string, max_results=limit, order_by=[order]))

    def _search_all(self, filter_string: str) -> list[Any]:
        with _uncollected():
            found = _pages(
                lambda page: self._client.search_runs(
                    [self._experiment_id],
                    filter_string,
                    order_by=["attributes.start_time DESC"],
                    page_token=page,
                )
            )
        return list({run.info.run_id: run for run in found}.values())  # a new one moves others to the next page

    def _close_stale(self) -> None:
        """Mark as KILLED what processes of this place, now gone, left RUNNING: sweeps, runs and their stages."""
        for run in self._search(f"attributes.status = 'RUNNING' AND tags.place = '{place()}'", 1000):
            if is_alive(run.data.tags.get("process", "")):
                continue
            self._close(run.info.run_id)

    def _close(self, run_id: str) -> None:
        for child in self._search(f"attributes.status = 'RUNNING' AND tags.`{PARENT}` = '{run_id}'", 10_000):
            self._close(child.info.run_id)
        self._client.set_terminated(run_id, "KILLED")


def _names(kept: ArtifactRepository) -> list[str]:
    return [file.path for file in kept.list_artifacts() if not file.is_dir]


def _in_order(children: list[Any]) -> tuple[Record, ...]:
    ordered = sorted(children, key=lambda child: int(child.data.tags.get("order", 0)))
    return tuple(record_of(child) for child in ordered)


def _pages(search: Callable[[str | None], Any]) -> list[Any]:
    """All that a search finds, page by page."""
    page = search(None)
    found = list(page)
    while page.token:
        page = search(page.token)
        found += page
    return found


@contextmanager
def _uncollected() -> Iterator[None]:
    """Python's collector would look at all that is read again and again: for two thirds of the time, and in vain."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _owner() -> dict[str, str]:
    """By what it is told whether a run is still under way."""
    flow_run = flow_run_id()
    return {"place": place(), "process": process(os.getpid()), **({"flow_run": flow_run} if flow_run else {})}
