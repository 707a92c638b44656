"""The report of an audit: one HTML page with what was found in words, plots and tables."""

from collections.abc import Sequence

from flows.audit.consequence import Consequence
from flows.audit.damage import damage, side_by_side
from flows.audit.experts import claims_table, edge_table
from flows.audit.findings import Findings, Row, inverted
from flows.audit.words import BRACKET, LEGEND, in_words
from flows.pages import (
    Column,
    HeatMap,
    Interval,
    Intervals,
    Line,
    LinePlot,
    Matrix,
    Page,
    Paragraph,
    Part,
    Section,
    Table,
)
from flows.pages.table import Cell
from flows.sweep.grid import percent
from moeprune.auditing import MEASURES

AGREEMENT, SHORT = "agreement above chance", "agreement"
"""What axes are called, and bars of colours, which have little room."""
RANGE = (-0.1, 1.05)
"""Of axes: agreements are rarely much below chance."""


def page_of(findings: Findings, consequences: Sequence[Consequence], name: str) -> Page:
    """The page of an audit of this name."""
    data = ", ".join(f"{corpus} ({one['tokens']:,} tokens in {one['chunks']} chunks)" for corpus, one in
                     findings.content["data"].items())  # fmt: skip
    params = findings.content["params"]
    again = _again(findings)
    sections = [
        Section("How to read this page", [Paragraph(LEGEND), Paragraph(BRACKET)]),
        Section("How sure masks are", [_overall(findings), *_by_layer(findings)]),
        Section("Which experts are sure to stay", [*_maps(findings), edge_table(findings, name)]),
        Section("How many tokens suffice", _curves(findings)),
        *([Section("Between corpora", _corpora(findings))] if len(findings.corpora) > 1 else []),
        *([Section("Other seeds and sequence lengths", again)] if again else []),
        Section("Between criteria", _criteria(findings)),
        Section("Effect on perplexity and accuracy", [
            *([side_by_side(consequences)] if len(consequences) > 1 else []),
            *(part for one in consequences for part in damage(one, name)),
        ]),
    ]  # fmt: skip
    combined = f", combined by {params['combine']}" if len(findings.corpora) > 1 else ""
    note = (
        f"Made by `moeprune audit` from {data}{combined}, with {params['resamples']:,} bootstrap resamples of chunks."
    )
    return Page(f"Audit: {name}", in_words(findings, consequences), [one for one in sections if one.parts], note)


def _overall(findings: Findings) -> Part:
    """The bracket of every criterion and ratio, for each scope."""
    values = [
        Interval(f"{row['criterion']}, {percent(row['ratio'])} removed", row["scope"], middle, *ends)
        for row in findings.rows("masks", fixed=False)
        for ends in [sorted((row["halves"], row["index"]))]
        for middle in [sum(ends) / 2]
    ]
    fixed = f" {', '.join(findings.fixed)} read no data: their masks never change." if findings.fixed else ""
    inverse = [
        f"{row['criterion']} at {percent(row['ratio'])}, {row['scope']}"
        for row in findings.rows("masks", fixed=False)
        if inverted(row)
    ]
    if inverse:
        fixed += f" Inverted, halves agreeing more than resamples, so that it encloses nothing: {'; '.join(inverse)}."
    return Intervals(
        "Agreement of masks from other text of the same kind",
        values,
        findings.scopes,
        AGREEMENT,
        note=f"Bars are brackets, from halves of the data to resamples of it; the mark is their middle.{fixed}",
    )


def _by_layer(findings: Findings) -> list[Part]:
    return [
        LinePlot(
            f"Layer by layer: {criterion}, {findings.whole}",
            [
                Line(f"{percent(ratio)} removed", findings.layers, [sum(pair) / 2 for pair in ends],
                     [min(pair) for pair in ends], [max(pair) for pair in ends])
                for ratio in findings.ratios
                for where in [f"masks/{findings.whole}/{criterion}/{ratio}"]
                for ends in [list(zip(findings.values(f"{where}/halves"), findings.values(f"{where}/index"),
                                      strict=True))]
            ],
            "layer",
            AGREEMENT,
            y_range=RANGE,
            half=True,
        )
        for criterion in findings.criteria
    ]  # fmt: skip


def _maps(findings: Findings) -> list[Part]:
    return [
        HeatMap(
            f"Kept by {criterion} at {percent(ratio)} removed",
            findings.layers,
            findings.values(f"masks/{findings.whole}/{criterion}/{ratio}/probability"),
            "share of resamples",
            half=True,
        )
        for criterion in findings.criteria
        for ratio in findings.ratios
    ]


def _curves(findings: Findings) -> list[Part]:
    """Agreement against tokens: by criterion for all the data, and by corpus for the first criterion."""
    target = findings.content["params"]["stability"]
    parts: list[Part] = []
    for ratio in findings.ratios:
        pairs = [(criterion, findings.whole, criterion) for criterion in findings.criteria]
        for kind, title in (("disjoint", "Texts that share nothing"), ("full", "A part against all the data")):
            parts.append(_curve(findings, f"{title}: {percent(ratio)} removed", pairs, ratio, kind, target))
    if len(findings.corpora) > 1:
        criterion = findings.criteria[0]
        for ratio in findings.ratios:
            pairs = [(corpus, corpus, criterion) for corpus in findings.corpora]
            title = f"Each corpus alone: {criterion}, {percent(ratio)} removed"
            parts.append(_curve(findings, title, pairs, ratio, "disjoint", target))
    return [*parts, _points(findings)]


def _points(findings: Findings) -> Part:
    """The learning curves of all the data in numbers, by every measure."""
    kinds = {"disjoint": "another part", "full": "all the data"}
    rows: list[list[Cell]] = [
        [row["criterion"], percent(row["ratio"]), kinds[row["kind"]], round(tokens), *values]
        for row in findings.rows("curves", scope=findings.whole)
        for tokens, *values in zip(row["tokens"], *(row[measure] for measure in MEASURES), strict=True)
    ]
    columns = [
        Column("criterion"), Column("removed"), Column("compared with"), Column("tokens", ",d"),
        Column("agreement above chance", ".2f"), Column("Jaccard", ".2f"), Column("Kendall tau", ".2f"),
        Column("rank-biased overlap", ".2f"),
    ]  # fmt: skip
    note = (
        "A part of the data of so many tokens, compared with another that shares nothing with it, or with all the "
        "data. Jaccard: of the sets of removed experts. Kendall tau: of the scores. Rank-biased overlap: of the orders "
        "of removal, which weighs the first to go most. Means over layers and random orders of the chunks."
    )
    return Table("Learning curves in numbers", columns, rows, "curves.csv", note)


def _curve(
    findings: Findings, title: str, pairs: Sequence[tuple[str, str, str]], ratio: float, kind: str, target: float
) -> Part:
    lines = []
    for name, scope, criterion in pairs:
        where = f"masks/{scope}/{criterion}/{ratio}/{kind}"
        agreed = findings.arrays[f"{where}.corrected"]
        mean, spread = agreed.mean(0), agreed.std(0)
        x = findings.values(f"{where}.tokens")
        lines.append(Line(name, x, mean.tolist(), (mean - spread).tolist(), (mean + spread).clamp_max(1).tolist()))
    notes = {
        "disjoint": "Two parts of that size without a common chunk: what other text would give. Ends at half the data.",
        "full": "A part of that size against the mask of all the data, which holds it: too good towards the right end.",
    }
    level = [(target, f"asked for: {target:g}")]
    note = f"{notes[kind]} Bands: standard deviation over random orders of the chunks."
    return LinePlot(title, lines, "calibration tokens", AGREEMENT, True, RANGE, level, note, half=True)


def _corpora(findings: Findings) -> list[Part]:
    names = findings.corpora
    rows: list[list[Cell]] = []
    for row in findings.rows("corpora"):
        low, high = findings.within(row["criterion"], row["ratio"])
        rows.append([
            row["criterion"], percent(row["ratio"]), row["corrected"], low, high, row["overlap"], row["spearman"],
            *(row["claimed"][name] for name in names),
            *(findings.row("left_out", criterion=row["criterion"], ratio=row["ratio"], corpus=name)["changed"]
              for name in names),
        ])  # fmt: skip
    columns = [
        Column("criterion"), Column("removed"), Column("agreement above chance", ".2f"),
        Column("same corpus, halves", ".2f"), Column("same corpus, resamples", ".2f"),
        Column("removed by both", ".0%"), Column("rank correlation", ".2f"),
        *(Column(f"kept by {name} only") for name in names),
        *(Column(f"changed without {name}", ".1%") for name in names),
    ]  # fmt: skip
    note = (
        "Means over every two corpora and layers. Agreement: of their masks; same corpus: the bracket of masks from "
        "other text of one corpus, which is what differences between corpora must be held against. Removed by both: "
        "share of the removed experts, not corrected for chance. Rank correlation: Spearman's, of the scores. Kept "
        "only: experts that the mask of this corpus keeps and no other's. Changed without: share of the experts kept "
        "by all corpora that change if this one is left out."
    )
    table = Table("Masks of single corpora", columns, rows, "corpora.csv", note)
    titles = [f"{row['criterion']} at {percent(row['ratio'])} removed" for row in findings.rows("corpora")]
    scores = findings.rows("corpora", ratio=findings.ratios[0])  # scores do not depend on the ratio
    return [
        table,
        claims_table(findings),
        *_matrices(findings.rows("corpora"), titles),
        *_matrices(scores, [f"Rank correlation of scores: {row['criterion']}" for row in scores], "spearman"),
    ]


def _matrices(rows: Sequence[Row], titles: Sequence[str], measure: str = "corrected") -> list[Part]:
    """A matrix of agreement, or correlation, for each row, all with the same colours."""
    unit = {"corrected": SHORT, "spearman": "Spearman"}[measure]
    matrices = [row[f"{measure}_matrix"] for row in rows]
    low = min((value for matrix in matrices for line in matrix for value in line if value is not None), default=0.0)
    parts: list[Part] = []
    for row, title in zip(rows, titles, strict=True):
        names = list(map(str, row["names"]))
        parts.append(Matrix(title, names, names, row[f"{measure}_matrix"], unit, min(low, 0.0), half=True))
    return parts


def _again(findings: Findings) -> list[Part]:
    """What other seeds and sequence lengths give, beside the bracket that the audit gave beforehand."""
    parts: list[Part] = []
    for kind, what in (("seeds", "seed"), ("sequence_lengths", "sequence length")):
        rows: list[list[Cell]] = []
        for row in findings.rows(kind):
            own = findings.row("masks", **{key: row[key] for key in ("scope", "criterion", "ratio")})
            rows.append([
                row["scope"], row["criterion"], percent(row["ratio"]),
                findings.in_common(row["scope"]) if kind == "seeds" else 1.0, row["corrected"], own["halves"],
                own["index"],
                row["overlap"], row["spearman"],
            ])  # fmt: skip
        if rows:
            values = ", ".join(map(str, findings.rows(kind)[0]["names"]))
            columns = [
                Column("corpora"), Column("criterion"), Column("removed"), Column("text in common", ".0%"),
                Column("agreement above chance", ".2f"), Column("bracket, halves", ".2f"),
                Column("bracket, resamples", ".2f"), Column("removed by both", ".0%"),
                Column("rank correlation", ".2f"),
            ]  # fmt: skip
            note = (
                "Means over every two observations and over layers, beside the bracket from the first of them, which "
                "is of texts that have nothing in common."
            )
            parts.append(Table(f"Observed with {what} {values}", columns, rows, f"{kind}.csv", note))
    return parts


def _criteria(findings: Findings) -> list[Part]:
    rows = findings.rows("criteria", scope=findings.whole)
    return _matrices(rows, [f"{percent(row['ratio'])} removed, {row['scope']}" for row in rows])
