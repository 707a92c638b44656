"""MLflow remembers what was run: numbers, lineage and the models. `mlflow` is imported here only.

One parent run per run of a recipe and one child per stage and thing worked on, written from the manifests on hits and
misses alike. Runs are addressed by id, never through MLflow's notion of an active run, so that threads and nested
flows cannot mix them up.
"""

import json
import logging
import math
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

# Before the import, which reads them: no telemetry, no links on stdout (it is for `--json`), no migration log.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from moeprune.errors import BadInput
from tasks.artifacts import Store

logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])  # if somebody imported it before us

PARENT = "mlflow.parentRunId"
LONGEST = 6000
"""Characters of a param's value; MLflow would cut a longer one in silence."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
"""While checking a server. A run that is under way keeps MLflow's minutes of retries."""
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


@dataclass(frozen=True)
class Record:
    """A run as it was recorded."""

    id: str
    name: str
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    start: datetime
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    """Ours; MLflow's own are left out."""
    children: tuple["Record", ...] = field(default=())
    """One per stage and thing worked on, in the order of logging; empty in lists of runs."""


class Tracker:
    """Where runs are recorded: MLFLOW_TRACKING_URI, else a database in the store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.root.absolute() / 'mlflow.db'}"
        self.experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "moeprune"

    def check(self) -> None:
        """Raise BadInput within seconds if runs cannot be recorded."""
        before = {name: os.environ.get(name) for name in PATIENCE}
        os.environ.update(PATIENCE)
        try:
            self._check_database()
            _ = self._experiment_id
        except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
            reason = _without_password(" ".join(str(error).split()))[:300]
            remedy = (
                "start that server, or unset MLFLOW_TRACKING_URI to record runs in the store"
                if os.environ.get("MLFLOW_TRACKING_URI")
                else "mend or move that file"
            )
            raise BadInput(f"MLflow at {_without_password(self.uri)} cannot be used ({reason}): {remedy}") from error
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def _check_database(self) -> None:
        # MLflow tries for minutes to open a database, and cannot be told otherwise.
        parts = urlsplit(self.uri)
        kind = parts.scheme.split("+")[0]
        if kind in DATABASE_PORTS:
            socket.create_connection((parts.hostname or "localhost", parts.port or DATABASE_PORTS[kind]), 5).close()
            create_engine(self.uri).connect().close()
        elif kind == "sqlite" and (path := make_url(self.uri).database):
            folder = Path(path).absolute().parent
            folder.mkdir(parents=True, exist_ok=True)
            if not all(os.access(place, os.W_OK) for place in (folder, path) if os.path.exists(place)):
                raise PermissionError(f"{path} cannot be written")

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
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None, recipe: str | None = None
    ) -> Iterator["Run"]:
        """A parent run, FINISHED when the block ends, FAILED with tag `error` if it raises, KILLED if interrupted.

        `recipe` is the resolved YAML, kept as recipe.yaml. Runs that killed processes left open here are closed.
        """
        self._close_stale()
        tags = {"role": "run", "place": _place(), "process": _process(os.getpid()), **(tags or {})}
        info = self._client.create_run(self._experiment_id, run_name=name, tags=_short(tags)).info
        run = Run(self, info.run_id)
        try:
            self._log(run.id, params=flatten(params))
            if recipe is not None:
                self._client.log_text(run.id, recipe, "recipe.yaml")
            yield run
        except BaseException as error:
            interrupted = not isinstance(error, Exception)
            self._log(run.id, tags={"error": f"{type(error).__name__}: {error}"})
            self._client.set_terminated(run.id, "KILLED" if interrupted else "FAILED")
            raise
        self._client.set_terminated(run.id, "FINISHED")

    def list_runs(self, limit: int = 20) -> list[Record]:
        """The latest runs, newest first."""
        return [_record(found) for found in self._search("tags.role = 'run'", limit)]

    def find_run(self, prefix: str) -> Record:
        """The run with its children whose id begins like that. Raises BadInput unless there is exactly one."""
        if not re.fullmatch(r"[0-9a-f]{1,32}", prefix):
            raise BadInput(f"run '{prefix}' is no MLflow run id: `moeprune runs` lists them")
        found = self._search(f"tags.role = 'run' AND attributes.run_id LIKE '{prefix}%'", 5)
        if len(found) != 1:
            what = (
                f"fits {', '.join(run.info.run_id for run in found)}: give more of it"
                if found
                else (f"is not in {_without_password(self.uri)}: `moeprune runs` lists those that are")
            )
            raise BadInput(f"run '{prefix}' {what}")
        children = self._search(f"tags.`{PARENT}` = '{found[0].info.run_id}'", 10_000, "attributes.start_time ASC")
        ordered = sorted(children, key=lambda child: int(child.data.tags.get("order", 0)))
        return _record(found[0], tuple(_record(child) for child in ordered))

    def runs_with_dataset(self, md5: str) -> list[Record]:
        """The runs that used the corpus with this md5 (DVC's), newest first."""
        if not re.fullmatch(r"[0-9a-f]{32}(\.dir)?", md5):
            raise BadInput(f"'{md5}' is no md5 of DVC: data.dvc and `moeprune runs` name them")
        return [_record(found) for found in self._search(f"tags.role = 'run' AND datasets.digest = '{md5}'", 10_000)]

    def _search(self, filter_string: str, limit: int, order: str = "attributes.start_time DESC") -> list[Any]:
        return list(self._client.search_runs([self._experiment_id], filter_string, max_results=limit, order_by=[order]))

    def _log(
        self,
        run_id: str,
        params: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        model_id: str | None = None,
    ) -> None:
        now = int(time.time() * 1000)
        numbers = [Metric(_name(key), value, now, 0, model_id=model_id) for key, value in (metrics or {}).items()]
        words = [Param(_name(key), value) for key, value in (params or {}).items()]
        labels = [RunTag(key, value) for key, value in _short(tags or {}).items()]
        self._client.log_batch(run_id, numbers[:900], words[:100], labels)
        for start in range(900, len(numbers), 900):
            self._client.log_batch(run_id, metrics=numbers[start : start + 900])
        for start in range(100, len(words), 100):  # a server takes no more at once
            self._client.log_batch(run_id, params=words[start : start + 100])

    def _close_stale(self) -> None:
        """Mark as KILLED what processes of this place, now gone, left RUNNING."""
        open_here = f"attributes.status = 'RUNNING' AND tags.role = 'run' AND tags.place = '{_place()}'"
        for run in self._search(open_here, 1000):
            process = run.data.tags.get("process", "")
            if process and _process(int(process.split(":")[0])) == process:
                continue
            children = f"attributes.status = 'RUNNING' AND tags.`{PARENT}` = '{run.info.run_id}'"
            for child in self._search(children, 10_000):
                self._client.set_terminated(child.info.run_id, "KILLED")
            self._client.set_terminated(run.info.run_id, "KILLED")


class Run:
    """A parent run that is under way."""

    def __init__(self, tracker: Tracker, run_id: str) -> None:
        self.id = run_id
        self._tracker = tracker
        self._client = tracker._client
        self._stages = 0
        self._linked: set[tuple[str, str]] = set()

    def log_stage(
        self,
        title: str,
        stage: str,
        of: str,
        manifest: Mapping[str, Any],
        cache: Literal["hit", "miss"],
        files: Sequence[Path] = (),
    ) -> str:
        """Record one stage's result as a child run and return its id. `files` are copied: small ones only.

        Its tag `produced_by_run` is the child that recorded the result's making: itself on a miss; absent on a hit if
        that was never recorded. A miss has the times of the work, a hit those of its logging.
        """
        producer = manifest["producer"]
        key = str(manifest["key"])
        now = int(time.time() * 1000)
        started = int(datetime.fromisoformat(producer["started"]).timestamp() * 1000) if cache == "miss" else now
        ended = started + int(float(producer["seconds"]) * 1000) if cache == "miss" else now
        tags = {
            PARENT: self.id,
            "role": "stage",
            "order": str(self._stages),
            "stage": stage,
            "of": of,
            "cache": cache,
            "key": key,
            "digest": str(manifest["digest"]),
            "produced_by_flow_run": str(producer["flow_run"]),
            "git_commit": str(producer["git_commit"]),
            "git_dirty": str(producer["git_dirty"]),
        }
        self._stages += 1
        child = self._client.create_run(
            self._tracker._experiment_id, start_time=started, tags=_short(tags), run_name=title
        ).info.run_id
        maker = child if cache == "miss" else self._maker(stage, key)
        numbers = {name: float(value) for name, value in _leaves(manifest["facts"]) if _is_number(value)}
        numbers |= {name: float(producer[name]) for name in ("seconds", "peak_memory_bytes")}
        self._tracker._log(child, flatten(manifest["params"]), numbers, {"produced_by_run": maker} if maker else None)
        for file in files:
            self._client.log_artifact(child, str(file))
        self._client.set_terminated(child, "FINISHED", end_time=ended)
        return str(child)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of this run."""
        self._tracker._log(self.id, tags=dict(tags))

    def log_text(self, text: str, name: str) -> None:
        """Keep a small text as an artifact of this run."""
        self._client.log_text(self.id, text, name)

    def log_curve(self, child: str, rows: Sequence[Mapping[str, float]]) -> None:
        """Record a training curve on a child: each row has a `step`, its other values are metrics at that step."""
        now = int(time.time() * 1000)
        points = [
            Metric(_name(key), float(value), now, int(row["step"]))
            for row in rows
            for key, value in row.items()
            if key != "step"
        ]
        for start in range(0, len(points), 900):
            self._client.log_batch(child, metrics=points[start : start + 900])

    def _maker(self, stage: str, key: str) -> str | None:
        found = self._tracker._search(f"tags.key = '{key}' AND tags.cache = 'miss' AND tags.stage = '{stage}'", 1)
        return str(found[0].info.run_id) if found else None

    def log_corpus(
        self, child: str, name: str, md5: str, source: str, tokens: int, context: str = "calibration"
    ) -> None:
        """Name a corpus, by the md5 that DVC gives its file, as a dataset that `child` and this run used."""
        dataset = Dataset(name, md5, "local", json.dumps({"uri": source}), profile=json.dumps({"num_tokens": tokens}))
        used = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        for run_id in (child, self.id):
            self._client.log_inputs(run_id, datasets=[used])

    def log_model(
        self,
        kind: Literal["base", "pruned", "distilled"],
        digest: str,
        name: str,
        params: Mapping[str, Any] | None = None,
    ) -> str:
        """The id of the one logged model with this digest, made if there is none; linked to this run.

        A base is what the run reads, the others what it makes. `params` are those of the first run to make it.
        The weights stay where they are.
        """
        tracker, client = self._tracker, self._client
        with tracker.store.lock("mlflow-models"):
            found = client.search_logged_models([tracker._experiment_id], f"params.sha256 = '{digest}'", max_results=1)
            if found:
                model_id = str(found[0].model_id)
            else:
                model = client.create_logged_model(
                    tracker._experiment_id,
                    name=re.sub(r"[/:.%\"']", "-", name),
                    source_run_id=self.id,
                    params={**flatten(params or {}), "sha256": digest},
                    tags={"kind": kind},
                    model_type=kind,
                )
                model_id = str(model.model_id)
                client.finalize_logged_model(model_id, "READY")
        if (kind, model_id) not in self._linked:
            self._linked.add((kind, model_id))
            if kind == "base":
                client.log_inputs(self.id, models=[LoggedModelInput(model_id)])
            else:
                client.log_outputs(self.id, [LoggedModelOutput(model_id, step=0)])
        return model_id

    def log_metrics(
        self,
        metrics: Mapping[str, Mapping[str, float | None]],
        prefix: str,
        child: str | None = None,
        model_id: str | None = None,
    ) -> None:
        """Record `{name: {"value", "stderr", "n"}}` on this run as `<prefix>/<name>`, the error as `<name>_stderr`.

        With `child` and `model_id`, the child that evaluated the model gets them too, under their plain names and
        with n, bound to the model: so every model's metrics are named alike.
        """
        plain = {
            _name(f"{name}{suffix}"): float(value)
            for name, metric in metrics.items()
            for suffix, value in (("", metric["value"]), ("_stderr", metric.get("stderr")), ("_n", metric.get("n")))
            if value is not None
        }
        counts = {_name(f"{name}_n") for name in metrics}
        headline = {f"{prefix}/{name}": value for name, value in plain.items() if name not in counts}
        self._tracker._log(self.id, metrics=headline)
        if child is not None:
            self._tracker._log(child, metrics=plain, model_id=model_id)


def flatten(params: Mapping[str, Any]) -> dict[str, str]:
    """Nested params as `section.key` with text values that MLflow keeps whole; what is longer ends in an ellipsis."""

    def text(value: Any) -> str:
        written = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
        return written if len(written) <= LONGEST else f"{written[: LONGEST - 1]}…"

    return {_name(name): text(value) for name, value in _leaves(params)}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _name(text: str) -> str:
    """A name that MLflow takes for a metric or param: no comma, @, =, parentheses or folder-like dots."""
    return "/".join(part for part in re.sub(r"[^\w\-. :/]", "_", text)[:250].split("/") if part.strip("."))


def _short(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value if len(value) <= 5000 else f"{value[:4999]}…" for key, value in tags.items()}


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", uri)


def _place() -> str:
    """Where process ids mean something: this host and, as containers may share its name, their id space."""
    return f"{socket.gethostname()}:{os.stat('/proc/self/ns/pid').st_ino}"


def _process(pid: int) -> str:
    """Id and start of a live process: ids are used again. Empty if there is none, or but its unburied remains."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else f"{pid}:{fields[18]}"


def _record(run: Any, children: tuple[Record, ...] = ()) -> Record:
    return Record(
        id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        start=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        tags={key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")},
        children=children,
    )
