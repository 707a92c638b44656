"""What people see at the end: tables in the terminal, JSON for programs, Markdown for pages."""

import os
import re
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flows import plots
from flows.planning import Plan
from flows.pruning import Outcome, Record
from flows.recipe import Recipe
from flows.runs import Comparison
from flows.sweeping import Sweep
from moeprune.errors import BadInput
from tasks import versioning
from tasks.artifacts import Store
from tasks.tracking import Record as Recorded

console = Console()
BEGIN, END = "<!-- sweep:begin -->", "<!-- sweep:end -->"


def number(metric: dict[str, Any] | None, digits: int = 3) -> str:
    """A value with its standard error."""
    if metric is None:
        return ""
    text = f"{metric['value']:.{digits}f}"
    return text if metric.get("stderr") is None else f"{text} ± {metric['stderr']:.{digits}f}"


def size(count: float) -> str:
    """Bytes or parameters, readable."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} "


def outcome(recipe: Recipe, result: Outcome) -> None:
    """The base against the pruned model, memory, which experts went, and how long each stage took."""
    if result.metrics:
        console.print(_metrics(recipe, result))
        console.print(
            "± standard error over documents or questions. Differences are paired; of perplexity the difference is in "
            "nats per token, the logarithm of the ratio.",
            style="dim",
        )
    console.print(_removed(recipe, result))
    stages = Table(title="stages")
    stages.add_column("stage", no_wrap=True)
    for column in ("store", "seconds", "key"):
        stages.add_column(column, justify="right" if column == "seconds" else "left")
    for record in result.records:
        stages.add_row(record.step.title, record.cache, f"{record.seconds:.1f}", record.artifact.key[:12])
    console.print(stages)
    for line in _next(recipe, result):
        console.print(line, highlight=False, soft_wrap=True)


def _metrics(recipe: Recipe, result: Outcome) -> Table:
    table = Table(title=f"{recipe.download.source} pruned by {recipe.score.criterion}")
    table.add_column("metric", no_wrap=True)
    for column in ("base", "pruned", "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    delta = result.metrics.get("delta", {})
    for name, before in result.metrics["base"].items():
        paired = delta.get(name) or delta.get(f"log_{name}")
        digits = 1 if name.startswith("perplexity") else 3
        table.add_row(name, number(before, digits), number(result.metrics["pruned"].get(name), digits), number(paired))
    table.add_section()
    for kind, before in result.memory["base"].items():
        after = result.memory["pruned"][kind]
        unit = "" if "parameters" in kind else "B"
        change = f"{after / before - 1:+.1%}" if before else ""
        table.add_row(kind.replace("_", " "), size(before) + unit, size(after) + unit, change)
    return table


def _removed(recipe: Recipe, result: Outcome) -> Table:
    assert result.made.mask is not None
    rows = Store(recipe.runtime.store).manifest(result.made.mask)["facts"]["table"]
    table = Table(title="experts removed")
    for column in ("layer", "removed", "of", "closest call"):
        table.add_column(column, justify="right" if column in ("layer", "of") else "left")
    for layer in dict.fromkeys(row["layer"] for row in rows):
        own = [row for row in rows if row["layer"] == layer]
        gone = [row["expert"] for row in own if not row["kept"]]
        measured = [row for row in own if row["margin"] is not None]
        # The kept expert nearest to the cut: had the scores differed by twice its margin, another would have stayed.
        near = min((row for row in measured if row["kept"]), key=lambda row: row["margin"], default=None)
        call = f"expert {near['expert']} stays by {2 * near['margin']:.3g}" if near and gone else ""
        table.add_row(str(layer), " ".join(map(str, gone)), str(len(own)), call)
    return table


def _next(recipe: Recipe, result: Outcome) -> list[str]:
    lines = [f"pruned checkpoint: {os.path.relpath(_checkpoint(recipe, result))}"]
    if versioning.changed(Path.cwd()):
        lines.append(
            "data.dvc has changed: DVC now holds this run's corpora and masks. To keep this version: "
            "git add data.dvc && git commit -m 'corpora and masks of a pruning run'"
        )
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{recipe.runtime.store.absolute()}/mlflow.db"
    lines.append(f"look further: moeprune runs list   or   mlflow ui --backend-store-uri {uri}")
    return lines


def _checkpoint(recipe: Recipe, result: Outcome) -> Path:
    assert result.made.pruned is not None
    return (recipe.runtime.store / result.made.pruned.path).absolute()


def as_json(recipe: Recipe, result: Outcome) -> dict[str, Any]:
    """The one JSON object of `run --json`."""
    stages: dict[str, Any] = {}
    for record in result.records:
        entry = stages.setdefault(record.step.stage, {"cache": "hit", "seconds": 0.0, "artifacts": []})
        entry["cache"] = "miss" if "miss" in (entry["cache"], record.cache) else "hit"
        entry["seconds"] = round(entry["seconds"] + record.seconds, 3)
        entry["artifacts"].append(_artifact(record))
    return {
        "run_id": result.run_id,
        "status": "done",
        "error": None,
        "stages": stages,
        "metrics": result.metrics,
        "checkpoint": str(_checkpoint(recipe, result)),
    }


def _artifact(record: Record) -> dict[str, str]:
    return {"key": record.artifact.key, "path": record.artifact.path, "cache": record.cache, "of": record.step.of}


def plan(result: Plan) -> None:
    """What would run and why."""
    table = Table(title="plan")
    for column in ("stage", "would", "why", "key"):
        table.add_column(column, overflow="fold")
    for stage in result.stages:
        table.add_row(stage.step.title, stage.state, stage.why, (stage.step.key or "")[:12])
    console.print(table)
    if result.disk is None or result.memory is None:
        console.print("disk and memory can be told when the model has been downloaded")
    else:
        console.print(
            f"at most {size(result.disk)}B would be written to the store; the weights take "
            f"{size(result.memory)}B of memory as stored, twice that in float32 if they are bfloat16"
        )


def runs(found: list[Recorded]) -> None:
    """The newest runs, with the mean over corpora and tasks of what pruning changed."""
    table = Table(title="runs", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("run", "when", "mask", "criterion"):
        table.add_column(column, no_wrap=True)
    table.add_column("name", overflow="fold")
    for column in ("Δ ln ppl", "Δ acc"):
        table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    for run in found:
        budget = next(
            (
                f"{key} {value}"
                for key in ("ratio", "keep", "bytes")
                if (value := run.params.get(f"mask.{key}", "None")) not in ("None", "null")
            ),
            "",
        )
        table.add_row(
            run.id[:8],
            f"{run.start:%m-%d %H:%M}",
            budget,
            run.params.get("score.criterion"),
            run.name,
            # A run that did not finish has its status where its result would be.
            _mean_of(run, r"delta/log_perplexity/(?!.*_stderr$).*") if run.status == "FINISHED" else run.status,
            _mean_of(run, r"delta/.*/acc"),
        )
    console.print(table)


def _mean_of(run: Recorded, names: str) -> str:
    values = [value for name, value in run.metrics.items() if re.fullmatch(names, name)]
    return f"{mean(values):+.3f}" if values else ""


def comparison(found: Comparison) -> None:
    """Two runs' pruned models pair by pair."""
    table = Table(
        title=f"{found.second[:8]} minus {found.first[:8]}: pruned models on the same documents and questions"
    )
    for column in ("metric", "difference", "95% interval"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, metric in found.metrics.items():
        spread = 1.96 * (metric["stderr"] or 0)
        table.add_row(
            name,
            number(metric, 4),
            f"{metric['value'] - spread:+.4f} to {metric['value'] + spread:+.4f}"
            if metric["stderr"] is not None
            else "",
        )
    console.print(table)
    for key, (first, second) in found.params.items():
        console.print(f"{key}: {first} -> {second}", highlight=False)
    console.print(f"masks: {found.mask}", highlight=False)


def sweep(result: Sweep) -> None:
    """Every combination in one table."""
    rows = sweep_rows(result)
    if not rows:
        console.print("the recipe has no section evaluate: nothing was measured")
        return
    table = Table(title=f"sweep {result.name}")
    for column in rows[0]:
        table.add_column(column, justify="left" if column in ("removed", "criterion") else "right")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def sweep_rows(result: Sweep) -> list[dict[str, str]]:
    """One row per combination; runs of the same criterion with other seeds are one row, mean ± their deviation.

    Rows are sorted by ratio, then by the mean log-perplexity increase. Differences are paired against the base. A
    value whose interval lies below or above every random draw of its budget is marked so.
    """
    groups: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for recipe, one in zip(result.recipes, result.outcomes, strict=True):
        if one.metrics.get("delta"):
            groups[_budget(recipe), _criterion(recipe)].append(one)
    lines = []
    for (budget, criterion), outcomes in groups.items():
        names = list(outcomes[0].metrics["delta"])
        shown = [name for name in names if name.startswith("log_perplexity/") or name.endswith("/acc")]
        draws = groups.get((budget, plots.RANDOM), [])
        cells = {
            _short(name): _cell(
                [one.metrics["delta"][name] for one in outcomes], [one.metrics["delta"][name]["value"] for one in draws]
            )
            for name in shown
        }
        order = mean(
            mean(one.metrics["delta"][name]["value"] for name in shown if name.startswith("log_")) for one in outcomes
        )
        label = criterion + (f" ({len(outcomes)} seeds)" if len(outcomes) > 1 else "")
        lines.append((budget, order, {"removed": budget, "criterion": label, **cells}))
    return [row for _, _, row in sorted(lines, key=lambda line: line[:2])]


def _short(name: str) -> str:
    return name.replace("log_perplexity/", "Δ ln ppl ").replace("/acc", " Δ acc")


def _budget(recipe: Recipe) -> str:
    mask = recipe.mask
    return f"{mask.ratio:.0%}" if mask.ratio is not None else f"to {mask.keep or mask.bytes}"


def _criterion(recipe: Recipe) -> str:
    options = {name: value for name, value in recipe.score.options.items() if name != "seed"}
    return recipe.score.criterion + "".join(f" {name}={value}" for name, value in options.items())


def _cell(metrics: list[dict[str, Any]], draws: list[float]) -> str:
    values = [metric["value"] for metric in metrics]
    if len(values) > 1:  # over seeds: the spread of the draw, not the error of the measurement
        return f"{mean(values):+.3f} ± {stdev(values):.3f} s.d."
    spread = 1.96 * (metrics[0]["stderr"] or 0)
    mark = ""
    if draws and values[0] + spread < min(draws):
        mark = " ▼"
    elif draws and values[0] - spread > max(draws):
        mark = " ▲"
    return f"{values[0]:+.3f} ± {spread:.3f}{mark}"


def write_table(result: Sweep, path: Path, command: str) -> None:
    """Put the sweep's table, as Markdown, between the markers of a file."""
    text = path.read_text() if path.is_file() else ""
    if BEGIN not in text or END not in text:
        raise BadInput(f"--table {path}: the file has no lines {BEGIN} and {END} to put the table between: add them")
    rows = sweep_rows(result)
    head = list(rows[0])
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(' --- ' for _ in head)}|"]
    lines += [f"| {' | '.join(row.values())} |" for row in rows]
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join(lines)
    note = f"Made by `{command}`. ▼ below, ▲ above every random draw, with its interval."
    path.write_text(f"{before}{BEGIN}\n{note}\n\n{table}\n{END}{after}")


def write_plot(result: Sweep, path: Path) -> None:
    """Draw the sweep's results into a file."""
    measured = [
        (_budget(recipe), _criterion(recipe), one.metrics["delta"])
        for recipe, one in zip(result.recipes, result.outcomes, strict=True)
        if one.metrics.get("delta")
    ]
    if measured:
        plots.sweep(measured, path)
