"""What lm-eval found, as metrics of a report and rows of samples."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any


def harvest(
    results: dict[str, Any],
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, list[str]]]:
    """(metrics, a row for each question, metrics of groups that pool questions by the metrics pooled) from lm-eval's.

    A metric is called as lm-eval calls it, with its filter where a task has several. It is marked `less_is_better` if
    its task says that more is not.
    """
    import torch

    from moeprune.perplexity import mean

    higher = results.get("higher_is_better", {})
    metrics: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for task, questions in results["samples"].items():
        several = len({question["filter"] for question in questions}) > 1
        of_task: dict[int, dict[str, Any]] = {}
        columns: dict[str, list[float]] = {}
        for question in questions:
            row = of_task.setdefault(question["doc_id"], {"kind": "question", "set": task, "id": question["doc_id"]})
            for name in question["metrics"]:
                if isinstance(question[name], bool | int | float):
                    label = _label(name, question["filter"], several)
                    row[label] = float(question[name])
                    columns.setdefault(label, []).append(row[label])
        rows += of_task.values()
        found = results["results"][task]
        for label, value, deviation, mark in _aggregates(found, higher.get(task, {}), several):
            values = torch.tensor(columns.get(label, ()), dtype=torch.float64)
            if len(values) and abs(float(values.mean()) - value) < 1e-9:
                metrics[f"{task}/{label}"] = asdict(mean(values)) | mark
            else:  # not the mean of questions: as lm-eval has it
                metrics[f"{task}/{label}"] = {"value": value, "stderr": deviation, "n": len(of_task)} | mark
    pooled: dict[str, list[str]] = {}
    members = results.get("group_subtasks", {})
    for group in members:
        leaves = _below(group, members)
        found = results["results"].get(group, {})
        for label, value, deviation, mark in _aggregates(found, higher.get(group, {}), False):
            parts = [f"{leaf}/{label}" for leaf in leaves]
            if not all(part in metrics for part in parts):
                continue
            counts = [metrics[part]["n"] for part in parts]
            metrics[f"{group}/{label}"] = {"value": value, "stderr": deviation, "n": sum(counts)} | mark
            sums = sum(metrics[part]["value"] * n for part, n in zip(parts, counts, strict=True))
            if abs(sums / sum(counts) - value) < 1e-9:
                pooled[f"{group}/{label}"] = parts
    return metrics, rows, pooled


def _label(metric: str, filtered: str, several: bool) -> str:
    """pass@1 is pass_at_1; exact_match,strict-match is exact_match_strict_match."""
    whole = f"{metric}_{filtered}" if several else metric
    return whole.replace("@", "_at_").replace("-", "_")


def _aggregates(
    found: dict[str, Any], higher: dict[str, bool | None], several: bool
) -> Iterator[tuple[str, float, float | None, dict[str, bool]]]:
    """(metric, value, standard error, its mark) of one task's or group's results."""
    for key, value in found.items():
        name, _, filtered = key.partition(",")
        if filtered and not name.endswith("_stderr") and isinstance(value, float):
            deviation = found.get(f"{name}_stderr,{filtered}")
            mark = {"less_is_better": True} if higher.get(name) is False else {}
            yield _label(name, filtered, several), value, deviation if isinstance(deviation, float) else None, mark


def _below(group: str, members: dict[str, list[str]]) -> list[str]:
    """The single tasks of a group and of the groups in it."""
    return [leaf for name in members[group] for leaf in (_below(name, members) if name in members else [name])]
