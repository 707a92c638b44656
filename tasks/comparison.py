"""Samples of evaluated checkpoints, and two of them compared: differences over pairs, writing side by side."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tasks.suites import average

REPORT, SAMPLES, GENERATIONS = "report.json", "samples.parquet", "generations.json"
FIXED = ("kind", "set", "id", "nll", "tokens", "bytes")
"""Columns of samples.parquet; each further one is a metric of questions."""

Rows = dict[int, dict[str, Any]]


def write_samples(path: Path, rows: list[dict[str, Any]]) -> None:
    """A row for each document and each question."""
    import pyarrow as arrow
    from pyarrow import parquet

    kinds = (arrow.string(), arrow.string(), arrow.int64(), arrow.float64(), arrow.int64(), arrow.int64())
    metrics = sorted({"acc", "acc_norm"}.union(*rows) - set(FIXED))
    schema = arrow.schema([*zip(FIXED, kinds, strict=True), *((name, arrow.float64()) for name in metrics)])
    parquet.write_table(arrow.Table.from_pylist(rows, schema=schema), path)


def compare(before: Path, after: Path) -> dict[str, dict[str, float | int | None]]:
    """Paired differences, after minus before, between two artifacts of `evaluate`, by metric.

    `log_perplexity/<corpus>` is in nats per token; the others are differences of means. Each has a standard error
    over pairs; that of a suite is of a mean of independent tasks. Sets that are not the same documents or questions
    in both are left out.
    """
    import torch

    from moeprune.perplexity import mean, ratio

    old, new = _read(before), _read(after)
    found: dict[str, dict[str, Any]] = {}
    changes: dict[str, torch.Tensor] = {}
    for (kind, name), rows in old.items():
        others = new.get((kind, name), {})
        if rows.keys() != others.keys():
            continue

        def column(source: Rows, field: str, ids: Any = tuple(rows)) -> Any:
            return torch.tensor([source[number][field] for number in ids], dtype=torch.float64)

        if kind == "document":
            tokens = column(rows, "tokens")
            if torch.equal(tokens, column(others, "tokens")):
                shift = column(others, "nll") - column(rows, "nll")
                found[f"log_perplexity/{name}"] = asdict(ratio(shift, tokens))
                found[f"bits_per_byte/{name}"] = asdict(
                    ratio(shift / torch.log(torch.tensor(2.0)), column(rows, "bytes"))
                )
        else:
            for metric in next(iter(rows.values())).keys() - set(FIXED):
                if all(row.get(metric) is not None for row in [*rows.values(), *others.values()]):
                    changes[f"{name}/{metric}"] = column(others, metric) - column(rows, metric)
    one, other = (json.loads((folder / REPORT).read_text()) for folder in (before, after))
    for group, parts in one.get("pooled", {}).items():
        if all(part in changes for part in parts):
            changes[group] = torch.cat([changes[part] for part in parts])
    found |= {name: asdict(mean(change)) for name, change in sorted(changes.items())}
    for word, metrics in one.get("suites", {}).items():
        if other.get("suites", {}).get(word) == metrics and all(metric in found for metric in metrics):
            found[f"suite/{word}"] = average([found[metric] for metric in metrics])
    return found


def _read(folder: Path) -> dict[tuple[str, str], Rows]:
    from pyarrow import parquet

    sets: dict[tuple[str, str], Rows] = {}
    for row in parquet.read_table(folder / SAMPLES).to_pylist():
        sets.setdefault((row["kind"], row["set"]), {})[row["id"]] = row
    return sets


def side_by_side(before: Path, after: Path) -> str:
    """What two evaluated models write after the same beginnings, as Markdown."""
    old, new = (json.loads((folder / GENERATIONS).read_text()) for folder in (before, after))
    return "\n".join(
        f"## {one['corpus']}\n\n**prompt** {one['prompt']}\n\n**base** {one['text']}\n\n**pruned** {other['text']}\n"
        for one, other in zip(old, new, strict=True)
    )
