"""What an audit found, read from its artifact, as pages and sentences want it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

from torch import Tensor

from moeprune.auditing import ALL
from tasks.audit import ARRAYS, AUDIT

Row = dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """Rows and arrays of `moeprune.auditing.Audit`, and what they are of."""

    content: dict[str, Any]
    arrays: dict[str, Tensor]

    def rows(self, kind: str, **wanted: Any) -> list[Row]:
        """The rows of a kind whose keys have these values, in the audit's order."""
        found: list[Row] = self.content["rows"].get(kind, [])
        return [row for row in found if all(row[key] == value for key, value in wanted.items())]

    def row(self, kind: str, **wanted: Any) -> Row:
        """The only such row."""
        (found,) = self.rows(kind, **wanted)
        return found

    def values(self, name: str) -> list[Any]:
        """An array as lists."""
        return list(self.arrays[name].tolist())

    @property
    def corpora(self) -> list[str]:
        """The names of the corpora."""
        return list(self.content["data"])

    @property
    def whole(self) -> str:
        """The scope of all the data."""
        return ALL if len(self.corpora) > 1 else self.corpora[0]

    @property
    def scopes(self) -> list[str]:
        """Every corpus, and all of them if there are several."""
        return self.corpora + ([ALL] if len(self.corpora) > 1 else [])

    @property
    def layers(self) -> list[int]:
        """The numbers of the layers with experts."""
        return list(self.content["layers"])

    @property
    def ratios(self) -> list[float]:
        """The fractions removed."""
        return list(dict.fromkeys(row["ratio"] for row in self.rows("masks")))

    @property
    def criteria(self) -> list[str]:
        """The criteria that depend on data."""
        return list(dict.fromkeys(row["criterion"] for row in self.rows("masks") if not row["fixed"]))

    @property
    def fixed(self) -> list[str]:
        """The criteria that do not."""
        return list(dict.fromkeys(row["criterion"] for row in self.rows("masks") if row["fixed"]))

    def tokens(self, scope: str) -> int:
        """The calibration tokens of a scope."""
        sizes = {name: corpus["tokens"] for name, corpus in self.content["data"].items()}
        return sum(sizes.values()) if scope == ALL else int(sizes[scope])

    def in_common(self, scope: str) -> float:
        """The share of text that draws with different seeds have in common."""
        shares: dict[str, float] = self.content["in_common"]
        return mean(shares.values()) if scope == ALL else shares[scope]

    def by_stability(self, ratio: float) -> list[Row]:
        """The rows of all the data at a ratio, the most stable criterion first, without those of no data."""
        rows = self.rows("masks", scope=self.whole, ratio=ratio, fixed=False)
        return sorted(rows, key=lambda row: (-_middle(row), row["criterion"]))

    def within(self, criterion: str, ratio: float) -> tuple[float, float]:
        """Means over corpora of the bracket of each alone: what is expected of other text of the same corpus."""
        rows = [self.row("masks", scope=name, criterion=criterion, ratio=ratio) for name in self.corpora]
        return mean(row["halves"] for row in rows), mean(row["index"] for row in rows)


def read_findings(folder: Path) -> Findings:
    """The findings of an audit's artifact."""
    from safetensors.torch import load_file

    return Findings(json.loads((folder / AUDIT).read_text()), load_file(folder / ARRAYS))


def inverted(row: Row) -> bool:
    """Whether halves agree more than resamples: a bracket that encloses nothing."""
    return bool(row["halves"] > row["index"])


def alike(one: Row, other: Row) -> bool:
    """Whether the brackets of two masks overlap or one is inverted: nothing then tells which is the more stable."""
    within = max(one["halves"], other["halves"]) <= min(one["index"], other["index"])
    return bool(within or inverted(one) or inverted(other))


def _middle(row: Row) -> float:
    """Of the bracket within which masks of other data agree."""
    return float(row["halves"] + row["index"]) / 2


def runs_of(numbers: Sequence[int]) -> str:
    """Ascending numbers in words, such as `2 to 4 and 7`."""
    groups: list[str] = []
    for _, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        groups += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run)
    return " and ".join([", ".join(groups[:-1]), groups[-1]] if len(groups) > 2 else groups)
