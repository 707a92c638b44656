"""What runs and sweeps come to."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from flows.chain import Products
from flows.recipe import Recipe
from tasks import comparison, versioning
from tasks.artifacts import Artifact, Step, Store

DELTA = "delta"
"""Key of the paired differences, pruned minus base; `delta_distilled` and `delta_skipped` are of those."""


@dataclass(frozen=True)
class Record:
    """One stage of a run as it went."""

    step: Step
    artifact: Artifact
    cache: Literal["hit", "miss"]
    seconds: float
    work: float
    """Seconds the result took when it was made."""


@dataclass
class Outcome:
    """What a run comes to: its id in the tracker, its stages, and the measured metrics."""

    run_id: str
    records: list[Record] = field(default_factory=list)
    made: Products = field(default_factory=Products)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    computed: set[str] = field(default_factory=set)
    """The models whose memory is computed, not measured: those of virtual masks."""
    pooled: dict[str, list[str]] = field(default_factory=dict)
    """The metrics of groups of tasks that pool questions, by the metrics pooled."""
    versions: dict[str, versioning.Version] = field(default_factory=dict)

    def measure(self, store: Store) -> None:
        """Read the reports, and compare each model with the base pair by pair."""
        folders = {of: store.folder(report) for of, report in self.made.reports.items() if report is not None}
        for of, folder in folders.items():
            content = json.loads((folder / comparison.REPORT).read_text())
            self.metrics[of], self.memory[of] = content["metrics"], content["memory"]
            self.pooled |= content["pooled"]
            if content["memory_known"] == "computed":
                self.computed.add(of)
        for of, delta in self.deltas():
            self.metrics[delta] = comparison.compare(folders["base"], folders[of])

    def deltas(self) -> Iterator[tuple[str, str]]:
        """Each measured model but the base, and the key of its differences from it."""
        for of in self.made.reports if "base" in self.made.reports else ():
            if of != "base":
                yield of, DELTA if of == "pruned" else f"{DELTA}_{of}"


@dataclass(frozen=True)
class Entry:
    """A recipe of a sweep, by its number from 1, and what it came to: an outcome, or the error it failed with."""

    number: int
    recipe: Recipe
    outcome: Outcome | None = None
    error: str | None = None


@dataclass(frozen=True)
class Sweep:
    """The recipes of a sweep, in order, and what each came to."""

    name: str
    run_id: str
    entries: list[Entry]

    @property
    def recipes(self) -> list[Recipe]:
        """Those that were done."""
        return [entry.recipe for entry in self.entries if entry.outcome is not None]

    @property
    def outcomes(self) -> list[Outcome]:
        """What each of `recipes` came to, in the same order."""
        return [entry.outcome for entry in self.entries if entry.outcome is not None]

    @property
    def failed(self) -> list[Entry]:
        """Those that were not done."""
        return [entry for entry in self.entries if entry.outcome is None]
