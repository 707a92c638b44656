"""What an audit is told: section `audit` of its recipe."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from moeprune.criteria import Criterion, find, words
from moeprune.errors import BadInput, known_word
from moeprune.learning_curve import FRACTIONS
from tasks.artifacts import Params, offering

SEEDS, LENGTHS = "seeds", "sequence_lengths"
"""Keys whose values mean further observations."""


class CriterionParams(Params):
    """A criterion with its options."""

    criterion: str = Field(json_schema_extra=offering(words))
    """Its word, as in score."""
    options: dict[str, int | float | str | bool] = Field(default_factory=dict)
    """Its options, by name."""

    @property
    def found(self) -> Criterion:
        """The criterion itself."""
        return find(self.criterion)

    @property
    def name(self) -> str:
        """What it is called in the audit."""
        return " ".join([self.criterion, *(f"{key}={value}" for key, value in self.options.items())])

    @property
    def resampled(self) -> bool:
        """Whether it depends on calibration data."""
        return self.found.reads == "statistics"


class CurveParams(Params):
    """Sizes of the learning curve."""

    fractions: tuple[float, ...] = FRACTIONS
    """Of the calibration data; those up to 1/2 are also compared with others that share no text with them."""
    repeats: int = Field(20, ge=2)
    """Random orders of the chunks."""

    @field_validator("fractions")
    @classmethod
    def _possible(cls, fractions: tuple[float, ...]) -> tuple[float, ...]:
        if not fractions or not 0 < min(fractions) <= 0.5 or max(fractions) > 1:
            raise ValueError("give fractions in (0, 1], one of them at most 0.5")
        return fractions


class ConsequenceParams(Params):
    """Masks that are measured: that of all data, those of some resamples, and of each corpus alone."""

    criterion: str
    """One of audit.criteria."""
    ratio: float
    """One of audit.ratios."""
    masks: int = Field(8, ge=2)
    """Resamples."""
    corpora: bool = True
    """Whether masks of each corpus alone are measured, too."""


class AuditParams(Params):
    """What is asked of the observations."""

    criteria: tuple[CriterionParams, ...] = Field(min_length=1)
    """Words, or {criterion, options}."""
    ratios: tuple[float, ...] = Field(min_length=1)
    """Fractions of experts removed, by uniform selection."""
    combine: str = "pooled"
    """How scores of several corpora become one ranking, as in score."""
    weights: dict[str, float] | None = None
    """How much each corpus counts, by name; null: all alike."""
    gate_mode: str = "deployed"
    """Which gate the sums are of, as in score."""
    resamples: int = Field(1000, ge=50)
    """Bootstrap resamples of chunks."""
    level: float = Field(0.9, gt=0, lt=1)
    """Confidence of the intervals."""
    seed: int = 0
    """Of the resamples."""
    curve: CurveParams = CurveParams()
    """The learning curve."""
    stability: float = Field(0.9, gt=0, le=1)
    """Agreement above chance that the smallest budget is to reach."""
    seeds: tuple[int, ...] = ()
    """Further seeds to calibrate with: each corpus is drawn and observed again."""
    sequence_lengths: tuple[Annotated[int, Field(gt=1)], ...] = ()
    """Further lengths of blocks to calibrate with: each corpus is observed again."""
    consequence: tuple[ConsequenceParams, ...] = ()
    """Masks to measure, by section evaluate; one, or a list."""

    @field_validator("criteria", "ratios", "consequence", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        if given is None:
            return ()
        listed = given if isinstance(given, list | tuple) else [given]
        return [{"criterion": one} if isinstance(one, str) else one for one in listed]

    @field_validator("ratios")
    @classmethod
    def _within(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < ratio < 1 for ratio in ratios):
            raise ValueError(f"{list(ratios)} are not all between 0 and 1")
        return tuple(dict.fromkeys(ratios))

    @model_validator(mode="after")
    def _known(self) -> "AuditParams":
        from moeprune.combining import COMBINATIONS
        from moeprune.statistics import GATE_MODES

        for one in self.criteria:
            known_word(one.criterion, words(), "audit.criteria")
            one.found.options(one.options)
            _check_resampled(one)
        if not any(one.resampled for one in self.criteria):
            raise BadInput("audit.criteria: none depends on calibration data: give one that does, such as reap")
        names = [one.name for one in self.criteria]
        resolved = [(one.criterion, one.found.options(one.options)) for one in self.criteria]
        if any(one in resolved[:place] for place, one in enumerate(resolved)):
            raise BadInput(f"audit.criteria: one of {', '.join(names)} is listed twice: leave it out")
        known_word(self.combine, COMBINATIONS, "audit.combine")
        known_word(self.gate_mode, GATE_MODES, "audit.gate_mode")
        for asked in self.consequence:
            known_word(asked.criterion, names, "audit.consequence.criterion (it must be among audit.criteria)")
            if not self.named(asked.criterion).resampled:
                raise BadInput(
                    f"audit.consequence.criterion: '{asked.criterion}' depends on no data, so that its mask is always "
                    "the same: choose another"
                )
            if asked.ratio not in self.ratios:
                raise BadInput(f"audit.consequence.ratio: {asked.ratio} is not among audit.ratios: add it there")
            if asked.masks > self.resamples:
                raise BadInput(f"audit.consequence.masks: {asked.masks} of {self.resamples} resamples: ask for fewer")
        return self

    def named(self, name: str) -> CriterionParams:
        """The criterion of that name."""
        return next(one for one in self.criteria if one.name == name)


def _check_resampled(one: CriterionParams) -> None:
    """Raise BadInput for a criterion whose scores cannot be had from part of a corpus."""
    criterion = one.found
    if criterion.reads == "shape":
        raise BadInput(
            f"audit.criteria: '{one.criterion}' draws masks whatever the data; such masks agree by 0 above chance on "
            "average: leave it out"
        )
    if criterion.reads == "weight":
        raise BadInput(f"audit.criteria: '{one.criterion}' ranks weights inside experts, not experts: leave it out")
    if criterion.reads == "statistics" and criterion.sums:
        raise BadInput(
            f"audit.criteria: '{one.criterion}' reads the sums '{criterion.sums[0]}', which are kept for a whole "
            "corpus and not for each of its chunks, so that it cannot be resampled: leave it out"
        )
