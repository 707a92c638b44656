"""The chain of an audit's stages."""

from dataclasses import dataclass, field
from pathlib import Path

from flows.audit.recipe import AuditRecipe
from flows.chain import Artifacts, Do, Sources
from tasks import audit, calibrate, download, evaluate, observe, resample, score
from tasks.artifacts import Artifact, Step, Store
from tasks.audit_params import SEEDS, ConsequenceParams
from tasks.calibrate import CalibrateParams
from tasks.score import ScoreParams

BASE = "base"


@dataclass
class Measured:
    """The masks of one `audit.consequence`, and reports on them, by what the masks are called."""

    asked: ConsequenceParams
    masks: Artifacts = field(default_factory=dict)
    reports: Artifacts = field(default_factory=dict)


@dataclass
class Audited:
    """What the chain has made."""

    base: Artifact | None = None
    audit: Artifact | None = None
    report: Artifact | None = None
    """Of the unpruned model."""
    measured: list[Measured] = field(default_factory=list)


@dataclass
class AuditChain:
    """One audit on its way from the base model to the reports of masks."""

    recipe: AuditRecipe
    sources: Sources
    store: Store
    do: Do

    def run(self) -> Audited:
        """Download, calibrate, observe, audit, evaluate."""
        recipe, made = self.recipe, Audited()
        made.base = self.do(
            download.download,
            download.step(recipe.download, self.sources.model, self.store),
            source=self.sources.model,
        )
        statistics, corpora = self._observe(recipe.calibrate, made.base, "")
        again: dict[str, dict[int, Artifacts]] = {}
        drawn: dict[int, Artifacts] = {}
        for kind, calibrations in recipe.calibrations().items():
            for value, asked in calibrations.items():
                own = asked == recipe.calibrate
                observed, blocks = (statistics, corpora) if own else self._observe(asked, made.base, f"{kind} {value}")
                again.setdefault(kind, {})[value] = observed
                if kind == SEEDS:
                    drawn[value] = blocks
        fixed = {}
        for one in recipe.audit.criteria:
            if not one.resampled:
                params = ScoreParams(criterion=one.criterion, options=one.options)
                fixed[one.name] = self._trusting(score.score, score.step(params, made.base, {}), params=params)
        step = audit.step(recipe.audit, made.base, statistics, again, fixed, drawn)
        made.audit = self._trusting(audit.audit, step, params=recipe.audit)
        if recipe.evaluate is not None:
            self._measure(made, recipe.evaluate.model_copy(update={"virtual": True}), statistics)
        return made

    def _trusting(self, task: object, step: Step, **arguments: object) -> Artifact | None:
        return self.do(task, step, trust_remote_code=self.recipe.download.trust_remote_code, **arguments)

    def _observe(self, params: CalibrateParams, base: Artifact | None, how: str) -> tuple[Artifacts, Artifacts]:
        """Statistics and tokens of each corpus; `how` says what differs from the recipe."""
        tokenizer = base and download.tokenizer_of(base, self.store)
        found: Artifacts = {}
        blocks: Artifacts = {}
        for corpus in params.corpora:
            path: Path = self.sources.calibration[corpus.name]
            step = calibrate.step(params, corpus, path, tokenizer, self.store)
            drawn = blocks[corpus.name] = self._trusting(
                calibrate.calibrate, step, params=params, corpus=corpus, path=path
            )
            asked = self.recipe.observe
            step = observe.step(asked, f"{corpus.name} {how}".strip(), base, drawn)
            found[corpus.name] = self._trusting(observe.observe, step, params=asked)
        return found, blocks

    def _measure(self, made: Audited, params: evaluate.EvaluateParams, statistics: Artifacts) -> None:
        corpora, trusted = self.sources.evaluation, self.recipe.download.trust_remote_code
        step = evaluate.step(params, BASE, made.base, corpora, self.store, trusted)
        made.report = self._trusting(evaluate.evaluate, step, params=params, corpora=corpora)
        for asked in self.recipe.audit.consequence:
            found = Measured(asked)
            for label in resample.labels(asked, self.recipe.corpora):
                drawn = resample.step(self.recipe.audit, asked, label, made.base, statistics)
                mask = found.masks[label] = self._trusting(resample.resample, drawn)
                step = evaluate.virtual_step(params, drawn.of, made.base, mask, corpora, self.store, trusted)
                found.reports[label] = self._trusting(evaluate.evaluate, step, params=params, corpora=corpora)
            made.measured.append(found)
