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
from flows.dashboard.models import card, models_of
from flows.dashboard.watching import Watcher
from tasks.artifacts import MANIFEST, Store
from tasks.tracking import Tracker


def looked_at(project: Path) -> Watcher:
    """All that the dashboard finds out by itself."""
    store = Store(project / ".moeprune")
    watcher = Watcher(Tracker(store), store, project)
    watcher.read()
    watcher.check(600)
    assert watcher.unchecked == 0
    return watcher


def only(watcher: Watcher) -> Entry:
    (entry,) = watcher.index.entries.values()
    return entry


def stale(watcher: Watcher) -> dict[str, str]:
    """Why stages are stale, by their titles."""
    reasons = watcher.marks.stale
    return {one.title: reasons[one.path] for one in only(watcher).lineage.stages if one.path in reasons}


def missing(watcher: Watcher) -> set[str]:
    return {one.title for one in only(watcher).lineage.stages if watcher.marks.missing(one.path)}


def test_marks_untouched_project_has_none(done):
    watcher = looked_at(done)
    assert (stale(watcher), missing(watcher), dict(watcher.marks.unknown)) == ({}, set(), {})
    assert set(watcher.marks.places.values()) == {"store"}


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
    watcher = looked_at(done)
    assert stale(watcher) == {}
    assert {"there is no file sources/wiki.jsonl" in why for why in watcher.marks.unknown.values()} == {True}
    shown = details(only(watcher).lineage.stages[0].path, watcher.index, watcher.marks)
    assert "there is no file sources/wiki.jsonl" in str(shown.marks) and "not known whether" in str(shown.marks)
    assert lists.marks_of(only(watcher), watcher.marks) == "not known whether stale"


def test_marks_lost_results_are_missing_but_for_what_dvc_has(done):
    stages = {one.title: one for one in only(looked_at(done)).lineage.stages}
    for title in ("calibrate wiki", "observe wiki", "mask"):
        shutil.rmtree(done / ".moeprune" / stages[title].path)
    watcher = looked_at(done)
    assert missing(watcher) == {"observe wiki"}
    assert {watcher.marks.places[stages[title].path] for title in ("calibrate wiki", "mask")} == {"DVC cache"}

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
    text = "flows.dashboard.watching.recipe_text"
    kept = (done / ".moeprune/mlruns" / only(before).id / "artifacts/recipe.yaml").read_text()
    monkeypatch.setattr(text, lambda *_: kept.replace("trust_remote_code: false", "trust_remote_code: true"))
    watcher = looked_at(done)
    assert store.root.is_dir() and not ran.exists()
    assert "download" in stale(watcher)


def test_details_tell_hashes_commit_and_maker_as_the_store_has_them(done):
    watcher = looked_at(done)
    entry = only(watcher)
    mask = next(one for one in entry.lineage.stages if one.stage == "mask")
    kept = json.loads((done / ".moeprune" / mask.path / MANIFEST).read_text())
    found = details(mask.path, watcher.index, watcher.marks)
    assert found.facts["digest (sha256)"] == kept["digest"] and found.facts["key"] == kept["key"]
    assert found.facts["git commit"] == sample.git(done, "rev-parse", "HEAD").strip()
    assert found.facts["produced by run"] == f"whole ({entry.id})"
    assert found.facts["cache"] == "hit in 0 of 1 runs"
    assert {path.split("/")[0] for path in found.origins} == {"download", "score"}
    assert {path.split("/")[0] for path in found.products} == {"prune"}
    assert manifest(found.node, watcher.tracker) == kept


def test_details_manifest_comes_from_the_tracker_where_the_store_lost_it(done):
    watcher = looked_at(done)
    mask = next(one for one in only(watcher).lineage.stages if one.stage == "mask")
    kept = json.loads((done / ".moeprune" / mask.path / MANIFEST).read_text())
    shutil.rmtree(done / ".moeprune" / mask.path)
    assert manifest(watcher.index.nodes[mask.path], watcher.tracker) == kept


def test_card_has_no_html_and_says_what_the_hub_folds(done):
    watcher = looked_at(done)
    made = only(watcher).lineage.final
    assert made is not None
    said = card(models_of(watcher)[made.path], watcher)
    assert not re.search(r"</?[a-z]+[ >]", said)
    assert re.search(r"^\*\*Experts removed.*\*\*$", said, re.MULTILINE)


def test_watcher_second_look_adds_what_is_new_and_a_third_nothing(done, monkeypatch):
    watcher = looked_at(done)
    with watcher.tracker.run("later", {"download": {"source": "model"}}, {"method": "reap"}) as run:
        watcher.read()
        assert list(watcher.index.entries) == [run.id, only_other(watcher, run.id)]
        assert watcher.index.entries[run.id].lineage.run.status == "RUNNING"
    watcher.read()
    assert watcher.index.entries[run.id].lineage.run.status == "FINISHED"


def only_other(watcher: Watcher, run: str) -> str:
    (other,) = watcher.index.entries.keys() - {run}
    return other


@pytest.mark.parametrize("trouble", [OSError("the disk is away"), ValueError("no such table")])
def test_watcher_trouble_is_told_and_passes(done, monkeypatch, trouble):
    watcher = looked_at(done)
    look = watcher.read
    calls = []

    def fail() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise trouble
        look()
        watcher.stop()

    monkeypatch.setattr(watcher, "read", fail)
    monkeypatch.setattr("flows.dashboard.watching.AGAIN", 0.01)
    told = []
    monkeypatch.setattr("logging.Logger.warning", lambda *words: told.append(words))
    watcher._run()
    assert str(trouble) in str(told) and watcher.trouble == ""
