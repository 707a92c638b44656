"""Looking back: runs in the tracker, listed and compared."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.upkeep.needing import note_use
from moeprune import weight_masks
from moeprune.errors import BadInput
from moeprune.masks import Mask
from tasks import comparison
from tasks.artifacts import Store, logger
from tasks.lineage import lineage_of
from tasks.tracked import KEPT, Record
from tasks.tracking import open_tracker


@dataclass(frozen=True)
class Comparison:
    """Two runs: paired differences of the models they made, second minus first, and what differs in how they came."""

    first: str
    second: str
    metrics: dict[str, dict[str, Any]]
    params: dict[str, tuple[str, str]]
    mask: str


def newest(limit: int, store: Path) -> list[Record]:
    """The newest runs and sweeps first."""
    return open_tracker(Store(store)).list_runs(limit)


def of_sweep(sweep: str, store: Path) -> list[Record]:
    """The runs of a sweep, by its id or the beginning of it, the first first."""
    return list(open_tracker(Store(store)).find_sweep(sweep).children)


def keep(prefix: str, store: Path, kept: bool) -> list[Record]:
    """Have gc leave alone all that a run, or every run of a sweep, needs; or no longer. Returns these runs."""
    tracker = open_tracker(Store(store))
    found = tracker.find(prefix)
    runs = list(found.children) if found.tags["role"] == "sweep" else [found]
    for run in runs:
        tracker.tag(run.id, KEPT, "true" if kept else None)
        if kept and (missing := note_use(lineage_of(tracker.find_run(run.id)), tracker.store)):
            logger().warning(
                "run %s: %s of its results are not in the store, such as %s: `moeprune restore %s` brings them back",
                run.id[:8],
                len(missing),
                missing[0],
                run.id[:8],
            )
    return runs


def close(prefix: str, store: Path) -> Record:
    """Have a run or sweep whose process is gone be over; BadInput as `Tracker.close`. Returns it."""
    return open_tracker(Store(store)).close(prefix)


def compare(first: str, second: str, store: Path) -> Comparison:
    """Compare two runs by id or its beginning; BadInput if one is unknown or its results are not in the store."""
    tracker = open_tracker(Store(store))
    return compare_records(tracker.find_run(first), tracker.find_run(second), store)


def compare_records(one: Record, other: Record, store: Path) -> Comparison:
    """Compare two runs that have been read. Raises BadInput if a result is not in the store."""
    folders = [_folder(run, f"evaluate {_made(run)}", store) for run in (one, other)]
    metrics = comparison.compare(*folders)
    if not metrics:
        raise BadInput(
            f"runs {one.id[:8]} and {other.id[:8]} were not evaluated on the same documents or questions: "
            "give both the same section evaluate"
        )
    keys = sorted(one.params.keys() | other.params.keys())
    params = {
        key: (one.params.get(key, ""), other.params.get(key, ""))
        for key in keys
        if one.params.get(key) != other.params.get(key)
    }
    masks = [(_folder(run, "mask", store) / "mask.json").read_text() for run in (one, other)]
    return Comparison(one.id, other.id, metrics, params, _difference(*masks))


def _made(run: Record) -> str:
    """The model a run is for."""
    return "distilled" if "artifact.evaluate distilled" in run.tags else "pruned"


def _folder(run: Record, title: str, store: Path) -> Path:
    path = run.tags.get(f"artifact.{title}")
    if path is None:
        raise BadInput(f"run {run.id[:8]} ({run.name}) has no stage '{title}': it did not finish, or measures nothing")
    if not (store / path).is_dir():
        raise BadInput(f"run {run.id[:8]}: {store / path} is not there: run its recipe again to make it")
    return store / path


def _difference(first: str, second: str) -> str:
    """How far two masks agree, in words."""
    of_weights = [json.loads(text)["format"] == weight_masks.FORMAT for text in (first, second)]
    if any(of_weights):
        return "of weights" + ("" if all(of_weights) else " and of experts") + (": the same" if first == second else "")
    one, other = Mask.from_json(first), Mask.from_json(second)
    if one.base != other.base:
        return "of different base models"
    shared = sum(len(set(one.kept[layer]) & set(other.kept[layer])) for layer in one.kept)
    union = sum(len(set(one.kept[layer]) | set(other.kept[layer])) for layer in one.kept)
    return (
        f"{shared} of {sum(one.counts.values())} and {sum(other.counts.values())} kept experts are the same "
        f"(Jaccard {shared / union:.3f})"
    )
