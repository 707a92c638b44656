"""Cards of models that no test makes whole: what they say where stages are absent or weights, not experts, went."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import recorded
from huggingface_hub import ModelCard

from flows.handover import tables
from flows.handover.card import card
from flows.handover.facts import Facts, origin
from flows.handover.made import made_by
from moeprune.masks import Mask
from tasks.artifacts import Store
from tasks.base_card import BaseCard
from tasks.tracked import LoggedModel

EXPERTS = Mask("base", 4, {0: (0, 2, 3), 2: (0, 1, 2)}).to_json()
WEIGHTS = json.dumps({"format": "moeprune-weights/1", "pattern": "2:4"})
RECIPE: dict[str, Any] = {
    "download": {"source": "owner/base", "trust_remote_code": False},
    "calibrate": None,
    "score": {"criterion": "aimer", "combine": "pooled"},
    "mask": {"selection": "uniform"},
    "distill": None,
    "evaluate": None,
}
MANIFEST = {"producer": {"libraries": {"torch": "2"}}, "files": {"config.json": {"bytes": 1234, "sha256": "abc"}}}


def facts(mask: str = EXPERTS, stages: tuple = (), **recipe: Any) -> Facts:
    """What a card is written from, of a run without measurements."""
    source = {"source.repository": "owner/base", "source.commit": "c" * 40}
    read = recorded.stage("download", "1", params=source)
    kept = recorded.stage("mask", "2", reads=("download/1",))
    made = recorded.stage("prune", "3", reads=("download/1", "mask/2"))
    found = recorded.lineage("a" * 32, read, *stages, kept, made, method="aimer")
    models = tuple(
        LoggedModel(f"m-{one.stage}", f"tiny-{one.stage}", one.stage, one.digest, "", {}) for one in (read, made)
    )
    return Facts(
        made=made_by(replace(found, models=models), Store(Path("store"))),
        recipe=RECIPE | recipe,
        mask=mask,
        manifest=MANIFEST,
        base=BaseCard("owner/base", "c" * 40, {"license": "mit"}),
        silent=None,
        measured=None,
    )


def written(given: Facts) -> ModelCard:
    return ModelCard(card(given, "owner/smaller"))


def test_card_names_the_flow_run_of_its_own_run_and_not_of_who_made_the_checkpoint():
    given = facts()
    run = given.made.lineage.run
    lineage = replace(given.made.lineage, run=replace(run, tags=run.tags | {"flow_run": "its-own"}))
    own = replace(given, made=replace(given.made, lineage=lineage))
    assert "Prefect flow run `its-own`" in written(own).text
    assert "Prefect flow run" not in written(given).text


def test_card_of_a_mask_by_weights_alone_says_what_was_not_done():
    text = written(facts(stages=(recorded.stage("score", "s", of="aimer"),))).text
    assert "2 of its 8 routed experts removed (25.0%)" in text and "Each of 2 layers keeps 3 of 4 experts" in text
    assert "| 0 | 1 | 1 |" in text and "| 2 | 1 | 3 |" in text
    assert "criterion `aimer`" in text and "selection `uniform`" in text
    assert "None: what was removed was chosen by the weights alone." in text and "Nothing was measured." in text
    assert "That of the base model, `mit`." in text


def test_card_names_a_criterion_only_where_one_was_used():
    assert "criterion" not in written(facts()).text


def test_card_of_sparse_weights_promises_no_smaller_model():
    found = written(facts(WEIGHTS, score={"criterion": "wanda", "combine": "pooled"}))
    assert "weights inside its experts set to zero (sparsity 2:4)" in found.text and "criterion `wanda`" in found.text
    assert "its zeros save neither memory nor time" in found.text and "removed (" not in found.text
    assert "sparsity" in found.data.tags and "expert-pruning" not in found.data.tags


def test_card_names_the_data_sets_of_the_hub_each_once():
    names = ("hf://datasets/owner/text@v1/a.jsonl", "hf://datasets/owner/text@v1/b.jsonl", "mine.jsonl")
    corpora = [{"name": str(number), "source": name} for number, name in enumerate(names)]
    assert written(facts(calibrate={"corpora": corpora})).data.datasets == ["owner/text"]
    assert written(facts()).data.datasets is None


def test_card_of_a_base_whose_code_is_its_own_loads_it_with_leave():
    found = written(facts(download={"source": "owner/base", "trust_remote_code": True}))
    assert 'from_pretrained("owner/smaller", dtype="auto", trust_remote_code=True)' in found.text
    assert "vllm serve owner/smaller --trust-remote-code" in found.text and "custom_code" in found.data.tags


def test_origin_of_a_base_is_its_repository_and_commit():
    assert origin(facts().made) == {"repository": "owner/base", "commit": "c" * 40}


def test_names_with_marks_of_markdown_stay_code_on_one_line():
    assert [tables.code(text) for text in ("a/b", "a`b", "``\n|a")] == ["`a/b`", "`` a`b ``", "``` `` |a ```"]
