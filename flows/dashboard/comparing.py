"""Runs beside one another: what they measured, what that costs in memory, and how their recipes and masks differ."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.dashboard.index import Entry
from flows.pages import (
    Column,
    Interval,
    Intervals,
    Line,
    LinePlot,
    Measured,
    Paragraph,
    Pareto,
    Part,
    Point,
    Section,
    Table,
)
from flows.pages.table import Cell
from flows.runs import compare_records
from moeprune.errors import BadInput
from moeprune.masks import Mask
from moeprune.quantiles import half_width
from tasks.artifacts import Store
from tasks.tracking import Tracker

MB = 1e6
ERROR, COUNT, MEMORY = "_stderr", "_n", "memory"
NOT_MEASURED = ("generations", "allow_code_execution", "format")
"""What identifies an evaluation but decides none of its measures."""
MANY = 12
"""Runs whose differences can be told apart in one plot."""
POINTS = 300
"""Runs drawn in one plot against memory."""
PERPLEXITY = ("perplexity", "log_perplexity", "bits_per_byte")
"""Beginnings of names of measures of which less is better."""
DOMAINS = {"log perplexity (nats per token)": "log_perplexity/", "accuracy": "/acc"}
"""Differences by corpus and by task: the unit, and how their names begin or end."""


def named(entries: Sequence[Entry]) -> dict[str, str]:
    """What runs are called beside one another, by their ids."""
    return {one.id: f"{one.method or one.lineage.run.name} {one.budget} ({one.id[:8]})" for one in entries}


def delta(entry: Entry) -> str:
    """How the metrics of the difference between a run's model and the base begin."""
    return "delta_distilled/" if entry.final == "distilled" else "delta/"


def measured(entry: Entry, name: str) -> Measured | None:
    """A metric of a run with the half of its 95% interval, or None."""
    metrics = entry.lineage.run.metrics
    if name not in metrics:
        return None
    error = metrics.get(name + ERROR)
    return Measured(metrics[name], half_width(error, _pairs(entry, name)))


def _pairs(entry: Entry, name: str) -> int:
    """How many documents or questions a metric rests on: the stage that evaluated the model has it on record."""
    of, _, measure = name.partition("/")
    stage = entry.lineage.find("evaluate", entry.final if f"{of}/" == delta(entry) else of)
    known = stage.metrics if stage else {}
    return int(known.get(measure + COUNT, known.get(measure.removeprefix("log_") + COUNT, 0)))


def weights(entry: Entry, of: str) -> float | None:
    """MB of a model's weights in memory, or on disk where only that was measured; None if neither was."""
    metrics = entry.lineage.run.metrics
    names = (f"{of}/{kind}/{what}" for what in ("weights", "disk") for kind in (MEMORY, f"{MEMORY}_computed"))
    return next((metrics[name] / MB for name in names if name in metrics), None)


def measures(entries: Iterable[Entry], prefix: str = "") -> list[str]:
    """Names of what was measured of runs' models, accuracies first; with a prefix, of what begins like that."""
    found: set[str] = set()
    for entry in entries:
        begin = prefix or f"{entry.final}/"
        found.update(name.removeprefix(begin) for name in entry.lineage.run.metrics if name.startswith(begin))
    kept = {name for name in found if not name.endswith(ERROR) and not name.startswith(MEMORY)}
    return sorted(kept, key=lambda name: (name.startswith(PERPLEXITY), name))


def overview(entries: Sequence[Entry], measure: str) -> list[Section]:
    """Many runs at once: the newest of them in one plot."""
    parts = pareto(entries[:POINTS], measure)
    return [Section(f"{measure} against memory", parts)] if parts else []


def beside(entries: Sequence[Entry], tracker: Tracker) -> list[Section]:
    """A few runs beside one another; differences of masks are from the first of them."""
    some = entries[:MANY]
    sections = [
        Section("Measured", _measured([one for one in entries if measures([one])][:MANY], entries)),
        Section("Change by domain", _domains(some)),
        Section("Pair by pair", _paired(some, tracker.store)),
        Section("Recipes", [_params(some)] if len(some) > 1 else []),
        Section("Masks", _masks(some, tracker)),
    ]
    return [section for section in sections if section.parts]


def pareto(entries: Sequence[Entry], measure: str) -> list[Part]:
    """A measure of models against their memory, the base models beside them."""
    points: list[Point] = []
    shown: list[Entry] = []
    calls = named(entries)
    for entry in entries:
        for of, name, group in ((entry.final, calls[entry.id], entry.budget), ("base", entry.model, "unpruned")):
            value, size = measured(entry, f"{of}/{measure}"), weights(entry, of)
            if value is not None and size is not None:
                points.append(Point(name, group, size, value.value, *_ends(value)))
                shown.append(entry)
    bars = "Bars: 95% intervals of the evaluation. Memory is that of the weights, or of the files on disk."
    note = f"{unlike(shown)} {bars}".lstrip()
    higher = not measure.startswith(PERPLEXITY)
    drawn = list(dict.fromkeys(points))
    return [Pareto("Models and their front", drawn, "memory (MB)", measure, higher, note)] if drawn else []


def unlike(entries: Iterable[Entry]) -> str:
    """The sentence that runs were not measured on the same text and questions in the same way; empty if they were."""
    values: dict[str, set[str]] = {}
    for entry in entries:
        stage = entry.lineage.find("evaluate", entry.final)
        for name, value in _asked(stage.params if stage else {}):
            values.setdefault(name, set()).add(value)
    keys = sorted({f"evaluate.{name.partition('.')[0]}" for name, found in values.items() if len(found) > 1})
    return f"Not measured alike, so not to be compared: these runs differ in {', '.join(keys)}." if keys else ""


def _asked(params: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What an evaluation was of: corpora and tasks one by one, as what only one run measured sets none apart."""
    for name, value in params.items():
        if name == "corpora":
            with suppress(ValueError):  # a list too long for a param was cut
                yield from ((f"corpora.{one['name']}", json.dumps(one)) for one in json.loads(value))
        elif name not in NOT_MEASURED:
            yield name, value


def _ends(found: Measured) -> tuple[float | None, float | None]:
    return (None, None) if found.spread is None else (found.value - found.spread, found.value + found.spread)


def _measured(entries: Sequence[Entry], chosen: Sequence[Entry]) -> list[Part]:
    """The measures of runs that have any, and which of the chosen have none."""
    calls = named(chosen)
    silent = [calls[one.id] for one in chosen if not measures([one])]
    said = [Paragraph(f"Left out, as they have measured nothing: {', '.join(silent)}.")] if silent else []
    return [*([_table(entries)] if entries else []), *said]


def _table(entries: Sequence[Entry]) -> Part:
    calls = named(entries)
    rows: list[list[Cell]] = []
    for name in measures(entries):
        values = [measured(entry, f"{entry.final}/{name}") for entry in entries]
        base = next((found for entry in entries if (found := measured(entry, f"base/{name}"))), None)
        rows.append([name, base, *values])
    rows.append(["memory (MB)", weights(entries[0], "base"), *(weights(entry, entry.final) for entry in entries)])
    columns = [Column("measure"), Column("base", ".4g"), *(Column(calls[one.id], ".4g") for one in entries)]
    note = f"{unlike(entries)} ±: half of the 95% interval. The base is that of the first run that has it.".lstrip()
    return Table("Models as measured", columns, rows, "measured.csv", note)


def _domains(entries: Sequence[Entry]) -> list[Part]:
    calls = named(entries)
    parts: list[Part] = []
    for unit, kind in DOMAINS.items():
        values = []
        for entry in entries:
            names = [name for name in measures([entry], delta(entry)) if name.startswith(kind) or name.endswith(kind)]
            for name in names:
                found = measured(entry, delta(entry) + name)
                assert found is not None
                where = name.removeprefix(kind).removesuffix(kind)
                values.append(Interval(where, calls[entry.id], found.value, *_ends(found)))
        if values:
            note = "Differences from the unpruned model on the same documents or questions. Bars: 95% intervals."
            title = f"Change in {unit.split(' (')[0]}"
            parts.append(Intervals(title, values, list(calls.values()), f"Δ {unit}", note=note, half=True))
    return parts


def _paired(entries: Sequence[Entry], store: Store) -> list[Part]:
    """The second run's model minus the first's."""
    if len(entries) != 2:
        return []
    first, second = entries
    try:
        found = compare_records(first.lineage.run, second.lineage.run, store.root)
    except (BadInput, OSError) as error:  # a store that has lost files says so in other ways, too
        return [Paragraph(" ".join(str(error).split()))]
    rows: list[list[Cell]] = [
        [name, Measured(one["value"], half_width(one["stderr"], one["n"])), one["n"]]
        for name, one in found.metrics.items()
    ]
    calls = named(entries)
    note = f"{calls[second.id]} minus {calls[first.id]}, on the same text. ±: half of the 95% interval."
    columns = [Column("measure"), Column("difference", "+.4f"), Column("pairs", "d")]
    return [Table("The second run's model minus the first's", columns, rows, "paired.csv", note)]


def _params(entries: Sequence[Entry]) -> Part:
    calls = named(entries)
    every = [entry.lineage.run.params for entry in entries]
    names = sorted({name for params in every for name in params})
    rows: list[list[Cell]] = [
        [name, *(params.get(name) for params in every)]
        for name in names
        if len({params.get(name) for params in every}) > 1
    ]
    note = "Keys that do not have the same value in all of them. Empty: the recipe has no such key."
    columns = [Column("key"), *(Column(calls[one.id]) for one in entries)]
    return Table("How the recipes differ", columns, rows, "recipes.csv", note) if rows else Paragraph(
        "The recipes are the same."
    )  # fmt: skip


def _masks(entries: Sequence[Entry], tracker: Tracker) -> list[Part]:
    """Each mask beside the first: agreement by layer, and which experts only one of them keeps."""
    calls = named(entries)
    read = {entry.id: found for entry in entries if (found := read_mask(entry, tracker)) is not None}
    known = [entry for entry in entries if entry.id in read]
    if len(known) < 2:
        return []
    first = read[known[0].id]
    lines, parts = [], list[Part]()
    for entry in known[1:]:
        other = read[entry.id]
        if (other.base, other.kept.keys()) != (first.base, first.kept.keys()):
            parts.append(Paragraph(f"{calls[entry.id]} is a mask of another base model than {calls[known[0].id]}."))
            continue
        pairs = {layer: (set(first.kept[layer]), set(other.kept[layer])) for layer in first.kept}
        shares = [len(one & two) / len(one | two) for one, two in pairs.values()]
        lines.append(Line(calls[entry.id], list(pairs), shares))
        rows: list[list[Cell]] = [
            [layer, share, _numbers(one - two), _numbers(two - one)]
            for (layer, (one, two)), share in zip(pairs.items(), shares, strict=True)
        ]
        columns = [Column("layer", "d"), Column("share in common", ".3f"),
                   Column("kept by the first only"), Column("kept by the other only")]  # fmt: skip
        title = f"{calls[known[0].id]} and {calls[entry.id]}"
        parts.append(Table(title, columns, rows, f"masks-{entry.id[:8]}.csv", "Experts by their numbers."))
    note = f"Experts that both keep, of those that either keeps, beside {calls[known[0].id]}."
    drawn = [LinePlot("Masks, layer by layer", lines, "layer", "share in common", y_range=(-0.05, 1.05), note=note)]
    return [*(drawn if lines else []), *parts]


def read_mask(entry: Entry, tracker: Tracker) -> Mask | None:
    """The experts that a run kept, from the store or the tracker; None if it masks weights or has no mask."""
    stage = entry.lineage.find("mask")
    if stage is None:
        return None
    with TemporaryDirectory() as folder:
        path: Path | None = tracker.store.root / stage.path / "mask.json"
        if path is None or not path.is_file():
            path = tracker.fetch(stage.id, "mask.json", Path(folder))
        if path is None:
            return None
        try:
            return Mask.from_json(path.read_text())
        except (BadInput, KeyError, ValueError):  # of weights, not of experts
            return None


def _numbers(experts: set[int]) -> str:
    return ", ".join(map(str, sorted(experts)))
