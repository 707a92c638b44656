"""Lineages written by hand: runs and stages as the tracker gives them, without a tracker."""

from datetime import UTC, datetime

from tasks.lineage import Lineage, Stage
from tasks.tracked import Record

DAY = datetime(2026, 11, 20, 12, tzinfo=UTC)


def stage(word: str, key: str, of: str = "", reads: tuple[str, ...] = (), cache: str = "miss", **more: object) -> Stage:
    """A stage whose result is `<word>/<key>`, made from the results of these paths."""
    values: dict[str, object] = {
        "id": f"{word}{key}", "title": f"{word} {of}".strip(), "stage": word, "of": of, "key": key,
        "digest": f"digest-{key}", "cache": cache, "start": DAY, "produced_by": None, "flow_run": "flow",
        "git_commit": "c0ffee", "git_dirty": False, "inputs": {str(n): path for n, path in enumerate(reads)},
        "md5": None, "params": {}, "metrics": {},
    }  # fmt: skip
    return Stage(**(values | more))  # type: ignore[arg-type]


def lineage(
    run: str,
    *stages: Stage,
    start: datetime = DAY,
    params: dict[str, str] | None = None,
    metrics: dict[str, float] | None = None,
    **tags: str,
) -> Lineage:
    """A run of that id with its stages."""
    return Lineage(Record(run, f"name of {run}", "FINISHED", start, params or {}, metrics or {}, tags), stages, ())
