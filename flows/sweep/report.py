"""The report of a sweep: one HTML file with what was found, in words, plots and a sortable table."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

from flows.outcome import Sweep
from flows.pages import Column, Interval, Intervals, Page, Paragraph, Pareto, Part, Point, Section, Table
from flows.sweep.findings import Measure, Method, cell, draws_of, measures_of, methods_of
from flows.sweep.rows import Row, rows_of
from flows.sweep.words import in_words, removed

MB = 1e6
ROWS = 40
"""Methods in one plot: more would not be readable on a page."""
SHORT = {"log perplexity": "ln ppl", "accuracy": "acc"}
SEVERAL = 4
"""Tasks that have plots of their own; of more, the mean alone is drawn."""


def write_report(result: Sweep, path: Path, command: str) -> None:
    """Write a sweep's report, making its folder, if anything was measured.

    `command` is how the sweep was run, for the reader.
    """
    if page := report_of(result, command):
        page.write(path)


def report_of(result: Sweep, command: str) -> Page | None:
    """The page of a sweep; None if nothing was measured."""
    rows = rows_of(result)
    return page_of(rows, result.name, command, len(result.failed)) if rows else None


def page_of(rows: Sequence[Row], name: str, command: str, failed: int = 0) -> Page:
    """The page of a sweep's rows: what each unpruned model has come to."""
    missing = [f"{failed} of the sweep's recipes failed and are missing here."] if failed else []
    words: list[str] = []
    sections: list[Section] = []
    for base in dict.fromkeys(sorted(row.base for row in rows)):
        own = [row for row in rows if row.base == base]
        perplexity, accuracy = measures_of(own)
        measures = [*perplexity, *accuracy]
        methods = methods_of(own, measures[0] if measures else None)
        drawn = perplexity + (accuracy if len(accuracy) <= SEVERAL + 1 else accuracy[:1])
        against = [_pareto(methods, kind[0], own[0].dense) for kind in (perplexity, accuracy) if kind]
        of = f": {base}" if base else ""
        if measures:
            words.append(in_words(methods, perplexity, accuracy))
            sections += [
                Section(f"Damage against memory{of}", against),
                Section(
                    f"Differences from the unpruned model{of}", [_how_to_read(methods), *_intervals(methods, drawn)]
                ),
            ]
        file = f"{name}-{base}".replace("/", "-") if base else name
        sections.append(Section(f"Every method{of}", [_table(methods, measures, file)]))
    summary = "\n".join([*missing, *filter(None, words)]) or "Neither perplexity nor accuracy was measured."
    return Page(f"Sweep: {name}", summary, sections, f"Made by `{command}`.")


def _pareto(methods: list[Method], measure: Measure, base: int) -> Pareto:
    points = [
        Point(method.name, removed(method.budget), _weights(method), found.value, found.low, found.high)
        for method in methods
        if (found := method.estimate(measure))
    ]
    dense = " Zeros inside experts save nothing of it." if any("weights" in method.budget for method in methods) else ""
    return Pareto(
        _title(measure),
        [*points, Point("unpruned model", "unpruned", base / MB, 0.0)],
        "weights in memory (MB)",
        f"Δ {measure.title} ({measure.unit})",
        measure.sign > 0,
        "Bars: 95% intervals of the paired difference from the unpruned model; of several seeds, from the lowest end "
        "to the highest. The front is of the values alone: a point whose bar reaches it may belong to it. Memory is "
        "that of the weights in the data type evaluated, known exactly; of models of equal memory the best is drawn "
        "there, the others to the right of it."
        f"{dense}",
    )


def _how_to_read(methods: list[Method]) -> Paragraph:
    text = (
        "Differences are paired: the same documents and questions, before and after. Bars are 95% intervals, each for "
        "itself: of many, about one in twenty misses the true value. They hold the error of the evaluation, not that "
        "of the calibration: other text may keep other experts. Two methods whose intervals overlap may differ all the "
        "same: `moeprune runs compare` compares their models pair by pair."
    )
    if any(method.random for method in methods):
        text += (
            " A band is the range of the random draws of a budget: what lies in it cannot be told from chance. Of a "
            "method with several seeds every seed is drawn."
        )
    return Paragraph(text)


def _intervals(methods: list[Method], measures: Iterable[Measure]) -> list[Part]:
    """One plot a measure, methods in the same order in each, random draws last."""
    names = list(dict.fromkeys(method.name for method in sorted(methods, key=lambda method: method.random)))
    pages = [names[start : start + ROWS] for start in range(0, len(names), ROWS)]
    groups = [removed(budget) for budget in dict.fromkeys(method.budget for method in methods)]
    parts: list[Part] = []
    for measure in measures:
        draws = {method.budget: draws_of(methods, method, measure) for method in methods}
        bands = [(removed(budget), min(found), max(found)) for budget, found in draws.items() if len(found) > 1]
        for number, page in enumerate(pages):
            values = [
                Interval(name, removed(method.budget), found.value, found.low, found.high)
                for name in page
                for method in methods
                if method.name == name
                for found in method.each(measure)
            ]
            more = f" ({number + 1} of {len(pages)})" if len(pages) > 1 else ""
            unit = f"Δ {measure.title} ({measure.unit})"
            parts.append(Intervals(_title(measure) + more, values, groups, unit, bands, half=True))
    return parts


def _title(measure: Measure) -> str:
    return f"{measure.title[0].upper()}{measure.title[1:]}: {'more' if measure.sign > 0 else 'less'} is better"


def _table(methods: list[Method], measures: list[Measure], name: str) -> Table:
    single = [measure for measure in measures if len(measure.names) == 1]
    columns = [
        Column("removed"),
        Column("method"),
        *(Column(f"Δ {SHORT[measure.what]} {measure.of}", "+.3f") for measure in single),
        Column("weights (MB)", ",.1f"),
        Column("peak (MB)", ",.1f"),
        Column("seconds", ".1f"),
    ]
    rows = [
        [
            method.budget,
            method.title,
            *(cell(methods, method, measure) for measure in single),
            _weights(method),
            _peak(method),
            mean(row.seconds for row in method.rows),
        ]
        for method in methods
    ]
    note = (
        "ln ppl: log perplexity in nats per token; acc: accuracy as a fraction; ±: 95% interval, or the standard "
        "deviation (s.d.) over seeds. ▼ below, ▲ above every random draw of the budget, with the whole interval. "
        "Weights: in memory, computed. Peak: anonymous memory of a forward pass, measured; empty where nothing was "
        "written that could be loaded. Seconds: scoring, masking and pruning (and distilling), without observing, "
        "which is shared."
    )
    return Table("Every method, the best first", columns, rows, f"{name}.csv", note)


def _weights(method: Method) -> float:
    return mean(row.weights for row in method.rows) / MB


def _peak(method: Method) -> float | None:
    peaks = [row.memory for row in method.rows if row.memory is not None]
    return mean(peaks) / MB if peaks else None
