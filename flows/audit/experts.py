"""The tables of single experts in an audit's report: those on the edge, and those that one corpus alone keeps."""

from flows.audit.findings import Findings
from flows.pages import Column, Table
from flows.pages.table import Cell
from flows.sweep.grid import percent

MOST = 400
"""Rows of the table: of more experts the least certain."""


def edge_table(findings: Findings, name: str) -> Table:
    """The experts that some resamples of all the data keep and others do not, the least certain first."""
    rows = edge_rows(findings)
    columns = [
        Column("criterion"), Column("removed"), Column("layer"), Column("expert"), Column("share kept", ".3f"),
        Column("kept"), Column("score", ".4g"), Column("score from", ".4g"), Column("score to", ".4g"),
    ]  # fmt: skip
    level = percent(findings.content["params"]["level"])
    note = (
        "Experts kept by more than 5% and less than 95% of the resamples. Kept: by the mask of all the data. From and "
        f"to: {level} interval of the score."
    )
    if len(rows) > MOST:
        note += f" The {MOST} least certain of {len(rows):,}; all are in the audit's arrays."
    return Table("Experts on the edge", columns, rows[:MOST], f"{name}-edge.csv", note)


def edge_rows(findings: Findings) -> list[list[Cell]]:
    """Their rows, the least certain first."""
    found: list[list[Cell]] = []
    for row in findings.rows("masks", scope=findings.whole, fixed=False):
        where = f"{findings.whole}/{row['criterion']}"
        mask = f"masks/{where}/{row['ratio']}"
        share, kept, edge = (findings.arrays[f"{mask}/{key}"] for key in ("probability", "kept", "edge"))
        ends = [findings.arrays[f"scores/{where}/{end}"] for end in ("scores", "lower", "upper")]
        for place, expert in edge.nonzero().tolist():
            found.append([
                row["criterion"], percent(row["ratio"]), findings.layers[place], expert, float(share[place, expert]),
                "yes" if kept[place, expert] else "no", *(float(end[place, expert]) for end in ends),
            ])  # fmt: skip
    return sorted(found, key=_certainty)


def _certainty(row: list[Cell]) -> float:
    share = row[4]
    assert isinstance(share, float)
    return abs(share - 0.5)


def claims_table(findings: Findings) -> Table:
    """The experts that one corpus alone has kept."""
    rows: list[list[Cell]] = []
    for row in findings.rows("corpora"):
        claimed = findings.arrays[f"corpora/{row['criterion']}/{row['ratio']}/claimed"]
        for corpus, own in zip(row["names"], claimed, strict=True):
            layers = [
                f"{layer}: {' '.join(map(str, experts))}"
                for layer, kept in zip(findings.layers, own, strict=True)
                if (experts := kept.nonzero().flatten().tolist())
            ]
            rows.append([row["criterion"], percent(row["ratio"]), corpus, int(own.sum()), "; ".join(layers)])
    columns = [
        Column("criterion"), Column("removed"), Column("corpus"), Column("experts"), Column("layer: experts"),
    ]  # fmt: skip
    note = "Kept by the mask of this corpus alone and by that of no other."
    return Table("Experts that one corpus alone keeps", columns, rows, "one-corpus-only.csv", note)
