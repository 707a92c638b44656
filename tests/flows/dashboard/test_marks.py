"""Stale and missing marks of a real project after its run: what changed, what follows from it, where bytes are."""

import json
import re
import shutil
from pathlib import Path

import pytest
import sample

from flows.dashboard import lists
from flows.dashboard.details import details, manifest
from flows.dashboard.index import Entry
from flows.dashboard.living import Living
from flows.dashboard.models import card, models
from tasks.artifacts import MANIFEST, Store
from tasks.tracking import Tracker


def looked_at(project: Path) -> Living:
    """All that the dashboard finds out by itself."""
    store = Store(project / ".moeprune")
    living = Living(Tracker(store), store, project)
    living.read()
    living.check(600)
    assert living.unchecked == 0
    return living


def only(living: Living) -> Entry:
    (entry,) = living.index.entries.values()
    return entry


def stale(living: Living) -> dict[str, str]:
    """Why stages are stale, by their titles."""
    reasons = living.marks.stale
    return {one.title: reasons[one.path] for one in only(living).lineage.stages if one.path in reasons}


def missing(living: Living) -> set[str]:
    return {one.title for one in only(living).lineage.stages if living.marks.missing(one.path)}


def test_marks_untouched_project_has_none(done):
    living = looked_at(done)
    assert (stale(living), missing(living), dict(living.marks.unknown)) == ({}, set(), {})
    assert set(living.marks.places.values()) == {"store"}


def test_marks_edited_source_makes_its_corpus_stale_and_all_that_follows(done):
    sample.write_lines(done / "sources/wiki.jsonl", [{"text": "other words than before"}] * 60)
    found = stale(looked_at(done))
    assert found["calibrate wiki"] == "changed since: source"
    assert found["observe wiki"] == "made from corpus wiki, which is stale"
    assert {"score reap", "mask", "prune", "evaluate pruned"} <= found.keys()
    assert not {"download", "calibrate code", "observe code", "evaluate base"} & found.keys()


def test_marks_other_code_makes_its_stage_stale(done, monkeypatch):
    monkeypatch.setattr("tasks.observe.code_digest", lambda *_: "as if the arithmetic had changed")
    found = stale(looked_at(done))
    assert found["observe wiki"] == found["observe code"] == "changed since: code"
    assert "calibrate wiki" not in found and found["score reap"].startswith("made from statistics")


def test_marks_source_that_is_gone_leaves_staleness_unknown(done):
    (done / "sources/wiki.jsonl").unlink()
    living = looked_at(done)
    assert stale(living) == {}
    assert {"there is no file sources/wiki.jsonl" in why for why in living.marks.unknown.values()} == {True}
    shown = details(only(living).lineage.stages[0].path, living.index, living.marks)
    assert "there is no file sources/wiki.jsonl" in str(shown.marks) and "not known whether" in str(shown.marks)
    assert lists.marks_of(only(living), living.marks) == "not known whether stale"


def test_marks_lost_results_are_missing_but_for_what_dvc_has(done):
    stages = {one.title: one for one in only(looked_at(done)).lineage.stages}
    for title in ("calibrate wiki", "observe wiki", "mask"):
        shutil.rmtree(done / ".moeprune" / stages[title].path)
    living = looked_at(done)
    assert missing(living) == {"observe wiki"}
    assert {living.marks.places[stages[title].path] for title in ("calibrate wiki", "mask")} == {"DVC cache"}

    shutil.rmtree(done / ".dvc/cache")
    assert missing(looked_at(done)) == {"calibrate wiki", "observe wiki", "mask"}


def test_marks_file_that_was_cut_short_is_missing(done):
    prune = next(one for one in only(looked_at(done)).lineage.stages if one.stage == "prune")
    file = next((done / ".moeprune" / prune.path).glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    assert missing(looked_at(done)) == {"prune"}


def test_marks_recipe_that_trusts_code_runs_none_of_it(done, monkeypatch):
    ran = done / "ran"
    model = done / "model"
    (model / "configuration_own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "configuration_own.OwnConfig"}
    (model / "config.json").write_text(json.dumps(config))
    store = Store(done / ".moeprune")
    before = looked_at(done)
    text = "flows.dashboard.living.recipe_text"
    kept = (done / ".moeprune/mlruns" / only(before).id / "artifacts/recipe.yaml").read_text()
    monkeypatch.setattr(text, lambda *_: kept.replace("trust_remote_code: false", "trust_remote_code: true"))
    living = looked_at(done)
    assert store.root.is_dir() and not ran.exists()
    assert "download" in stale(living)


def test_details_tell_hashes_commit_and_maker_as_the_store_has_them(done):
    living = looked_at(done)
    entry = only(living)
    mask = next(one for one in entry.lineage.stages if one.stage == "mask")
    kept = json.loads((done / ".moeprune" / mask.path / MANIFEST).read_text())
    found = details(mask.path, living.index, living.marks)
    assert found.facts["digest (sha256)"] == kept["digest"] and found.facts["key"] == kept["key"]
    assert found.facts["git commit"] == sample.git(done, "rev-parse", "HEAD").strip()
    assert found.facts["produced by run"] == f"whole ({entry.id})"
    assert found.facts["cache"] == "hit in 0 of 1 runs"
    assert {path.split("/")[0] for path in found.origins} == {"download", "score"}
    assert {path.split("/")[0] for path in found.products} == {"prune"}
    assert manifest(found.node, living.tracker) == kept


def test_details_manifest_comes_from_the_tracker_where_the_store_lost_it(done):
    living = looked_at(done)
    mask = next(one for one in only(living).lineage.stages if one.stage == "mask")
    kept = json.loads((done / ".moeprune" / mask.path / MANIFEST).read_text())
    shutil.rmtree(done / ".moeprune" / mask.path)
    assert manifest(living.index.nodes[mask.path], living.tracker) == kept


def test_card_has_no_html_and_says_what_the_hub_folds(done):
    living = looked_at(done)
    made = only(living).lineage.final
    assert made is not None
    said = card(models(living)[made.path], living)
    assert not re.search(r"</?[a-z]+[ >]", said)
    assert re.search(r"^\*\*Experts removed.*\*\*$", said, re.MULTILINE)


def test_living_second_look_adds_what_is_new_and_a_third_nothing(done, monkeypatch):
    living = looked_at(done)
    with living.tracker.run("later", {"download": {"source": "model"}}, {"method": "reap"}) as run:
        living.read()
        assert list(living.index.entries) == [run.id, only_other(living, run.id)]
        assert living.index.entries[run.id].lineage.run.status == "RUNNING"
    living.read()
    assert living.index.entries[run.id].lineage.run.status == "FINISHED"


def only_other(living: Living, run: str) -> str:
    (other,) = living.index.entries.keys() - {run}
    return other


@pytest.mark.parametrize("trouble", [OSError("the disk is away"), ValueError("no such table")])
def test_living_trouble_is_told_and_passes(done, monkeypatch, trouble):
    living = looked_at(done)
    look = living.read
    calls = []

    def fail() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise trouble
        look()
        living.stop()

    monkeypatch.setattr(living, "read", fail)
    monkeypatch.setattr("flows.dashboard.living.AGAIN", 0.01)
    told = []
    monkeypatch.setattr("logging.Logger.warning", lambda *words: told.append(words))
    living._run()
    assert str(trouble) in str(told) and living.trouble == ""
