"""What people see of audits, and the JSON that programs get."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from flows import show
from flows.audit.consequence import Consequence, between_criteria, between_resamples, by_kind
from flows.audit.findings import Findings, Row
from flows.audit.flow import AuditOutcome
from flows.audit.words import in_words
from flows.differences import label
from flows.show import console
from flows.sweep import show as show_sweep
from flows.sweep.grid import percent
from flows.sweep.planning import SweepPlan
from moeprune.comparing import RankTest

MANY = 2
"""More consequences than so many are told in a row each; the report has every mask."""


def plan(result: SweepPlan) -> None:
    """How many stages are wanted and how few they are."""
    total = result.total
    console.print(show_sweep.stages(result, "plan of an audit"))
    console.print(
        f"{total.stored} of {total.distinct} stages are in the store, at most {total.to_run} are to be run: masks that "
        "turn out to be the same are measured once.",
        highlight=False,
        soft_wrap=True,
    )


def audit(result: AuditOutcome) -> None:
    """How sure the masks of all the data are, between corpora, measured masks, stages, and all of it in words."""
    console.print(_stability(result.findings))
    console.print(
        "agreement above chance: 1 the same masks, 0 as random ones. Masks from other text of the same kind agree "
        "between halves (each with half the text) and resamples (which share text). edge: experts that 5% to 95% of "
        "the resamples keep. tokens: from which on texts that share nothing agree as asked for. corpora: between masks "
        "of single corpora.",
        style="dim",
    )
    if len(result.consequences) > MANY:
        console.print(_spreads(result.consequences))
    else:
        for one in result.consequences:
            console.print(_measured(one))
    console.print(_stages(result))
    console.print(in_words(result.findings, result.consequences), highlight=False, soft_wrap=True)
    console.print(f"report: {os.path.relpath(result.report)}", highlight=False, soft_wrap=True)


def _measured(found: Consequence) -> Table:
    table = Table(title=f"measured masks of {found.criterion} at {percent(found.ratio)} removed, minus unpruned")
    perplexities, accuracies = by_kind(found.masks[0].damage)
    names = {name: f"ln ppl {label(name)}" for name in perplexities}
    names |= {name: f"{label(name)} accuracy" for name in accuracies}
    table.add_column("mask", no_wrap=True)
    for column in ("agreement", *names.values()):
        table.add_column(column, justify="right")
    for mask in found.masks:
        table.add_row(mask.label, f"{mask.agreement:.2f}", *(f"{mask.damage[name]['value']:+.3f}" for name in names))
    return table


def _spreads(found: Sequence[Consequence]) -> Table:
    """A row for each: what removing experts costs, and how that varies with the masks of resamples."""
    table = Table(title="measured masks, minus unpruned: mean log perplexity")
    for column in ("criterion", "removed", "resamples", "cost", "spread"):
        table.add_column(column, justify="left" if column == "criterion" else "right", no_wrap=True)
    for ratio in sorted({one.ratio for one in found}):
        for one in found:
            if one.ratio == ratio:
                resamples = str(sum(mask.resampled for mask in one.masks))
                numbers = ("" if value is None else f"{value:.3f}" for value in (one.cost, one.spread))
                table.add_row(one.criterion, percent(ratio), resamples, *numbers)
        table.add_section()
    return table


def _stability(findings: Findings) -> Table:
    several = len(findings.corpora) > 1
    table = Table(title=f"agreement of masks of {findings.whole}")
    for column in ("criterion", "removed"):
        table.add_column(column, no_wrap=True)
    for column in ("halves", "re-\nsampled", "edge", "tokens", *(["corpora"] if several else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for ratio in findings.ratios:
        for row in findings.by_stability(ratio):
            table.add_row(*_cells(findings, row, several))
        for row in findings.rows("masks", scope=findings.whole, ratio=ratio, fixed=True):
            table.add_row(row["criterion"], percent(ratio), "1", "1", "0", "none", *(["1"] if several else []))
        table.add_section()
    return table


def _cells(findings: Findings, row: Row, several: bool) -> list[str]:
    budget, whole = row["budget_disjoint"], len(findings.layers) * findings.content["experts"]
    cells = [
        row["criterion"],
        percent(row["ratio"]),
        f"{row['halves']:.2f}",
        f"{row['index']:.2f}",
        f"{row['edge']}/{whole}",
        f">{findings.tokens(findings.whole) // 2:,}" if budget is None else f"{budget:,}",
    ]
    if several:
        between = findings.row("corpora", criterion=row["criterion"], ratio=row["ratio"])
        cells.append(f"{between['corrected']:.2f}")
    return cells


def _stages(result: AuditOutcome) -> Table:
    """How many artifacts each stage has made or found, and how long that took."""
    table = Table(title="stages")
    for column in ("stage", "made", "in the store", "seconds"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for word in dict.fromkeys(record.step.stage for record in result.records):
        own = [record for record in result.records if record.step.stage == word]
        missed = sum(record.cache == "miss" for record in own)
        seconds = sum(record.seconds for record in own)
        table.add_row(word, str(missed), str(len(own) - missed), f"{seconds:.1f}")
    return table


def as_json(result: AuditOutcome) -> dict[str, Any]:
    """The one JSON object of `audit --json`: rows are those of audit.json."""
    return {
        "run_id": result.run_id,
        "status": "done",
        "error": None,
        "stages": show.stages(result.records),
        "summary": in_words(result.findings, result.consequences),
        "rows": result.findings.content["rows"],
        "consequences": [asdict(one) for one in result.consequences],
        "relations": {
            "between_resamples": _plain(between_resamples(result.consequences)),
            "between_criteria": _plain(between_criteria(result.consequences)),
        },
        "report": str(result.report.absolute()),
    }


def _plain(found: RankTest | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)
