"""A tracker with as many runs as are asked for: some recorded as runs are, the rest copies of their rows.

    make(store, 1000)

What is recorded goes through the tracker's own code; copies are rows with other ids and keys, in one transaction. How
MLflow reads a copy is held against how it reads what was copied. Copies began before all that was recorded; of files
they have a recipe alone, so that there are no cards of what they made.
"""

import hashlib
import json
import random
import re
import sqlite3
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

from flows.engine import LOGGED
from flows.recipe import Recipe, read_recipe, to_yaml
from moeprune.hashing import digest_of
from moeprune.masks import Mask
from tasks import comparison
from tasks.artifacts import MANIFEST, Artifact, Step, Store
from tasks.tracking import Tracker

CRITERIA = (
    "reap",
    "frequency",
    "aimer",
    "man",
    "ean",
    "seer",
    "msan",
    "uniform_random",
    "gate_weighted_ean",
    "unified",
)
RATIOS = (0.25, 0.5)
CORPORA = ("wiki", "code", "fiction", "law")
DEMO = Path(__file__).parents[1] / "params/demo.yaml"
LAYERS, EXPERTS = 6, 16
OWN = ("score", "mask", "prune", "evaluate pruned")
"""Stages whose results differ between copies; the others are shared."""
TABLES = {
    "tags": ("key", "value"),
    "params": ("key", "value"),
    "metrics": ("key", "value", "timestamp", "step", "is_nan"),
    "latest_metrics": ("key", "value", "timestamp", "step", "is_nan"),
}


def make(store: Path, count: int, recipe: Path = DEMO) -> None:
    """Record one run for each criterion and ratio, copy them until there are `count`, and check the copies."""
    tracker = Tracker(Store(store))
    kinds = list(product(CRITERIA, RATIOS))[:count]
    recorded = [_record(tracker, recipe, *kind) for kind in kinds]
    copies = _copy(store, recorded, count - len(recorded))
    _check(tracker, copies, count)


def _hash(*words: object) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def _record(tracker: Tracker, path: Path, criterion: str, ratio: float) -> str:
    """One run with its stages, their manifests in the store, as the pruning flow records it."""
    changes = (f"score.criterion={criterion}", f"mask.ratio={ratio}", f"runtime.store={tracker.store.root}")
    recipe = read_recipe(path, changes)
    tags = {"method": recipe.method}
    draw = random.Random(f"{criterion} {ratio}")
    measured = {"base": _measured(random.Random("base"), 0.0), "pruned": _measured(draw, ratio)}
    memory = {"base": {"weights": 10**8}, "pruned": {"weights": int(1e8 * (1 - 0.8 * ratio))}}
    with tracker.run("synthetic", recipe.model_dump(mode="json"), tags, to_yaml(recipe)) as run:
        titles, children = {}, {}
        for stage, of, inputs in _stages(recipe):
            title = f"{stage} {of}".strip()
            own: dict[str, Any] = {"criterion": criterion, "ratio": ratio} if title in OWN else {}
            manifest = _manifest(stage, of, own, {name: titles[read] for name, read in inputs.items()})
            report: dict[str, Any] = {}
            if stage == "evaluate":
                read = manifest["inputs"]["checkpoint"]["digest"]
                report = {"checkpoint": read, "metrics": measured[of], "memory": memory[of], "limited": False}
            folder, manifest = _keep(tracker.store, manifest, report)
            titles[title] = manifest
            small = [folder / name for name in LOGGED.get(stage, (MANIFEST,)) if (folder / name).is_file()]
            child = children[title] = run.log_stage(title, stage, of, manifest, "miss", small)
            if stage in ("calibrate", "mask"):
                run.log_version(child, hashlib.md5(manifest["key"].encode()).hexdigest())
        for of, metrics in measured.items():
            run.log_metrics(metrics, of, children[f"evaluate {of}"])
            run.log_metrics({"memory/weights": {"value": memory[of]["weights"]}}, of)
        run.log_metrics(_changed(draw, ratio), "delta")
        base = run.log_model("base", titles["download"]["digest"], "model")
        run.log_model("pruned", titles["prune"]["digest"], "model-pruned", {"base_model_id": base})
        run.tag({f"artifact.{title}": f"{one['stage']}/{one['key']}" for title, one in titles.items()})
    return run.id


def _stages(recipe: Recipe) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Stage, label and inputs by title, in the order of the chain."""
    yield "download", "", {}
    if recipe.uses_statistics:
        for name in CORPORA:
            yield "calibrate", name, {"download": "download"}
        for name in CORPORA:
            yield "observe", name, {"download": "download", "calibrate": f"calibrate {name}"}
    read = {f"observe.{number}": f"observe {name}" for number, name in enumerate(CORPORA)}
    yield "score", "", {"download": "download", **(read if recipe.uses_statistics else {})}
    yield "mask", "", {"download": "download", "score": "score"}
    yield "prune", "", {"download": "download", "mask": "mask"}
    yield "evaluate", "base", {"checkpoint": "download"}
    yield "evaluate", "pruned", {"checkpoint": "prune"}


def _manifest(stage: str, of: str, own: dict[str, Any], inputs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All but the digest of a result, which its files decide."""
    read = {name: {key: one[key] for key in ("stage", "key", "digest")} for name, one in inputs.items()}
    params = {"seed": 0, "sequence_length": 256, "source": f"{of}.txt", **own}
    step = Step(stage, of, _hash("code", stage), params, {name: Artifact(**one) for name, one in read.items()})
    return {
        "stage": stage, "of": of, "key": step.key, "digest": "", "code": step.code, "params": params,
        "facts": {"tokens": 32768, "documents": 40, "of_documents": 400, "kept": EXPERTS // 2},
        "files": {}, "inputs": read,
        "producer": {"flow_run": str(uuid.uuid4()), "git_commit": _hash("commit")[:40], "git_dirty": False,
                     "libraries": {}, "runtime": {}, "started": datetime.now(UTC).isoformat(timespec="seconds"),
                     "seconds": 1.5, "peak_memory_bytes": 10**8},
    }  # fmt: skip


def _keep(store: Store, manifest: dict[str, Any], report: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The result in the store, with its small files; and its manifest, whole."""
    folder = store.root / manifest["stage"] / manifest["key"]
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(manifest["key"])
    if manifest["stage"] == "mask":
        kept = {layer: tuple(sorted(draw.sample(range(EXPERTS), EXPERTS // 2))) for layer in range(LAYERS)}
        (folder / "mask.json").write_text(Mask("0" * 64, EXPERTS, kept).to_json())
    elif manifest["stage"] == "evaluate":
        common = {"tokens": 200, "bytes": 900, "acc": None, "acc_norm": None}
        rows = [
            {"kind": "document", "set": name, "id": number, "nll": draw.uniform(500, 700), **common}
            for name in CORPORA
            for number in range(30)
        ]
        comparison.write_samples(folder / comparison.SAMPLES, rows)
        (folder / comparison.REPORT).write_text(json.dumps(report))
    else:
        (folder / "content").write_text(manifest["key"])
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    digest = digest_of({name: file["sha256"] for name, file in files.items()})
    whole = manifest | {"files": files, "digest": manifest["digest"] or digest}
    (folder / MANIFEST).write_text(json.dumps(whole))
    return folder, whole


def _measured(draw: random.Random, ratio: float) -> dict[str, dict[str, float]]:
    perplexity = {
        f"perplexity/{name}": {"value": 20.0 * draw.uniform(1, 1.2) * (1 + ratio), "stderr": 0.8, "n": 30}
        for name in CORPORA
    }
    accuracy = {"value": 0.55 - 0.2 * ratio * draw.uniform(0.5, 1.5), "stderr": 0.015, "n": 1120}
    return {**perplexity, "continuation/acc": accuracy, "continuation/acc_norm": accuracy}


def _changed(draw: random.Random, ratio: float) -> dict[str, dict[str, float]]:
    damage = {
        f"log_perplexity/{name}": {"value": ratio * draw.uniform(0.5, 1.5), "stderr": 0.01, "n": 30} for name in CORPORA
    }
    accuracy = {"value": -0.2 * ratio * draw.uniform(0.5, 1.5), "stderr": 0.008, "n": 1120}
    return {**damage, "continuation/acc": accuracy, "continuation/acc_norm": accuracy}


def _copy(store: Path, recorded: list[str], count: int) -> dict[str, str]:
    """Copies by their ids, and what each is a copy of."""
    database = sqlite3.connect(store / "mlflow.db")
    copies: dict[str, str] = {}
    with database:
        for number in range(count):
            first = recorded[number % len(recorded)]
            children = [run for (run,) in database.execute(
                "SELECT run_uuid FROM tags WHERE key = 'mlflow.parentRunId' AND value = ?", (first,))]  # fmt: skip
            ids = {old: uuid.uuid4().hex for old in (first, *children)}
            keys = dict(_new_keys(database, children, number))
            copies[ids[first]] = first
            for old, new in ids.items():
                _copy_run(database, old, new, {**ids, **keys}, timedelta(minutes=7 * (number + 1)))
            _copy_files(store, first, ids[first], keys)
    database.close()
    return copies


def _new_keys(database: sqlite3.Connection, children: list[str], number: int) -> Iterator[tuple[str, str]]:
    """Other keys and digests of the stages that a run shares with no other."""
    for child in children:
        tags = dict(database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", (child,)))
        if f"{tags['stage']} {tags['of']}".strip() in OWN:
            yield from ((tags[name], _hash(tags[name], number)) for name in ("key", "digest"))


def _copy_run(database: sqlite3.Connection, old: str, new: str, others: dict[str, str], earlier: timedelta) -> None:
    back = int(earlier.total_seconds() * 1000)
    database.execute(
        "INSERT INTO runs SELECT ?, name, source_type, source_name, entry_point_name, user_id, status, start_time - ?, "
        "end_time - ?, source_version, lifecycle_stage, replace(artifact_uri, ?, ?), experiment_id, deleted_time "
        "FROM runs WHERE run_uuid = ?",
        (new, back, back, old, new, old),
    )
    for table, columns in TABLES.items():
        listed = ", ".join(f'"{column}"' for column in columns)
        rows = database.execute(f"SELECT {listed} FROM {table} WHERE run_uuid = ?", (old,)).fetchall()
        changed = [
            (
                *(
                    _renamed(value, others) if column == "value" else value
                    for column, value in zip(columns, row, strict=True)
                ),
                new,
            )
            for row in rows
        ]
        marks = ", ".join("?" * (len(columns) + 1))
        database.executemany(f"INSERT INTO {table} ({listed}, run_uuid) VALUES ({marks})", changed)


def _renamed(value: Any, others: dict[str, str]) -> Any:
    """A value with every id, key or digest in it replaced."""
    if not isinstance(value, str):
        return value
    return re.sub(r"[0-9a-f]{64}|[0-9a-f]{32}", lambda found: others.get(found[0], found[0]), value)


def _copy_files(store: Path, old: str, new: str, keys: dict[str, str]) -> None:
    folder = store / "mlruns" / new / "artifacts"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_bytes((store / "mlruns" / old / "artifacts" / "recipe.yaml").read_bytes())
    for was, now in keys.items():
        for stage in ("score", "mask", "prune", "evaluate"):
            if (store / stage / was).is_dir():
                manifest = json.loads(_renamed((store / stage / was / MANIFEST).read_text(), keys))
                _keep(Store(store), manifest, {})
                assert manifest["key"] == now


def _check(tracker: Tracker, copies: dict[str, str], count: int) -> None:
    """MLflow reads copies as it reads what they are copies of."""
    runs = {run.id: run for run in tracker.runs_with_stages()}
    assert len(runs) == count, (len(runs), count)
    for new, old in random.Random(0).sample(sorted(copies.items()), min(20, len(copies))):
        one, other = runs[new], runs[old]
        assert (one.params, one.metrics, one.status) == (other.params, other.metrics, other.status)
        assert [child.name for child in one.children] == [child.name for child in other.children]
        assert [child.metrics for child in one.children] == [child.metrics for child in other.children]
        assert {child.tags["key"] for child in one.children} != {child.tags["key"] for child in other.children}
