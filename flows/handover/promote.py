"""Promotion: an alias of the registry moves to the model of a run, if the rules in its recipe hold."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from flows.handover.made import MadeModel, find_model, in_hand, measured
from flows.upkeep.needing import note_use
from moeprune.errors import BadInput
from tasks.artifacts import Store
from tasks.gate import PromoteParams, Verdict, judge
from tasks.lineage import recipe_text
from tasks.registry import Registry, Version
from tasks.tracking import Tracker, open_tracker


@dataclass(frozen=True)
class Promotion:
    """What was promoted, over what, and why it might be."""

    alias: str
    version: Version
    before: Version | None
    """What the alias named until now."""
    rules: PromoteParams
    verdicts: list[Verdict]


def promote(name: str, alias: str, root: Path) -> Promotion:
    """Have `alias` name the model of a run (its id, or MODEL@ALIAS). Registers the model if it is not.

    Raises BadInput with the numbers if a rule does not hold, and if the run has no rules, is not measured or its
    checkpoint is not whole in the store: the alias then stays where it is.
    """
    tracker = open_tracker(Store(root))
    made = find_model(name, tracker)
    rules = _rules(made, tracker)
    found = measured(made, tracker)
    verdicts = judge(rules, found.differences, found.less_is_better)
    registry, title = Registry(tracker), rules.model or f"{made.base.name}-pruned"
    held = registry.holder(title, alias)
    if broken := [one for one in verdicts if not one.holds]:
        stays = f"{alias} stays with {held}" if held else f"nothing is {alias} yet"
        raise BadInput(
            f"run {made.run[:8]} ({made.lineage.run.name}) is not promoted to {alias}: "
            f"{'; '.join(in_words(one, rules) for one in broken)}; {stays}: prune less or otherwise, measure on more "
            "text or questions, or change the rules of its recipe and run it again"
        )
    with in_hand(made):
        version = registry.register(title, made.model, made.run)
        version, before = registry.move(alias, version, made.run, _record(made, rules, verdicts))
        tracker.tag(made.run, f"registry.{alias}", f"{version.name}/{version.number}")
        note_use(made.lineage, tracker.store)
    return Promotion(alias, version, before, rules, verdicts)


def _rules(made: MadeModel, tracker: Tracker) -> PromoteParams:
    content: dict[str, Any] = yaml.safe_load(recipe_text(tracker, made.run))
    if not content.get("promote"):
        raise BadInput(
            f"run {made.run[:8]} ({made.lineage.run.name}) has no rules to be judged by: add the section promote to "
            "its recipe, such as promote: {perplexity: {wiki: 0.1}}, and run it again; what is there is not made anew"
        )
    try:
        return PromoteParams.model_validate(content["promote"])
    except ValidationError as error:
        raise BadInput(f"run {made.run[:8]}: promote: {error.errors()[0]['msg']}: run its recipe again") from error


def _record(made: MadeModel, rules: PromoteParams, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": made.run,
        "level": rules.level,
        "verdicts": [asdict(one) for one in verdicts],
    }


def in_words(verdict: Verdict, rules: PromoteParams) -> str:
    """A rule and what was measured, in one sentence."""
    change = "rises" if verdict.metric.startswith("perplexity/") else "falls"
    measured = f"{verdict.metric} {change} by {percent(verdict.loss)} on {verdict.n}"
    if rules.judge == "interval":
        measured += (
            f", its {rules.level:.0%} interval ends at {percent(verdict.worst)}"
            if verdict.worst is not None
            else ", too few for an interval"
        )
    return f"{measured}; at most {percent(verdict.limit)} may be lost"


def percent(part: float) -> str:
    """A fraction in percent."""
    return f"{part:.2%}"
