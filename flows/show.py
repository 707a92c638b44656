"""What people see at the end: tables in the terminal, JSON for programs, Markdown for pages."""

import os
import re
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flows.outcome import DELTA, Outcome, Record
from flows.recipe import Recipe
from flows.runs import Comparison
from moeprune.catalogue import Entry
from moeprune.quantiles import half_width
from tasks import versioning
from tasks.artifacts import Store
from tasks.benchmarks import location, present
from tasks.mask import BUDGETS
from tasks.suites import SIXTEEN, SUITES, TASKS
from tasks.tracked import KEPT
from tasks.tracked import Record as Recorded

if TYPE_CHECKING:
    from flows.planning import Plan

console = Console()


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
    if recipe.score.reason:
        console.print(f"criterion {recipe.score.reason}", highlight=False, soft_wrap=True)
    if result.metrics:
        for of in result.memory:
            if of != "base":
                console.print(_metrics(recipe, result, of))
        console.print(
            "± standard error over documents or questions. Differences are paired; of perplexity the difference is in "
            "nats per token, the logarithm of the ratio.",
            style="dim",
        )
    console.print(_sizes(recipe, result) if recipe.sparse else _removed(recipe, result))
    stages = Table(title="stages")
    stages.add_column("stage", no_wrap=True)
    for column in ("store", "seconds", "key"):
        stages.add_column(column, justify="right" if column == "seconds" else "left")
    for record in result.records:
        stages.add_row(record.step.title, record.cache, f"{record.seconds:.1f}", record.artifact.key[:12])
    console.print(stages)
    for line in _next(recipe, result):
        console.print(line, highlight=False, soft_wrap=True)


def _metrics(recipe: Recipe, result: Outcome, of: str) -> Table:
    """The base against one of the models made from it."""
    how = {"skipped": ", skipping experts", "distilled": ", distilled"}.get(of, "")
    if recipe.virtual:
        how = ", in memory only"
    table = Table(title=f"{recipe.download.source} pruned by {recipe.method}{how}")
    table.add_column("metric", no_wrap=True)
    for column in ("base", of, "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    delta = result.metrics.get(DELTA if of == "pruned" else f"{DELTA}_{of}", {})
    for name, before in result.metrics["base"].items():
        paired = delta.get(name) or delta.get(f"log_{name}")
        digits = 1 if name.startswith("perplexity") else 3
        table.add_row(name, number(before, digits), number(result.metrics[of].get(name), digits), number(paired))
    if experts := result.metrics[of].get("experts_per_token"):
        table.add_row("experts_per_token", "", number(experts), "")
    table.add_section()
    known = " (computed)" if of in result.computed else ""
    for kind, after in result.memory[of].items():
        before = result.memory["base"][kind]
        unit = "" if "parameters" in kind else "B"
        change = f"{after / before - 1:+.1%}" if before else ""
        table.add_row(kind.replace("_", " ") + known, size(before) + unit, size(after) + unit, change)
    return table


def _sizes(recipe: Recipe, result: Outcome) -> Table:
    """What the zeros of a weight mask could save, were there a loader for it."""
    assert result.made.pruned is not None
    sizes = Store(recipe.runtime.store).manifest(result.made.pruned)["facts"]["sizes"]
    table = Table(
        title=f"weights zeroed inside experts: {recipe.mask.pattern}",
        caption="Zeros save nothing in dense storage, which is what was written and what loads. The other sizes are\n"
        "computed or measured; no current loader reads a sparse Mixture-of-Experts model.",
    )
    for column in ("stored as", "how known", "size", "of dense"):
        table.add_column(column, justify="right" if column in ("size", "of dense") else "left")
    forms = {
        "dense_bytes": ("dense", "on disk; loads"),
        "n_of_m_bytes": (recipe.mask.pattern, "computed"),
        "bitmask_bytes": ("bitmask", "computed"),
        "zstd_bytes": ("zstd", "measured, of the files"),
    }
    for name, (form, how) in forms.items():
        if name in sizes:
            table.add_row(form, how, f"{size(sizes[name])}B", f"{sizes[name] / sizes['dense_bytes']:.1%}")
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
    checkpoint = _checkpoint(recipe, result)
    lines = ["no checkpoint was written: run it with --set evaluate.virtual=false to have one"]
    if checkpoint is not None:
        lines = [f"pruned checkpoint: {os.path.relpath(checkpoint)}"]
    if versioning.changed(Path.cwd()):
        lines.append(
            "data.dvc has changed: DVC now holds this run's corpora and masks. To keep this version: "
            "git add data.dvc && git commit -m 'corpora and masks of a pruning run'"
        )
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{recipe.runtime.store.absolute()}/mlflow.db"
    lines.append(f"look further: moeprune runs list   or   mlflow ui --backend-store-uri {uri}")
    return lines


def _checkpoint(recipe: Recipe, result: Outcome) -> Path | None:
    final = result.made.final
    return (recipe.runtime.store / final.path).absolute() if final else None


def as_json(recipe: Recipe, result: Outcome) -> dict[str, Any]:
    """The one JSON object of `run --json`."""
    checkpoint = _checkpoint(recipe, result)
    return {
        "run_id": result.run_id,
        "status": "done",
        "error": None,
        "stages": stages(result.records),
        "metrics": result.metrics,
        "checkpoint": str(checkpoint) if checkpoint else None,
    }


def stages(records: list[Record]) -> dict[str, Any]:
    """The stages of a run by their words: a hit if all their artifacts were."""
    found: dict[str, Any] = {}
    for record in records:
        entry = found.setdefault(record.step.stage, {"cache": "hit", "seconds": 0.0, "artifacts": []})
        entry["cache"] = "miss" if "miss" in (entry["cache"], record.cache) else "hit"
        entry["seconds"] = round(entry["seconds"] + record.seconds, 3)
        entry["artifacts"].append(_artifact(record))
    return found


def _artifact(record: Record) -> dict[str, str]:
    return {"key": record.artifact.key, "path": record.artifact.path, "cache": record.cache, "of": record.step.of}


def plan(result: "Plan") -> None:
    """What would run and why."""
    table = Table(title="plan")
    for column in ("stage", "would", "why", "key"):
        table.add_column(column, overflow="fold")
    for stage in result.stages:
        table.add_row(stage.step.title, stage.state, stage.why, (stage.step.key or "")[:12])
    console.print(table)
    if all(stage.state == "hit" for stage in result.stages):
        console.print("all of it is in the store: nothing would be done again")
        return
    if result.fetched:
        console.print(f"{size(result.fetched)}B would be fetched from the Hub")
    if result.disk is None or result.memory is None:
        console.print("disk and memory can be told when the model has been downloaded")
    else:
        console.print(
            f"at most {size(result.disk)}B would be written to the store; the weights take "
            f"{size(result.memory)}B of memory as stored, twice that in float32 if they are bfloat16"
        )
        if result.copied is not None:
            console.print(
                f"a virtual mask holds a copy of the experts it keeps beside them: {size(result.copied)}B more"
            )
        if result.training is not None:
            console.print(f"distilling takes at most {size(result.training)}B for both models, gradients and moments")


def runs(found: list[Recorded]) -> None:
    """Runs, with the mean over corpora and tasks of what pruning changed, and sweeps, with how many were done."""
    table = Table(title="runs", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("run", "when", "mask", "method"):
        table.add_column(column, no_wrap=True)
    table.add_column("name", overflow="fold")
    for column in ("Δ ln ppl", "Δ acc"):
        table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    for run in found:
        if run.tags.get("role") == "sweep":
            done = f"{run.metrics['done']:.0f} of " if "done" in run.metrics else ""
            state = "" if run.status == "FINISHED" else run.status
            named = f"sweep, {done}{run.tags['recipes']} recipes"
            table.add_row(run.id[:8], f"{run.start:%m-%d %H:%M}", "", named, run.name, state, "")
            continue
        budget = next(
            (
                f"{key} {value}"
                for key in BUDGETS
                if (value := run.params.get(f"mask.{key}", "None")) not in ("None", "null")
            ),
            "",
        )
        table.add_row(
            run.id[:8],
            f"{run.start:%m-%d %H:%M}",
            budget,
            run.tags.get("method", ""),
            f"{run.name} (kept)" if KEPT in run.tags else run.name,
            # A run that did not finish has its status where its result would be.
            _mean_of(run, r"delta/log_perplexity/(?!.*_stderr$).*") if run.status == "FINISHED" else run.status,
            _mean_of(run, r"delta/.*/acc"),
        )
    console.print(table)
    if any(run.tags.get("role") == "sweep" for run in found):
        console.print("the runs of a sweep: moeprune runs list SWEEP", style="dim")


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
        half = half_width(metric["stderr"], metric["n"])
        ends = "" if half is None else f"{metric['value'] - half:+.4f} to {metric['value'] + half:+.4f}"
        table.add_row(name, number(metric, 4), ends)
    console.print(table)
    for key, (first, second) in found.params.items():
        console.print(f"{key}: {first} -> {second}", highlight=False)
    console.print(f"masks: {found.mask}", highlight=False)


def criteria(entries: list[Entry]) -> None:
    """Criteria and selection rules, in a terminal's width."""
    for kind, title in (("criterion", "score.criterion"), ("selection", "mask.selection")):
        table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("word", no_wrap=True)
        for column in ("needs", "what it is", "good for"):
            table.add_column(column, overflow="fold")
        for entry in entries:
            if entry.kind == kind:
                table.add_row(entry.word, entry.needs, entry.paper, entry.good_for)
        console.print(table)
    console.print("formulas and options: docs/criteria.md, or `python -m moeprune.catalogue`")


def suites() -> None:
    """The named suites with their tasks and headline metrics, and whether their local data are here."""
    table = Table(title="suites: words for evaluate.tasks", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("word", no_wrap=True)
    for column in ("tasks and what is averaged", "local data", "runs code"):
        table.add_column(column, overflow="fold")
    for word, names in SUITES.items():
        tasks = [TASKS[name] for name in names]
        twins = all(task.splits for task in tasks)
        table.add_row(
            word,
            ", ".join(f"{name} ({task.metric})" for name, task in zip(names, tasks, strict=True)),
            ("here" if present(location()) else "moeprune suites --fetch") if twins else "none",
            "yes" if any(task.runs_code for task in tasks) else "",
        )
    console.print(table)
    absent = [title for title, word in SIXTEEN.items() if word is None]
    console.print(f"of the papers' sixteen lm-eval cannot run {' and '.join(absent)}; more in docs/suites.md")
