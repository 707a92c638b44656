"""The tables of a model card: on what it was calibrated, what it cost, where every part came from."""

import re
from collections.abc import Sequence

from flows.handover.facts import Facts
from flows.show import number, size
from moeprune.masks import Mask
from tasks.lineage import Stage, upstream

PEAKS = (
    "Peaks are those of loading the model, and of one forward pass, in a process of its own, over what Python holds by "
    "itself; they differ between machines and runs. Anonymous memory is needed, mapped pages of files can be dropped."
)


def removed(mask: Mask) -> str:
    """The experts that each layer lost."""
    rows = []
    for layer in sorted(mask.kept):
        gone = mask.removed(layer)
        rows.append((str(layer), str(len(gone)), " ".join(map(str, gone))))
    return _folded("Experts removed, by the base model's numbers", _table(("layer", "removed", "numbers"), rows))


def calibration(facts: Facts) -> str:
    """The mix with its counts, and the bytes it can be held against."""
    stages = [stage for stage in facts.made.lineage.stages if stage.stage == "calibrate"]
    if not stages:
        return "None: what was removed was chosen by the weights alone."
    params = facts.recipe["calibrate"]
    sources = {corpus["name"]: corpus["source"] for corpus in params["corpora"]}
    total = sum(stage.metrics["tokens"] for stage in stages)
    rows = [
        (
            stage.of,
            code(sources[stage.of]),
            f"{stage.metrics['documents']:,.0f} of {stage.metrics['of_documents']:,.0f}",
            f"{stage.metrics['tokens']:,.0f}",
            f"{stage.metrics['tokens'] / total:.0%}",
            f"`{stage.params['source']}`",
            f"`{stage.md5}`",
        )
        for stage in stages
    ]
    text = (
        f"{total:,.0f} tokens in blocks of {params['sequence_length']}; whole documents, drawn with seed "
        f"{params['seed']}."
    )
    if len(rows) > 1 and facts.criterion:
        text += f" Corpora are combined by `{facts.recipe['score']['combine']}`."
    head = ("corpus", "source", "documents", "tokens", "share", "sha256 of the source", "md5 of the tokens (DVC)")
    return f"{text}\n\n{_table(head, rows)}"


def results(facts: Facts) -> str:
    """What it measures against the base model, with errors, and the memory of both."""
    measured, evaluate = facts.measured, facts.recipe["evaluate"]
    if measured is None:
        return "Nothing was measured."
    text = (
        "Values are given with their standard errors over documents or questions; differences are paired, this model "
        "minus its base. The difference of a perplexity is of its logarithm, in nats per token. Read in "
        f"{evaluate['dtype']}, {evaluate['num_fewshot']}-shot, in windows of {evaluate['sequence_length']} tokens."
    )
    if evaluate["corpora"]:
        held_out = ", ".join(f"{corpus['name']} ({code(corpus['source'])})" for corpus in evaluate["corpora"])
        text += f" Held-out text: {held_out}."
    if measured.limited:
        text += f" **Only the first {evaluate['limit']} of each set were read.**"
    rows = []
    for name, before in measured.base.items():
        after = measured.model.get(name)
        paired = measured.differences.get(name) or measured.differences.get(f"log_{name}")
        digits = 2 if name.startswith("perplexity") else 4
        rows.append((name, number(before, digits), number(after, digits), number(paired, 4), str(before["n"])))
    sizes = [
        (
            kind.replace("_", " "),
            _size(kind, before),
            _size(kind, after),
            f"{after / before - 1:+.1%}" if before else "",
        )
        for kind, (before, after) in measured.memory.items()
    ]
    parts = [
        text,
        _table(("metric", "base", "this model", "difference", "of"), rows),
        _table(("size", "base", "this model", "change"), sizes),
    ]
    return "\n\n".join([*parts, PEAKS] if any("peak" in kind for kind in measured.memory) else parts)


def _size(kind: str, count: float) -> str:
    return size(count) + ("" if "parameters" in kind else "B")


def lineage(facts: Facts) -> str:
    """Every result this checkpoint was made from, its hash and the code that made it, and the checkpoint's files."""
    made, manifest = facts.made, facts.manifest
    run, stages = made.lineage.run, made.lineage.by_path
    chain = [stages[path] for path in upstream(stages, made.stage.path) if path in stages]
    ordered = [stage for stage in made.lineage.stages if stage in chain]
    # Its own: results that it found were made by others.
    flow_run = f", Prefect flow run `{run.tags['flow_run']}`" if "flow_run" in run.tags else ""
    libraries = ", ".join(f"{name} {version}" for name, version in manifest["producer"]["libraries"].items())
    text = (
        f"Run `{run.id}` of {run.start:%Y-%m-%d} ({code(run.name)}){flow_run}; "
        f"{libraries}. "
        "A result's hash is the sha256 over the names and sha256 of its files, its key names what it was made of, and "
        "its commit is that of the project in which it was made."
    )
    rows = [(stage.title, f"`{stage.key[:16]}`", f"`{stage.digest}`", _commit(stage)) for stage in ordered]
    files = [(name, f"{file['bytes']:,}", f"`{file['sha256']}`") for name, file in manifest["files"].items()]
    return "\n\n".join(
        (
            text,
            _table(("result", "key", "sha256", "commit"), rows),
            _folded("Files", _table(("file", "bytes", "sha256"), files)),
        )
    )


def code(text: str) -> str:
    """Any text as Markdown's code, on one line."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{ticks}{pad}{' '.join(text.split())}{pad}{ticks}"


def _commit(stage: Stage) -> str:
    if stage.git_commit is None:
        return "not in git"
    return f"`{stage.git_commit[:12]}`" + (" with changes" if stage.git_dirty else "")


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
