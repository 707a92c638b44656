"""The audit flow: how much masks depend on the calibration data, and what that comes to in perplexity."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect import flow

from flows.audit.chain import BASE, AuditChain, Audited
from flows.audit.consequence import Consequence, between_criteria, between_resamples, consequences, mean_perplexity
from flows.audit.findings import Findings, read_findings
from flows.audit.recipe import AuditRecipe
from flows.chain import Sources
from flows.deployment.notify import notify
from flows.engine import Engine, push, reach
from flows.outcome import Outcome, Record
from flows.pages import check_path
from flows.preflight import check_servers, observation_bytes, preflight
from flows.recipe import recorded, to_yaml
from flows.running import quiet
from flows.sweep.planning import SweepPlan, counts
from flows.walk import look_up
from moeprune.configs import read_config, read_routing
from moeprune.errors import BadInput
from moeprune.file_plan import read_file_plan
from moeprune.masks import number_kept, ratio_kept
from tasks import comparison, download
from tasks.artifacts import Store
from tasks.identity import key_of

REPORT = "report.html"
TAGGED = ("download", "calibrate", "observe", "score", "audit")
"""Stages whose results the run is tagged with; of those of measured masks, which may be hundreds, children tell."""
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
    tracker = reach(store, Path.cwd())
    sources = check(recipe, store)
    tags = {"kind": "audit", "method": ", ".join(one.name for one in recipe.audit.criteria)}
    with tracker.run(name, recorded(recipe), tags, to_yaml(recipe)) as run:
        outcome = Outcome(run.id)
        engine = Engine(recipe.pruning()[0], store, Path.cwd(), run, outcome)
        made = AuditChain(recipe, sources, store, engine.do).run()
        assert made.audit is not None
        findings = read_findings(store.folder(made.audit))
        measured = consequences(made, findings, store)
        written = report or store.root / "reports" / f"audit-{_key(outcome.records)}.html"
        found = AuditOutcome(name, run.id, outcome.records, made, findings, measured, written)
        _remember(found, engine, recipe.download.source)
        push(Path.cwd())
    return found


def check(recipe: AuditRecipe, store: Store) -> Sources:
    """Find every source and refuse what cannot work, before any work. BadInput as `preflight`."""
    found = [preflight(one, store, Path.cwd()) for one in recipe.pruning()]
    model, files, trusted = found[0].model, found[0].files, recipe.download.trust_remote_code
    folder = files.folder if files else download.read_config_folder(model)
    routing = read_routing(read_config(folder, trusted))
    for ratio in recipe.audit.ratios:
        if number_kept(ratio, routing.experts) == routing.experts:
            raise BadInput(
                f"audit.ratios: {ratio} of {routing.experts} experts removes none: the least that removes one is "
                f"{ratio_kept(routing.experts - 1, routing.experts)}"
            )
    if files is not None:
        drawn = [recipe.calibrate, *(one for kind in recipe.calibrations().values() for one in kind.values())]
        distinct = [one for place, one in enumerate(drawn) if one not in drawn[:place]]
        plan = read_file_plan(files, trusted)
        store.check_space(sum(observation_bytes(one, recipe.observe, files, plan) for one in distinct))
    return found[0]


def plan_audit(recipe: AuditRecipe) -> SweepPlan:
    """What an audit would run; nothing is run. BadInput as for the audit."""
    store = Store(recipe.runtime.store)
    sources = check(recipe, store)
    wanted, _ = look_up(lambda do: AuditChain(recipe, sources, store, do).run(), store)
    return SweepPlan(1, 0, counts(wanted))


def audit_once(recipe: AuditRecipe, name: str, report: Path | None = None) -> AuditOutcome:
    """One audit. What can be refused is refused before Prefect is started."""
    quiet()
    if report is not None:
        check_path(report)
    store = Store(recipe.runtime.store)
    check_servers(store, Path.cwd())
    check(recipe, store)
    return audit_model(recipe, name, report)


def _key(records: Sequence[Record]) -> str:
    """Of all that an audit has read: one with other measured masks is another."""
    return key_of("report", "", {}, {record.step.title: record.artifact.digest for record in records})[:8]


def _remember(found: AuditOutcome, engine: Engine, source: str) -> None:
    """Log the headline numbers, the model audited, versions, the summary in words and the report; write the report."""
    from flows.audit.report import page_of
    from flows.audit.words import in_words

    run, made = engine.run, found.made
    assert made.base is not None
    model = run.log_model("base", made.base.digest, Path(source).name, {"source": source})
    if made.report is not None:
        report = json.loads((engine.store.folder(made.report) / comparison.REPORT).read_text())
        run.log_metrics(report["metrics"], BASE, engine.children[f"evaluate {BASE}"], model)
    run.log_metrics(_headline(found), "audit")
    page = page_of(found.findings, found.consequences, found.name)
    page.write(found.report)
    run.log_text(page.html(), REPORT)
    run.log_text(in_words(found.findings, found.consequences) + "\n", "summary.txt")
    run.tag({f"dvc.{title}": version.md5 for title, version in engine.outcome.versions.items()})
    run.tag({f"artifact.{one.step.title}": one.artifact.path for one in found.records if one.step.stage in TAGGED})


def _headline(found: AuditOutcome) -> dict[str, dict[str, float | None]]:
    """Stability, experts on the edge and smallest budget of each mask, and what measured masks came to."""
    numbers = {
        f"{row['criterion']}/{row['ratio']}/{row['scope']}/{name}": row.get(key)
        for row in found.findings.rows("masks")
        for name, key in HEADLINE.items()
    }
    for one in found.consequences:
        named = f"{one.criterion}/{one.ratio}/consequence"
        numbers |= {f"{named}/spread": one.spread, f"{named}/accuracy_spread": one.accuracy_spread}
        numbers |= {f"{named}/{mask.label}/log_perplexity": mean_perplexity(mask.damage) for mask in one.masks}
    tests = {"resamples": between_resamples(found.consequences), "criteria": between_criteria(found.consequences)}
    for name, test in tests.items():
        if test is not None:
            numbers |= {f"between_{name}/rho": test.rho, f"between_{name}/p": test.p}
    return {name: {"value": value} for name, value in numbers.items()}
