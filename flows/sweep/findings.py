"""What the rows of a sweep come to: estimates with their intervals, method by method, and the random draws."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import hypot
from statistics import mean, stdev

from flows.differences import PERPLEXITY, label
from flows.pages.table import Measured
from flows.sweep.rows import Row
from moeprune.quantiles import half_width


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
    """The rows of one method, budget and unpruned model, which differ in seeds only."""

    base: str
    budget: str
    name: str
    rows: tuple[Row, ...]

    @property
    def random(self) -> bool:
        """Whether its experts were drawn at random."""
        return self.rows[0].random

    @property
    def title(self) -> str:
        """Its name and, if there are several, the number of its seeds."""
        return self.name + (f" ({len(self.rows)} seeds)" if len(self.rows) > 1 else "")

    def each(self, measure: Measure) -> list[Estimate]:
        """What every seed came to; nothing where it was not measured."""
        return [found for row in self.rows if (found := estimate(row, measure)) is not None]

    def estimate(self, measure: Measure) -> Estimate | None:
        """The mean over seeds; from the lowest to the highest end of their intervals. None if it was not measured."""
        each = self.each(measure)
        if not each:
            return None
        lows, highs = [one.low for one in each], [one.high for one in each]
        return Estimate(
            mean(one.value for one in each),
            None if None in lows else min(low for low in lows if low is not None),
            None if None in highs else max(high for high in highs if high is not None),
        )


def estimate(row: Row, measure: Measure) -> Estimate | None:
    """A row's difference; errors of different texts and tasks are independent, so that their mean's is smaller.

    None for a row that was not measured by all of the corpora or tasks.
    """
    if not row.delta.keys() >= set(measure.names):
        return None
    found = [row.delta[name] for name in measure.names]
    value, halves = mean(one["value"] for one in found), [half_width(one["stderr"], one["n"]) for one in found]
    known = [half for half in halves if half is not None]
    if len(known) < len(halves):
        return Estimate(value, None, None)
    spread = hypot(*known) / len(known)
    return Estimate(value, value - spread, value + spread)


def measures_of(rows: Sequence[Row]) -> tuple[list[Measure], list[Measure]]:
    """Of perplexity, of accuracy: the mean first if there are several that all rows have, then one by one."""
    named = list(dict.fromkeys(name for row in rows for name in row.delta))
    common = {name for name in named if all(name in row.delta for row in rows)}
    corpora = [name for name in named if name.startswith(PERPLEXITY)]
    tasks = [name for name in named if not name.startswith(PERPLEXITY)]
    return (
        _with_mean(corpora, common, "log perplexity", "nats per token", -1, "corpora"),
        _with_mean(tasks, common, "accuracy", "fraction of questions", 1, "tasks"),
    )


def _with_mean(names: list[str], common: set[str], what: str, unit: str, sign: int, kind: str) -> list[Measure]:
    several = tuple(name for name in names if name in common)
    whole = [Measure(what, f"mean of {len(several)} {kind}", unit, several, sign)] if len(several) > 1 else []
    return whole + [Measure(what, label(name), unit, (name,), sign) for name in names]


def methods_of(rows: Iterable[Row], by: Measure | None) -> list[Method]:
    """Rows that differ in seeds only are one method; budget by budget, the best by a measure first."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.base, row.budget, row.method].append(row)

    def order(method: Method) -> tuple[str, str, bool, float, str]:
        found = by and method.estimate(by)
        worse = -by.sign * found.value if by and found else 0.0
        numbered = re.sub(r"\d+", lambda digits: digits[0].zfill(6), method.budget)  # 5% before 25%
        return method.base, numbered, found is None, worse, method.name

    return sorted((Method(*key, tuple(own)) for key, own in groups.items()), key=order)


def draws_of(methods: Iterable[Method], like: Method, measure: Measure) -> list[float]:
    """The random draws of a method's budget and unpruned model."""
    own = [one for one in methods if one.random and (one.base, one.budget) == (like.base, like.budget)]
    return [found.value for method in own for found in method.each(measure)]


def cell(methods: Iterable[Method], method: Method, measure: Measure) -> Measured | None:
    """A method's difference in a table: with its interval and a mark if that lies beyond all of the random draws.

    Of several seeds the mean and standard deviation: the spread of the draw, not the error of the measurement.
    """
    each = method.each(measure)
    if len(each) > 1:
        values = [one.value for one in each]
        return Measured(mean(values), stdev(values), "s.d.")
    for one in each:
        mark = {-1: "▼", 1: "▲"}.get(outside(one, draws_of(methods, method, measure)), "")
        return Measured(one.value, None if one.high is None else one.high - one.value, mark)
    return None


def outside(found: Estimate, draws: Sequence[float]) -> int:
    """-1 if the whole interval lies below every draw, 1 if above, 0 if that cannot be said."""
    if not draws or found.low is None or found.high is None:
        return 0
    return -1 if found.high < min(draws) else 1 if found.low > max(draws) else 0


def overlap(one: Estimate, other: Estimate) -> bool:
    """Whether two intervals overlap; not if one is not known."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high
