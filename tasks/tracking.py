"""MLflow remembers what was run: numbers, lineage and the models. It is imported here and in `recording` only.

One parent run per run of a recipe and one child per stage and thing worked on; the runs of a sweep's recipes are
children of a run of their own. Runs are addressed by id, never through MLflow's notion of an active run, so that
threads and nested flows cannot mix them up.
"""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

# Before the import, which reads them: no telemetry, no links on stdout (it is for `--json`), no migration log.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from moeprune.errors import BadInput
from tasks.artifacts import Store
from tasks.processes import is_alive, place, process
from tasks.reachable import check_database, impatient, without_password
from tasks.recording import PARENT, Run
from tasks.tracked import Record, record_of, short

logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])  # if somebody imported it before us


class Tracker:
    """Where runs are recorded: MLFLOW_TRACKING_URI, else a database in the store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.root.absolute() / 'mlflow.db'}"
        self.experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "moeprune"

    def check(self) -> None:
        """Raise BadInput within seconds if runs cannot be recorded."""
        try:
            with impatient():
                check_database(self.uri)
                _ = self._experiment_id
        except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
            reason = without_password(" ".join(str(error).split()))[:300]
            remedy = (
                "start that server, or unset MLFLOW_TRACKING_URI to record runs in the store"
                if os.environ.get("MLFLOW_TRACKING_URI")
                else "mend or move that file"
            )
            raise BadInput(f"MLflow at {without_password(self.uri)} cannot be used ({reason}): {remedy}") from error

    @cached_property
    def _client(self) -> MlflowClient:
        self.store.root.mkdir(parents=True, exist_ok=True)
        with self.store.lock("mlflow"):  # processes that make the same new database get in each other's way
            client = MlflowClient(tracking_uri=self.uri)
            client.search_experiments(max_results=1)
        return client

    @cached_property
    def _experiment_id(self) -> str:
        client = self._client
        with self.store.lock("mlflow"):
            found = client.get_experiment_by_name(self.experiment)
            if found is None:
                # A server knows where its artifacts go. Without one MLflow would put them into the working directory.
                served = self.uri.startswith(("http", "databricks"))
                folder = None if served else (self.store.root.absolute() / "mlruns").as_uri()
                return str(client.create_experiment(self.experiment, artifact_location=folder))
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
                run.log_text(recipe, "recipe.yaml")
            yield run

    @contextmanager
    def sweep(self, name: str, key: str, params: Mapping[str, Any], recipes: str) -> Iterator[Run]:
        """The run that is the parent of a sweep's runs; closed as a run is.

        The latest sweep with this key goes on if it was killed or failed; else a new one begins. `recipes` is the
        resolved YAML of them all, kept as recipes.yaml.
        """
        with self.store.lock("mlflow-sweeps"):
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
        return [record_of(found) for found in self._search(f"tags.role != 'stage' AND tags.`{PARENT}` IS NULL", limit)]

    def find_run(self, prefix: str) -> Record:
        """The run with its stages whose id begins like that. Raises BadInput unless there is exactly one."""
        return self._find(prefix, "run")

    def find_sweep(self, prefix: str) -> Record:
        """The sweep with its runs whose id begins like that. Raises BadInput unless there is exactly one."""
        return self._find(prefix, "sweep")

    def finished(self, sweep: str) -> dict[str, str]:
        """The ids of a sweep's runs that came to their end, by their tag `recipe`."""
        done = self._search(f"tags.`{PARENT}` = '{sweep}' AND attributes.status = 'FINISHED'", 10_000)
        return {run.data.tags["recipe"]: run.info.run_id for run in done if "recipe" in run.data.tags}

    def _find(self, prefix: str, role: str) -> Record:
        if not re.fullmatch(r"[0-9a-f]{1,32}", prefix):
            raise BadInput(f"{role} '{prefix}' is no MLflow run id: `moeprune runs list` lists them")
        found = self._search(f"tags.role = '{role}' AND attributes.run_id LIKE '{prefix}%'", 5)
        if len(found) != 1:
            what = (
                f"fits {', '.join(run.info.run_id for run in found)}: give more of it"
                if found
                else (f"is not in {without_password(self.uri)}: `moeprune runs list` lists those that are")
            )
            raise BadInput(f"{role} '{prefix}' {what}")
        children = self._search(f"tags.`{PARENT}` = '{found[0].info.run_id}'", 10_000, "attributes.start_time ASC")
        ordered = sorted(children, key=lambda child: int(child.data.tags.get("order", 0)))
        return record_of(found[0], tuple(record_of(child) for child in ordered))

    def runs_with_dataset(self, md5: str) -> list[Record]:
        """The runs that used the corpus with this md5 (DVC's), newest first."""
        if not re.fullmatch(r"[0-9a-f]{32}(\.dir)?", md5):
            raise BadInput(f"'{md5}' is no md5 of DVC: data.dvc and `moeprune runs` name them")
        return [record_of(found) for found in self._search(f"tags.role = 'run' AND datasets.digest = '{md5}'", 10_000)]

    def _search(self, filter_string: str, limit: int, order: str = "attributes.start_time DESC") -> list[Any]:
        return list(self._client.search_runs([self._experiment_id], filter_string, max_results=limit, order_by=[order]))

    def _close_stale(self) -> None:
        """Mark as KILLED what processes of this place, now gone, left RUNNING: sweeps, runs and their stages."""
        for run in self._search(f"attributes.status = 'RUNNING' AND tags.place = '{place()}'", 1000):
            if is_alive(run.data.tags.get("process", "")):
                continue
            children = f"attributes.status = 'RUNNING' AND tags.`{PARENT}` = '{run.info.run_id}'"
            for child in self._search(children, 10_000):
                self._client.set_terminated(child.info.run_id, "KILLED")
            self._client.set_terminated(run.info.run_id, "KILLED")


def _owner() -> dict[str, str]:
    """By what it is told whether a run is still under way."""
    return {"place": place(), "process": process(os.getpid())}
