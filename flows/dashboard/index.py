"""What the tracker has recorded, in memory: runs, the results they share, and a search over both."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from functools import cached_property

from tasks.lineage import Lineage, Stage

KINDS = {
    "download": "base model",
    "calibrate": "corpus",
    "observe": "statistics",
    "score": "scores",
    "mask": "mask",
    "prune": "pruned model",
    "distill": "distilled model",
    "evaluate": "evaluation",
    "resample": "resampled mask",
    "audit": "audit",
}
"""What a stage's result is called, in the order in which a graph is read; others are called what their stage is."""
MODELS = ("base model", "pruned model", "distilled model")
BUDGETS = ("ratio", "keep", "bytes", "sparsity")


@dataclass(frozen=True)
class Use:
    """A run that has a node: its stage there says whether it was found or made."""

    run: str
    stage: Stage


@dataclass(frozen=True)
class Node:
    """A result, named by its place in a store; runs that came to the same result share it."""

    path: str
    uses: tuple[Use, ...]
    """Newest first."""

    @property
    def stage(self) -> Stage:
        """As the newest run has it."""
        return self.uses[0].stage

    @property
    def kind(self) -> str:
        """One of KINDS' values, or the stage: a newer moeprune may have more of them."""
        return KINDS.get(self.stage.stage, self.stage.stage)

    @property
    def label(self) -> str:
        """What it is, in a few words."""
        return f"{self.kind} {self.stage.of}".strip()

    @property
    def maker(self) -> Use | None:
        """The run that made what is there now, if it is known: what the newest run names, else the newest miss."""
        named = self.stage.produced_by
        made = (use for use in self.uses if (use.stage.id == named if named else use.stage.cache == "miss"))
        return next(made, None)


@dataclass(frozen=True)
class Entry:
    """A run in lists: what it pruned, by what, with which text."""

    lineage: Lineage

    @property
    def id(self) -> str:
        """The tracker's."""
        return self.lineage.run.id

    @property
    def model(self) -> str:
        """The base model's source."""
        return self.lineage.run.params.get("download.source", "")

    @property
    def method(self) -> str:
        """The criterion and its options."""
        return self.lineage.run.tags.get("method", "")

    @cached_property
    def corpora(self) -> tuple[str, ...]:
        """Names of the calibration corpora."""
        listed = self.lineage.run.params.get("calibrate.corpora")
        try:
            return tuple(one["name"] for one in json.loads(listed)) if listed else ()
        except (ValueError, TypeError, KeyError):  # a list too long for a param was cut
            return tuple(dict.fromkeys(one.of for one in self.lineage.stages if one.stage == "calibrate"))

    @property
    def audit(self) -> bool:
        """Whether it is an audit, which makes no model."""
        return self.lineage.run.tags.get("kind") == "audit"

    @property
    def budget(self) -> str:
        """What was asked to go or to stay, such as `ratio 0.25`."""
        params = self.lineage.run.params
        given = [(name, params.get(f"mask.{name}", "null")) for name in BUDGETS]
        return ", ".join(f"{name} {value}" for name, value in given if value != "null")

    @property
    def final(self) -> str:
        """The model it is for, as metrics name it."""
        return "distilled" if self.lineage.find("distill") else "pruned"

    @cached_property
    def words(self) -> str:
        """Everything a search looks at, in small letters: names, ids, keys, digests, md5s, commits."""
        run = self.lineage.run
        said = [run.id, run.name, run.status, self.model, self.method, self.budget, *self.corpora]
        for one in self.lineage.stages:
            said += [one.title, one.key, one.digest, one.md5 or "", one.git_commit or ""]
        return " ".join(said).lower()


@dataclass(frozen=True)
class Wanted:
    """What a reader asks for; empty fields ask for nothing."""

    text: str = ""
    model: str = ""
    method: str = ""
    corpus: str = ""
    first: date | None = None
    """Days in universal time, both included."""
    last: date | None = None

    def fits(self, entry: Entry) -> bool:
        """Whether a run has all that is asked for; every word of the text must be found somewhere."""
        start = entry.lineage.run.start
        return (
            (not self.model or entry.model == self.model)
            and (not self.method or entry.method == self.method)
            and (not self.corpus or self.corpus in entry.corpora)
            and (self.first is None or start >= datetime.combine(self.first, time.min, UTC))
            and (self.last is None or start <= datetime.combine(self.last, time.max, UTC))
            and all(word in entry.words for word in self.text.lower().split())
        )


@dataclass(frozen=True)
class Index:
    """All runs, newest first, as they were when `read`."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    read: datetime | None = None

    @classmethod
    def of(cls, lineages: Iterable[Lineage], read: datetime) -> "Index":
        """Of runs in any order."""
        return cls().updated(lineages, read)

    def updated(self, lineages: Iterable[Lineage], read: datetime) -> "Index":
        """With these runs added, or in place of what was known of them."""
        known = {**self.entries, **{one.run.id: Entry(one) for one in lineages}}
        ordered = sorted(known.values(), key=lambda entry: entry.lineage.run.start, reverse=True)
        return Index({entry.id: entry for entry in ordered}, read)

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """Every result by its place in a store."""
        uses: dict[str, list[Use]] = {}
        for entry in self.entries.values():
            for stage in entry.lineage.stages:
                uses.setdefault(stage.path, []).append(Use(entry.id, stage))
        return {path: Node(path, tuple(found)) for path, found in uses.items()}

    @cached_property
    def read_by(self) -> dict[str, list[str]]:
        """The results that were made from one, by its place."""
        found: dict[str, list[str]] = {}
        for path, node in self.nodes.items():
            for origin in dict.fromkeys(node.stage.inputs.values()):
                found.setdefault(origin, []).append(path)
        return found

    def choices(self, name: str) -> list[str]:
        """What runs have as `model`, `method` or `corpora`, in alphabetical order."""
        values: set[str] = set()
        for entry in self.entries.values():
            found = getattr(entry, name)
            values.update(found if isinstance(found, tuple) else (found,))
        return sorted(values - {""})

    def search(self, wanted: Wanted) -> list[Entry]:
        """The runs that have all that is asked for, newest first."""
        return [entry for entry in self.entries.values() if wanted.fits(entry)]

    def those(self, runs: Sequence[str]) -> list[Entry]:
        """The runs with these ids, of those that are known."""
        return [self.entries[run] for run in runs if run in self.entries]

    def graph(self, runs: Sequence[str]) -> dict[str, Node]:
        """The results of these runs, by their places."""
        return {stage.path: self.nodes[stage.path] for entry in self.those(runs) for stage in entry.lineage.stages}
