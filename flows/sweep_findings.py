"""What the rows of a sweep come to: estimates with their intervals, method by method, and the random draws."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean

from flows.sweep_table import Row

Z = 1.96
"""Standard errors from the middle of a 95% interval to its ends."""


@dataclass(frozen=True)
class Measure:
    """A paired difference from the unpruned model, or the mean of several; sign is -1 where less is better."""

    what: str
    of: str
    unit: str
    names: tuple[str, ...]
    sign: int

    @property
    def title(self) -> str:
        """Such as `log perplexity, wiki`."""
        return f"{self.what}, {self.of}"


@dataclass(frozen=True)
class Estimate:
    """A difference with its 95% interval; no interval where no error was measured."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Method:
    """The rows of one method and budget, which differ in seeds only."""

    budget: str
    name: str
    rows: tuple[Row, ...]

    @property
    def random(self) -> bool:
        """Whether its experts were drawn at random."""
        return self.rows[0].random

    def estimate(self, measure: Measure) -> Estimate:
        """The mean over seeds; from the lowest to the highest end of their intervals."""
        each = [estimate(row, measure) for row in self.rows]
        lows, highs = [one.low for one in each], [one.high for one in each]
        return Estimate(
            mean(one.value for one in each),
            None if None in lows else min(low for low in lows if low is not None),
            None if None in highs else max(high for high in highs if high is not None),
        )


def estimate(row: Row, measure: Measure) -> Estimate:
    """A row's difference; errors of different texts and tasks are independent, so that their mean's is smaller."""
    found = [row.delta[name] for name in measure.names]
    value, errors = mean(one["value"] for one in found), [one["stderr"] for one in found]
    if any(error is None for error in errors):
        return Estimate(value, None, None)
    spread = Z * sqrt(sum(error**2 for error in errors)) / len(errors)
    return Estimate(value, value - spread, value + spread)


def measures_of(rows: Sequence[Row]) -> tuple[list[Measure], list[Measure]]:
    """Of perplexity, of accuracy: the mean first if there are several, then one by one."""
    named = list(dict.fromkeys(name for row in rows for name in row.delta))
    corpora = [name for name in named if name.startswith("log_perplexity/")]
    tasks = [name for name in named if name.endswith("/acc")]
    return (
        _with_mean(corpora, "log perplexity", "nats per token", -1, "corpora"),
        _with_mean(tasks, "accuracy", "fraction of questions", 1, "tasks"),
    )


def _with_mean(names: list[str], what: str, unit: str, sign: int, kind: str) -> list[Measure]:
    single = [
        Measure(what, name.removeprefix("log_perplexity/").removesuffix("/acc"), unit, (name,), sign) for name in names
    ]
    whole = [Measure(what, f"mean of {len(names)} {kind}", unit, tuple(names), sign)] if len(names) > 1 else []
    return whole + single


def methods_of(rows: Iterable[Row], by: Measure) -> list[Method]:
    """Rows that differ in seeds only are one method; budget by budget, the best by a measure first."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.budget, row.method].append(row)
    methods = [Method(budget, name, tuple(own)) for (budget, name), own in groups.items()]
    return sorted(methods, key=lambda method: (method.budget, -by.sign * method.estimate(by).value, method.name))


def draws_of(methods: Iterable[Method], budget: str, measure: Measure) -> list[float]:
    """The random draws of a budget."""
    own = [method for method in methods if method.random and method.budget == budget]
    return [estimate(row, measure).value for method in own for row in method.rows]


def outside(found: Estimate, draws: Sequence[float]) -> int:
    """-1 if the whole interval lies below every draw, 1 if above, 0 if that cannot be said."""
    if not draws or found.low is None or found.high is None:
        return 0
    return -1 if found.high < min(draws) else 1 if found.low > max(draws) else 0


def overlap(one: Estimate, other: Estimate) -> bool:
    """Whether two intervals overlap; without an interval nothing tells two values apart."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return True
    return one.low <= other.high and other.low <= one.high
