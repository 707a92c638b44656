"""What `moeprune inspect` prints: a model, what pruning would leave of it, and the methods it allows."""

from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from flows.show import console, size
from moeprune.checkpoint import DTYPES
from moeprune.inspection import Inspection, Pruned, Size


def model(source: str, found: Inspection) -> None:
    """The model, what 25, 50 and 75% of its experts removed would leave, and the possible methods."""
    facts = Table(title=source, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(found).items():
        facts.add_row(name, value)
    console.print(facts, highlight=False)
    if _unprunable(found):
        return
    console.print()
    console.print(_pruned(found), highlight=False)
    for refusal, ratios in _refusals(found).items():
        console.print(f"{', '.join(ratios)} not possible: {refusal}", highlight=False)
    console.print()
    console.print(_methods(found), highlight=False)
    for refusal, words in _refused_methods(found).items():
        console.print(f"{', '.join(words)} not possible: {refusal}", highlight=False)


def _facts(found: Inspection) -> dict[str, str]:
    routing = found.routing
    layers = f"{found.layers}, all with experts"
    if dense := found.layers - len(found.expert_layers):
        layers = f"{found.layers}: {len(found.expert_layers)} with experts, {dense} without"
    groups = "none"
    if routing.groups > 1:
        groups = f"{routing.groups} of {routing.experts // routing.groups} experts, {routing.top_groups} chosen"
    facts = {
        "family": f"{found.model_type} ({found.architecture})",
        "layers": layers,
        "experts": f"{_experts(found)} a layer, {routing.top_k} chosen for a token",
        "groups": groups,
        "shared experts": str(found.shared_experts or "none"),
        "parameters": f"{_count(found.size.parameters)}, {_count(found.size.active)} active for a token, "
        f"{_count(found.in_experts)} ({found.in_experts / found.size.parameters:.1%}) in routed experts",
        "size": _bytes(found),
        "quantised": _quantised(found),
        "observable": "yes" if not found.unobservable else f"no: {_reason(found.unobservable)}",
    }
    if refusal := _unprunable(found):
        facts["prunable"] = f"no: {refusal}"
    if found.heads:
        facts["prediction heads"] = f"{size(found.heads)}B with experts of their own: pruning leaves them out"
    return facts


def _unprunable(found: Inspection) -> str:
    """Why no number of experts can be removed, or ""."""
    if any(pruned.size for pruned in found.pruned):
        return ""
    return next(iter(_refusals(found)), "")


def _experts(found: Inspection) -> str:
    counts = found.counts.values()
    return f"{min(counts)} to {max(counts)}" if counts else str(found.routing.experts)


def _count(parameters: int) -> str:
    return size(parameters).strip()


def _bytes(found: Inspection) -> str:
    whole = sum(found.dtypes.values())
    parts = [
        f"{_dtype(name)}{f' {part / whole:.1%}' if part < 0.9995 * whole else ''}"
        for name, part in found.dtypes.items()
        if part >= 0.0005 * whole
    ]
    how = "computed from the config" if found.computed else "in the files"
    if found.computed and found.quantised:
        how += " as if it were not quantised"
    if found.computed and found.dtype is None:
        how += ", which names no dtype"
    return f"{size(found.size.bytes)}B {how}: {', '.join(parts)}"


def _dtype(name: str) -> str:
    """A safetensors dtype as PyTorch calls it; one that PyTorch does not have in lower case."""
    return str(DTYPES.get(name, name.lower())).removeprefix("torch.")


def _quantised(found: Inspection) -> str:
    if found.quantised is None:
        return "no"
    details = {
        name.replace("_", " "): value
        for name, value in found.quantised.items()
        if isinstance(value, str | int) or (isinstance(value, list) and all(isinstance(one, int) for one in value))
    }
    method = details.pop("quant method", "yes")
    return ", ".join([str(method), *(f"{name} {value}" for name, value in details.items())])


def _pruned(found: Inspection) -> Table:
    table = Table(
        title="what pruning would leave" + (" (sizes computed from the config)" if found.computed else ""),
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        title_justify="left",
    )
    for column in ("removed", "experts", "parameters", "active", "size", "of the whole"):
        table.add_column(column, justify="right", overflow="fold")
    table.columns[0].justify = "left"
    table.add_row("none", _experts(found), *_sizes(found.size, found.size))
    for pruned in found.pruned:
        table.add_row(_removed(pruned), str(pruned.keep or ""), *_sizes(pruned.size, found.size))
    return table


def _removed(pruned: Pruned) -> str:
    """The ratio; where it is not possible but another is, that the row is the nearest that is."""
    if not pruned.refusal:
        return f"{pruned.ratio:.0%}"
    return f"{pruned.ratio:.0%}: no, nearest" if pruned.size else f"{pruned.ratio:.0%}: no"


def _refusals(found: Inspection) -> dict[str, list[str]]:
    """The ratios that are refused, by the reason."""
    refusals: dict[str, list[str]] = {}
    for pruned in found.pruned:
        if pruned.refusal:
            refusals.setdefault(_reason(pruned.refusal), []).append(f"{pruned.ratio:.0%}")
    return refusals


def _sizes(left: Size | None, whole: Size) -> list[str]:
    if left is None:
        return [""] * 4
    share = f"{left.bytes / whole.bytes:.1%}"
    return [_count(left.parameters), _count(left.active), f"{size(left.bytes)}B", share]


def _methods(found: Inspection) -> Table:
    """Words of possible methods, by what they need."""
    table = Table(title="methods", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
    table.add_column("key", no_wrap=True)
    for column in ("needs", "words"):
        table.add_column(column, overflow="fold")
    for kind, key in (("criterion", "score.criterion"), ("selection", "mask.selection")):
        groups: dict[str, list[str]] = {}
        for method in found.methods:
            if method.kind == kind and not method.refusal:
                groups.setdefault(method.needs, []).append(method.word)
        for needs, words in sorted(groups.items()):
            table.add_row(key, needs, " ".join(words))
            key = ""
    return table


def _refused_methods(found: Inspection) -> dict[str, list[str]]:
    refusals: dict[str, list[str]] = {}
    for method in found.methods:
        if method.refusal:
            refusals.setdefault(_reason(method.refusal), []).append(method.word)
    return refusals


def _reason(refusal: str) -> str:
    """A refusal without the key of a recipe at its start: there is no recipe here."""
    for key in ("download.source: ", "mask: "):
        refusal = refusal.removeprefix(key)
    return refusal


def as_json(source: str, found: Inspection) -> dict[str, Any]:
    """The one JSON object of `inspect --json`."""
    return {"status": "done", "error": None, "source": source, **asdict(found)}
