"""Rules that a pruned model must meet before it may be handed on: how much worse than the base it may be.

A rule is judged on the paired difference from the base. By default it holds only if the whole confidence interval of
the difference lies within the limit (a test of non-inferiority, as in CONSORT's extension, Piaggio et al. 2012, JAMA
308:2594-2604): noise, or too few questions, cannot pass for quality. `judge: value` looks at the value alone.
"""

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import Field, model_validator

from moeprune.errors import BadInput
from moeprune.quantiles import half_width
from tasks.artifacts import Params
from tasks.suites import average, headlines

OF_CORPORA = ("perplexity", "log_perplexity", "bits_per_byte")
"""Our measures of corpora, whose fall is no loss."""


class PromoteParams(Params):
    """What must hold before an alias of the registry is moved to the model."""

    perplexity: dict[str, float] = Field(default_factory=dict)
    """Most that perplexity may rise, by held-out corpus: 0.10 is ten percent."""
    accuracy: dict[str, float] = Field(default_factory=dict)
    """Most that an accuracy may fall, by metric: arc_easy/acc_norm: 0.01 is one point of a hundred."""
    judge: Literal["interval", "value"] = "interval"
    """What must lie within a limit: the whole interval of the paired difference, or only its value."""
    level: float = Field(0.95, gt=0.5, lt=1)
    """Confidence level of the interval, two-sided."""
    model: str | None = Field(None, pattern=r"^[\w\-. ]+$")
    """The model's name in the registry; null: the base model's with -pruned."""

    @model_validator(mode="after")
    def _has_rules(self) -> "PromoteParams":
        rules = {"perplexity": self.perplexity, "accuracy": self.accuracy}
        if not any(rules.values()):
            raise BadInput("promote: without a rule nothing is judged: give perplexity or accuracy a limit")
        for kind, limits in rules.items():
            for name, limit in limits.items():
                if not (limit >= 0 and math.isfinite(limit)):
                    raise BadInput(f"promote.{kind}.{name}: {limit} is no limit: give 0 or more, such as 0.05")
                if kind == "accuracy" and limit >= 1:
                    raise BadInput(f"promote.accuracy.{name}: {limit} forbids nothing: one point of a hundred is 0.01")
        _refuse([name for name in self.accuracy if name.split("/")[0] in OF_CORPORA])
        return self


def _refuse(wrong: list[str]) -> None:
    """Raise BadInput if there is a measure of which less is better."""
    if wrong:
        raise BadInput(
            f"promote.accuracy: of {wrong[0]} less is better: only measures of which more is better can be named here, "
            "a corpus under promote.perplexity"
        )


@dataclass(frozen=True)
class Difference:
    """A measured difference, its standard error, and how many pairs it rests on."""

    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True)
class Verdict:
    """One rule, and what was measured. Fractions: of the base's perplexity, or of all questions; larger is worse."""

    metric: str
    limit: float
    loss: float
    """By how much the model is worse than the base; negative if it is better."""
    worst: float | None
    """The end of the loss' interval; None if the measurement does not give one."""
    n: int
    """Documents or questions."""
    judged: Literal["interval", "value"]

    @property
    def holds(self) -> bool:
        """Whether the model keeps to the limit."""
        found = self.loss if self.judged == "value" else self.worst
        return found is not None and found <= self.limit


Metrics = Mapping[str, Mapping[str, float | int | None]]
"""Paired differences, as `comparison.compare` gives them."""


def judge(rules: PromoteParams, differences: Metrics, less_is_better: Container[str] = ()) -> list[Verdict]:
    """Each rule against the differences of the model from its base.

    Raises BadInput if one was not measured, or is of an accuracy that is none, as less of it is better.
    """
    _refuse([name for name in rules.accuracy if name in less_is_better])
    verdicts = []
    for name, limit in rules.perplexity.items():
        found = _measured(differences, f"log_perplexity/{name}", f"promote.perplexity: corpus '{name}'")
        worst = _end(found, rules.level)
        verdicts.append(
            Verdict(
                f"perplexity/{name}",
                limit,
                math.expm1(found.value),
                None if worst is None else math.expm1(worst),
                found.n,
                rules.judge,
            )
        )
    for name, limit in rules.accuracy.items():
        found = _measured(differences, name, f"promote.accuracy: '{name}'")
        careful = _careful(differences, name)
        worst = _end(replace(careful, value=-careful.value), rules.level)
        verdicts.append(Verdict(name, limit, 0.0 - found.value, worst, found.n, rules.judge))
    return verdicts


def _end(loss: Difference, level: float) -> float | None:
    """The upper end of a loss' interval."""
    half = half_width(loss.stderr, loss.n, level)
    return None if half is None else loss.value + half


def _careful(differences: Metrics, name: str) -> Difference:
    """A difference of accuracies from which an interval may be made; of a suite, from those of its tasks."""
    kind, _, word = name.partition("/")
    parts = headlines([word]).get(word, []) if kind == "suite" else []
    if not parts:
        return _with_a_pair_more(_measured(differences, name, f"promote.accuracy: '{name}'"))
    return Difference(**average([asdict(_careful(differences, part)) for part in parts]))


def _with_a_pair_more(found: Difference) -> Difference:
    """The mean of paired differences had each cell of the two-by-two table of right and wrong half a pair more.

        S = n d,  Q = (n - 1) n se^2 + n d^2;    S / (n + 2),   sqrt(Q + 1 - S^2 / (n + 2)) / (n + 2)

    (Agresti & Min 2005, Statistics in Medicine 24:729-740.) Else twenty questions that both models answer alike would
    have a standard error of zero, which proves too much.
    """
    if found.stderr is None:
        return found
    n, total = found.n, found.n * found.value
    squares = (n - 1) * n * found.stderr**2 + n * found.value**2
    return Difference(total / (n + 2), math.sqrt(squares + 1 - total**2 / (n + 2)) / (n + 2), n)


def _measured(differences: Metrics, metric: str, what: str) -> Difference:
    if metric not in differences:
        raise BadInput(f"{what} was not measured: {_choice(differences)}")
    found: Any = differences[metric]
    return Difference(found["value"], found["stderr"], found["n"])


def _choice(names: Iterable[str]) -> str:
    known = sorted(name.removeprefix("log_") for name in names if not name.startswith("bits_per_byte/"))
    return f"the run has {', '.join(known)}" if known else "the run measured nothing: add the section evaluate"
