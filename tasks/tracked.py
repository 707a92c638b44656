"""What the tracker holds, in our own types, and values as MLflow takes them whole."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

LONGEST = 6000
"""Characters of a param's value; MLflow would cut a longer one in silence."""
RECIPE = "recipe.yaml"
"""The file of a run with its resolved recipe."""
INPUT = "input."
"""What the tags of a stage that name its inputs begin with."""
MD5 = "dvc.md5"
"""The tag of a stage whose result DVC versions."""
KEPT = "keep"
"""The tag of a run of which gc leaves everything."""


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
    """A run's: one per stage and thing worked on, in the order of logging. A sweep's: its runs. Empty in lists."""


@dataclass(frozen=True)
class LoggedModel:
    """A model as it was recorded; its weights lie in a store."""

    id: str
    name: str
    kind: str
    """base, pruned or distilled."""
    digest: str
    run: str
    """The first run that read or made it."""
    params: dict[str, str]


def record_of(run: Any, children: tuple[Record, ...] = ()) -> Record:
    """MLflow's run as ours."""
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


def flatten(params: Mapping[str, Any]) -> dict[str, str]:
    """Nested params as `section.key` with text values that MLflow keeps whole; what is longer ends in an ellipsis."""

    def text(value: Any) -> str:
        written = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
        return written if len(written) <= LONGEST else f"{written[: LONGEST - 1]}…"

    return {name_of(name): text(value) for name, value in leaves(params)}


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(`section.key`, value) of what is nested."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def is_number(value: Any) -> bool:
    """Whether it can be a metric."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def name_of(text: str) -> str:
    """A name that MLflow takes for a metric or param: no comma, @, =, parentheses or folder-like dots."""
    return "/".join(part for part in re.sub(r"[^\w\-. :/]", "_", text)[:250].split("/") if part.strip("."))


def short(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags that MLflow keeps whole; what is longer ends in an ellipsis."""
    return {key: value if len(value) <= 5000 else f"{value[:4999]}…" for key, value in tags.items()}
