"""Which runs have a model to hand over."""

from dataclasses import replace
from pathlib import Path

import pytest
import recorded

from flows.handover.made import made_by
from moeprune.errors import BadInput
from tasks.artifacts import Store
from tasks.lineage import Lineage
from tasks.tracked import LoggedModel

WORDS = ("download", "mask", "prune", "distill", "evaluate", "audit")
STAGES = {word: recorded.stage(word, f"key-of-{word}") for word in WORDS}


def model(kind: str, word: str) -> LoggedModel:
    return LoggedModel(f"m-{kind}", f"tiny-{kind}", kind, STAGES[word].digest, "a" * 32, {})


BASE, PRUNED, DISTILLED = model("base", "download"), model("pruned", "prune"), model("distilled", "distill")


def lineage(*words: str) -> Lineage:
    return replace(recorded.lineage("a" * 32, *(STAGES[word] for word in words)), models=(BASE, PRUNED, DISTILLED))


def killed(found: Lineage) -> Lineage:
    return replace(found, run=replace(found.run, status="KILLED"))


def test_model_of_a_run_is_the_last_that_it_made():
    pruned = made_by(lineage("download", "mask", "prune"), Store(Path("store")))
    assert (pruned.model.id, pruned.kind, pruned.base.id) == ("m-pruned", "pruned", "m-base")
    assert pruned.folder == Path("store/prune/key-of-prune")
    distilled = made_by(lineage("download", "mask", "prune", "distill"), Store(Path("store")))
    assert (distilled.model.id, distilled.kind) == ("m-distilled", "distilled")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            lineage("download", "mask", "evaluate"),
            "its mask is virtual: run its recipe with --set evaluate.virtual=false",
        ),
        (lineage("download", "mask", "audit"), "it is an audit: give a run that prunes"),
        (killed(lineage("download", "prune")), "is KILLED, not FINISHED"),
        (replace(lineage("download", "prune"), models=(BASE,)), "the tracker has no record of its model"),
        (replace(lineage("download", "prune"), models=(PRUNED,)), "the tracker has no record of its base model"),
    ],
    ids=["virtual", "audit", "killed", "no model", "no base model"],
)
def test_run_that_has_no_model_to_hand_over_is_refused(found: Lineage, words: str):
    with pytest.raises(BadInput, match=rf"^run aaaaaaaa .*{words}"):
        made_by(found, Store(Path("store")))
