"""What a sweep or an audit would run: how many stages are wanted, and how few those are."""

from collections.abc import Iterable
from dataclasses import dataclass

from flows.walk import Walk, Wanted

STAGES = ("download", "calibrate", "observe", "score", "audit", "resample", "mask", "prune", "distill", "evaluate")


@dataclass(frozen=True)
class Count:
    """Of one stage: how many are wanted by all recipes, how many of them differ, and how many of those are there.

    Where the inputs of a stage are still to be made, results may turn out equal: then fewer are run than are told.
    """

    wanted: int
    distinct: int
    stored: int

    @property
    def to_run(self) -> int:
        """Those that the store does not have."""
        return self.distinct - self.stored


@dataclass(frozen=True)
class SweepPlan:
    """The counts by stage, of so many recipes, some of which were listed twice; of one audit."""

    recipes: int
    repeated: int
    stages: dict[str, Count]

    @property
    def total(self) -> Count:
        """Of all stages together."""
        counts = self.stages.values()
        return Count(*(sum(getattr(count, name) for count in counts) for name in ("wanted", "distinct", "stored")))


def plan_of(walks: list[Walk], repeated: int = 0) -> SweepPlan:
    """Count the stages of walks."""
    return SweepPlan(len(walks), repeated, counts([stage for walk in walks for stage in walk.wanted]))


def counts(wanted: list[Wanted]) -> dict[str, Count]:
    """Of each kind of stage that is wanted."""
    stages = {word: _count(stage for stage in wanted if stage.step.stage == word) for word in STAGES}
    return {word: count for word, count in stages.items() if count.wanted}


def _count(stages: Iterable[Wanted]) -> Count:
    found = list(stages)
    there = {stage.identity: stage.artifact is not None for stage in found}
    return Count(len(found), len(there), sum(there.values()))
