"""The audit flow: how much masks depend on the calibration data, and what that comes to in perplexity."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect import flow

from flows.audit_chain import AuditChain, Audited
from flows.audit_consequence import Consequence, consequences
from flows.audit_findings import Findings, read_findings
from flows.audit_recipe import AuditRecipe, to_yaml
from flows.chain import Sources
from flows.engine import Engine, push
from flows.notifying import notify
from flows.outcome import Outcome, Record
from flows.preflight import preflight
from flows.running import quiet
from moeprune.errors import BadInput
from tasks.artifacts import Store
from tasks.recording import Run
from tasks.tracking import Tracker

REPORT = "report.html"
HEADLINE = {"stability": "index", "stability_halves": "halves", "edge_experts": "edge", "budget": "budget_disjoint"}
"""Names of metrics, and the keys of rows they are of."""


@dataclass(frozen=True)
class AuditOutcome:
    """What an audit comes to: its id in the tracker, its stages, what was found, and where the report lies."""

    name: str
    run_id: str
    records: list[Record]
    made: Audited
    findings: Findings
    consequences: list[Consequence]
    report: Path


@flow(name="audit", validate_parameters=True, on_failure=[notify], on_crashed=[notify])
def audit_model(recipe: AuditRecipe, name: str = "audit", report: Path | None = None) -> AuditOutcome:
    """Audit one model: every stage the store does not have is run. The report is written to `report`, too, if given."""
    store = Store(recipe.runtime.store)
    tracker = Tracker(store)
    tracker.check()
    sources = check(recipe, store)
    tags = {"kind": "audit", "method": ", ".join(one.name for one in recipe.audit.criteria)}
    with tracker.run(name, recipe.model_dump(mode="json"), tags, to_yaml(recipe)) as run:
        outcome = Outcome(run.id)
        engine = Engine(recipe.pruning()[0], store, Path.cwd(), run, outcome)
        made = AuditChain(recipe, sources, store, engine.do).run()
        assert made.audit is not None
        findings = read_findings(store.folder(made.audit))
        measured = consequences(made, findings, store)
        written = report or store.root / "reports" / f"audit-{made.audit.key[:8]}.html"
        found = AuditOutcome(name, run.id, outcome.records, made, findings, measured, written)
        _remember(found, run)
        push(Path.cwd())
    return found


def check(recipe: AuditRecipe, store: Store) -> Sources:
    """Find every source and refuse what cannot work, before any work. BadInput as `preflight`."""
    found = [preflight(one, store, Path.cwd()) for one in recipe.pruning()]
    return found[0]


def audit_once(recipe: AuditRecipe, name: str, report: Path | None = None) -> AuditOutcome:
    """One audit. What can be refused is refused before Prefect is started."""
    quiet()
    if report is not None and report.suffix != ".html":
        raise BadInput(f"--report {report}: a report is an HTML file: give a name that ends in .html")
    store = Store(recipe.runtime.store)
    Tracker(store).check()
    check(recipe, store)
    return audit_model(recipe, name, report)


def _remember(found: AuditOutcome, run: Run) -> None:
    """Log the headline numbers, the summary in words and the report; write the report."""
    from flows.audit_report import page_of
    from flows.audit_words import in_words

    run.log_metrics(_headline(found), "audit")
    page = page_of(found.findings, found.consequences, found.name, f"moeprune audit {found.name}.yaml")
    page.write(found.report)
    with TemporaryDirectory() as folder:
        copy = Path(folder) / REPORT
        copy.write_bytes(found.report.read_bytes())
        run.log_file(copy)
    run.log_text(in_words(found.findings, found.consequences) + "\n", "summary.txt")
    assert found.made.audit is not None
    run.tag({"artifact.audit": found.made.audit.path})


def _headline(found: AuditOutcome) -> dict[str, dict[str, float | None]]:
    """Stability, experts on the edge and smallest budget of each mask, and what measured masks came to."""
    numbers = {
        f"{row['criterion']}/{row['ratio']}/{row['scope']}/{name}": row.get(key)
        for row in found.findings.rows("masks")
        for name, key in HEADLINE.items()
    }
    for one in found.consequences:
        named = f"{one.criterion}/{one.ratio}/consequence"
        numbers |= {f"{named}/spread": one.spread, f"{named}/correlation": one.correlation}
    return {name: {"value": value} for name, value in numbers.items()}
