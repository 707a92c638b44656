"""Recipes of audits: the sections of a recipe up to `observe`, `audit`, and `evaluate` if masks are to be measured."""

from pathlib import Path

from pydantic import Field, model_validator

from flows.recipe import Recipe, parse_recipe, read_yaml, validated
from moeprune.errors import BadInput
from tasks.artifacts import Params, Runtime
from tasks.audit_params import LENGTHS, SEEDS, AuditParams
from tasks.calibrate import CalibrateParams
from tasks.download import DownloadParams
from tasks.evaluate import EvaluateParams
from tasks.observe import ObserveParams


class AuditRecipe(Params):
    """Everything an audit is told."""

    download: DownloadParams
    calibrate: CalibrateParams
    observe: ObserveParams = ObserveParams()
    audit: AuditParams
    evaluate: EvaluateParams | None = None
    runtime: Runtime = Field(default_factory=Runtime)

    @model_validator(mode="after")
    def _together(self) -> "AuditRecipe":
        if self.audit.consequence and self.evaluate is None:
            raise BadInput("audit.consequence: nothing says what to measure: add the section evaluate")
        if self.evaluate is not None and not self.audit.consequence:
            raise BadInput("evaluate: no mask is to be measured: give audit.consequence, or leave evaluate out")
        if self.evaluate is not None and self.evaluate.expert_skipping:
            raise BadInput("evaluate.expert_skipping: an audit applies masks in memory only: set it to false")
        if self.calibrate.chunks < 2:
            raise BadInput("calibrate.chunks: a corpus of one chunk cannot be resampled: set it to 32 or more")
        self.pruning()
        return self

    @property
    def corpora(self) -> list[str]:
        """The names of the corpora."""
        return [corpus.name for corpus in self.calibrate.corpora]

    def calibrations(self) -> dict[str, dict[int, CalibrateParams]]:
        """By seed and by sequence length how corpora are drawn, the recipe's own first; only what is asked for."""
        own = {SEEDS: self.calibrate.seed, LENGTHS: self.calibrate.sequence_length}
        asked = {SEEDS: self.audit.seeds, LENGTHS: self.audit.sequence_lengths}
        key, drawn = {SEEDS: "seed", LENGTHS: "sequence_length"}, self.calibrate.model_dump()
        return {
            kind: {
                value: CalibrateParams.model_validate(drawn | {key[kind]: value}) for value in (own[kind], *asked[kind])
            }
            for kind in own
            if set(asked[kind]) - {own[kind]}
        }

    def pruning(self) -> list[Recipe]:
        """Recipes of pruning that together need what the audit does: each criterion once, each ratio once.

        The first depends on calibration data and is measured. BadInput if sections do not go together in one of them.
        """
        criteria = sorted(self.audit.criteria, key=lambda one: not one.resampled)
        ratios = self.audit.ratios
        pairs = [(one, ratios[0]) for one in criteria] + [(criteria[0], ratio) for ratio in ratios[1:]]
        shared = self.model_dump(mode="json", include={"download", "calibrate", "observe", "runtime"})
        measured = self.evaluate and self.evaluate.model_dump(mode="json") | {"virtual": True}
        found: list[Recipe] = []
        for one, ratio in pairs:
            score = {"criterion": one.criterion, "options": one.options}
            if one.resampled:
                score |= self.audit.model_dump(mode="json", include={"combine", "weights", "gate_mode"})
            sections = {**shared, "score": score, "mask": {"ratio": ratio}, "evaluate": None if found else measured}
            found.append(parse_recipe(sections, f"audit.criteria '{one.name}', audit.ratios {ratio}"))
        return found


def read_audit(path: Path, changes: tuple[str, ...] = ()) -> AuditRecipe:
    """The audit of a file with `section.key=value` changes applied; BadInput in one line for anything wrong."""
    content = read_yaml(path, changes)
    if "audit" not in content:
        raise BadInput(
            f"{path}: audit: the section is missing: give it criteria and ratios, as in params/audit-demo.yaml"
        )
    return validated(AuditRecipe, content, str(path))
