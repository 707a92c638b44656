"""Paired differences as people are told them: one metric for each corpus and task, each with its interval."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.comparison import REPORT
from tasks.suites import TASKS

PERPLEXITY = "log_perplexity/"
"""How the names of differences of perplexity begin; the other headline metrics are accuracies, where more is better."""
ACCURACIES = ("acc", "acc_norm", r"exact_match\w*", r"pass_at_1\w*")
"""Fractions of questions, the first that a task has is its headline metric; those of suites name their own."""

Metrics = Mapping[str, dict[str, Any]]


def headline(metrics: Metrics, pooled: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Of differences by metric those that summaries tell, in the order given.

    They are log perplexity of each corpus, and one accuracy of each task. No question counts twice: of a group that
    pools its questions there is the group alone, without its members; `pooled` has the members of each.
    """
    tasks: dict[str, list[str]] = {}
    for name in metrics:
        task, _, metric = name.rpartition("/")
        tasks.setdefault(task, []).append(metric)
    found = [f"{task}/{best}" for task, those in tasks.items() if (best := _accuracy(task, those))]
    kept = {name for name in metrics if name.startswith(PERPLEXITY)}
    covered: set[str] = set()
    for name in sorted(found, key=lambda name: (-len(pooled.get(name, ())), name)):  # the largest groups first
        members = {metric.rpartition("/")[0] for metric in pooled.get(name, [name])}
        if not members <= covered:
            kept.add(name)
            covered |= members
    return {name: metric for name, metric in metrics.items() if name in kept}


def _accuracy(task: str, metrics: Sequence[str]) -> str | None:
    wanted = [TASKS[task].metric] if task in TASKS else []
    ordered = (one for pattern in [*wanted, *ACCURACIES] for one in sorted(metrics) if re.fullmatch(pattern, one))
    return next(ordered, None)


def pooled(report: Path) -> dict[str, list[str]]:
    """The metrics of groups of tasks that pool questions, by the metrics pooled; `report` is the folder of one."""
    found: dict[str, list[str]] = json.loads((report / REPORT).read_text())["pooled"]
    return found


def label(name: str) -> str:
    """The corpus or task of a headline metric; with the metric where that is not plain accuracy."""
    return name.removeprefix(PERPLEXITY).removesuffix("/acc")
