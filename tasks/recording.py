"""A run that is under way: what is logged of it, stage by stage, from the manifests, on hits and misses alike."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

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

from tasks.artifacts import Store
from tasks.taking_turns import alone
from tasks.tracked import INPUT, MD5, flatten, is_number, leaves, name_of, short

PARENT = "mlflow.parentRunId"


class Run:
    """A run that is under way: a recipe's, with a child for each stage, or a sweep's, with one for each recipe."""

    def __init__(self, client: MlflowClient, experiment: str, store: Store, run_id: str) -> None:
        self.id = run_id
        self._client = client
        self._experiment = experiment
        self._store = store
        self._stages = 0
        self._linked: set[tuple[str, str]] = set()
        self.failed = False
        """Whether it is closed as FAILED though it came to its end."""

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
            **{f"{INPUT}{name}": f"{read['stage']}/{read['key']}" for name, read in manifest["inputs"].items()},
        }
        self._stages += 1
        child = self._client.create_run(
            self._experiment, start_time=started, tags=short(tags), run_name=title
        ).info.run_id
        maker = child if cache == "miss" else self._maker(stage, key)
        numbers = {name: float(value) for name, value in leaves(manifest["facts"]) if is_number(value)}
        numbers |= {name: float(producer[name]) for name in ("seconds", "peak_memory_bytes")}
        log_values(
            self._client, child, flatten(manifest["params"]), numbers, {"produced_by_run": maker} if maker else None
        )
        for file in files:
            self._client.log_artifact(child, str(file))
        self._client.set_terminated(child, "FINISHED", end_time=ended)
        return str(child)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record nested params of this run."""
        log_values(self._client, self.id, params=flatten(params))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of this run."""
        log_values(self._client, self.id, tags=dict(tags))

    def log_text(self, text: str, name: str) -> None:
        """Keep a small text as an artifact of this run."""
        self._client.log_text(self.id, text, name)

    def log_version(self, child: str, md5: str) -> None:
        """Name the md5 by which DVC has a child's result."""
        log_values(self._client, child, tags={MD5: md5})

    def log_curve(self, child: str, rows: Sequence[Mapping[str, float]]) -> None:
        """Record a training curve on a child: each row has a `step`, its other values are metrics at that step."""
        now = int(time.time() * 1000)
        points = [
            Metric(name_of(key), float(value), now, int(row["step"]))
            for row in rows
            for key, value in row.items()
            if key != "step"
        ]
        for start in range(0, len(points), 900):
            self._client.log_batch(child, metrics=points[start : start + 900])

    def _maker(self, stage: str, key: str) -> str | None:
        made = f"tags.key = '{key}' AND tags.cache = 'miss' AND tags.stage = '{stage}'"
        found = self._client.search_runs([self._experiment], made, max_results=1, order_by=["start_time DESC"])
        return str(found[0].info.run_id) if found else None

    def log_corpus(
        self, child: str, name: str, md5: str, source: str, tokens: int, context: str = "calibration"
    ) -> None:
        """Name a corpus, by the md5 that DVC gives its file, as a dataset that `child` and this run used."""
        dataset = Dataset(name, md5, "local", json.dumps({"uri": source}), profile=json.dumps({"num_tokens": tokens}))
        used = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        with self._alone("mlflow-datasets"):  # MLflow fails where two make the same dataset at once
            for run_id in (child, self.id):
                try:
                    self._client.log_inputs(run_id, datasets=[used])
                except MlflowException:  # somebody with another store made it at this moment: now it is there
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
        client = self._client
        with self._alone("mlflow-models"):
            model_id = self._first_model(digest) or self._make_model(kind, digest, name, params or {})
        if (kind, model_id) not in self._linked:
            self._linked.add((kind, model_id))
            if kind == "base":
                client.log_inputs(self.id, models=[LoggedModelInput(model_id)])
            else:
                client.log_outputs(self.id, [LoggedModelOutput(model_id, step=0)])
        return model_id

    def _alone(self, what: str) -> AbstractContextManager[None]:
        return alone(self._store, self._client.tracking_uri, what)

    def _first_model(self, digest: str) -> str | None:
        found = self._client.search_logged_models(
            [self._experiment],
            f"params.sha256 = '{digest}'",
            max_results=1,
            order_by=[{"field_name": "creation_timestamp", "ascending": True}],
        )
        return str(found[0].model_id) if found else None

    def _make_model(self, kind: str, digest: str, name: str, params: Mapping[str, Any]) -> str:
        made = self._client.create_logged_model(
            self._experiment,
            name=re.sub(r"[/:.%\"']", "-", name),
            source_run_id=self.id,
            params={**flatten(params), "sha256": digest},
            tags={"kind": kind},
            model_type=kind,
        )
        self._client.finalize_logged_model(made.model_id, "READY")
        first = self._first_model(digest)
        if first is None or first == made.model_id:
            return str(made.model_id)
        self._client.delete_logged_model(made.model_id)  # somebody with another store was quicker
        return first

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
            name_of(f"{name}{suffix}"): float(value)
            for name, metric in metrics.items()
            for suffix, value in (("", metric["value"]), ("_stderr", metric.get("stderr")), ("_n", metric.get("n")))
            if value is not None
        }
        counts = {name_of(f"{name}_n") for name in metrics}
        headline = {f"{prefix}/{name}": value for name, value in plain.items() if name not in counts}
        log_values(self._client, self.id, metrics=headline)
        if child is not None:
            log_values(self._client, child, metrics=plain, model_id=model_id)

    def log_counts(self, counts: Mapping[str, int]) -> None:
        """Record plain numbers as metrics of this run."""
        log_values(self._client, self.id, metrics=counts)

    def log_file(self, path: Path) -> None:
        """Keep a file as an artifact of this run."""
        self._client.log_artifact(self.id, str(path))

    def fail(self, error: str) -> None:
        """Have this run closed as FAILED when it has come to its end."""
        self.failed = True
        self.tag({"error": error})


def log_values(
    client: MlflowClient,
    run_id: str,
    params: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    model_id: str | None = None,
) -> None:
    """Record values of a run, in as few calls as a server takes."""
    now = int(time.time() * 1000)
    numbers = [Metric(name_of(key), value, now, 0, model_id=model_id) for key, value in (metrics or {}).items()]
    words = [Param(name_of(key), value) for key, value in (params or {}).items()]
    labels = [RunTag(key, value) for key, value in short(tags or {}).items()]
    client.log_batch(run_id, numbers[:900], words[:100], labels)
    for start in range(900, len(numbers), 900):
        client.log_batch(run_id, metrics=numbers[start : start + 900])
    for start in range(100, len(words), 100):  # a server takes no more at once
        client.log_batch(run_id, params=words[start : start + 100])
