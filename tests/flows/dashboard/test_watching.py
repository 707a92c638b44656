"""The dashboard's look at its tracker, with what goes wrong there."""

from contextlib import ExitStack

import many_runs
import pytest
from mlflow.tracking import MlflowClient
from recorded import stage

from flows.dashboard import lists
from flows.dashboard import watching as looking
from flows.dashboard.details import details
from flows.dashboard.index import Node, Use
from flows.dashboard.marks import places
from flows.dashboard.watching import Watcher
from tasks import versioning
from tasks.artifacts import Store
from tasks.tracking import Tracker

AWAY = "['remote \"away\"']\n    url = http://127.0.0.1:9/objects\n"
"""A remote on a port where nothing listens."""


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("watched")
    many_runs.make(folder, 4)
    return Store(folder)


def new(store: Store) -> Watcher:
    return Watcher(Tracker(store), store, store.root)


def test_watcher_whole_read_that_fails_is_tried_again_at_the_next_look(store, monkeypatch):
    watcher = new(store)
    read, calls = watcher.tracker.runs_with_stages, []

    def fail_once(*words):
        calls.append(words)
        if len(calls) == 2:
            raise OSError("the server starts anew")
        return read(*words)

    monkeypatch.setattr(looking, "FIRST", 2)
    monkeypatch.setattr(watcher.tracker, "runs_with_stages", fail_once)
    with pytest.raises(OSError, match="starts anew"):
        watcher.read()
    assert len(watcher.index.entries) == 2 and not watcher.whole
    watcher.read()
    assert len(watcher.index.entries) == 4 and watcher.whole and watcher.unchecked == 4


def test_watcher_asks_the_tracker_as_often_for_many_runs_as_for_one(store, monkeypatch):
    asked = []

    def counted(name):
        ask = getattr(MlflowClient, name)
        return lambda *words, **options: asked.append(name) or ask(*words, **options)

    watcher = new(store)
    watcher.tracker.check()
    monkeypatch.setattr(looking, "FIRST", 4)
    for name in dir(MlflowClient):
        if name.startswith(("search_", "get_", "list_", "download_")):
            monkeypatch.setattr(MlflowClient, name, counted(name))
    watcher.read()
    assert len(asked) <= 10  # the newest runs: 4, all of them: 3, the registry: 3
    with ExitStack() as opened:
        for name in "abc":
            opened.enter_context(watcher.tracker.run(name, {}))
        for _ in range(2):
            asked.clear()
            watcher.read()
            assert len(asked) <= 3 and len(watcher.index.entries) == 7
    for run in watcher.tracker.list_runs(3):
        MlflowClient(watcher.tracker.uri).delete_run(run.id)


def test_watcher_run_whose_record_is_damaged_is_told_and_leaves_the_others(store):
    watcher = new(store)
    run, other = watcher.tracker.list_runs(2)
    stage = watcher.tracker.find_run(run.id).children[0]
    key = stage.tags["key"]
    watcher.tracker.tag(stage.id, "key", "../../etc")
    try:
        watcher.read()
        assert other.id in watcher.index.entries and run.id not in watcher.index.entries
        assert "1 run cannot be shown" in lists.status(watcher) and "../../etc" in lists.status(watcher)
    finally:
        watcher.tracker.tag(stage.id, "key", key)
    watcher.refresh()
    watcher.read()
    assert run.id in watcher.index.entries and "cannot be shown" not in lists.status(watcher)


def test_watcher_recipe_that_nobody_understands_is_told_of_its_run_alone(store):
    watcher = new(store)
    watcher.read()
    run = next(iter(watcher.index.entries.values()))
    recipe = store.root / "mlruns" / run.id / "artifacts/recipe.yaml"
    kept = recipe.read_bytes()
    recipe.write_text("- a list\n")
    try:
        watcher.check(600)
    finally:
        recipe.write_bytes(kept)
    assert watcher.unchecked == 0
    assert "TypeError" in watcher.marks.unknown[run.lineage.find("prune").path]
    assert "not known whether stale" in lists.marks_of(run, watcher.marks)


def test_places_behind_a_remote_that_does_not_answer_are_unknown(tmp_path):
    versioning.init(tmp_path)
    node = Node("mask/m", (Use("run", stage("mask", "m", md5="0" * 32)),))
    lost = Node("prune/p", (Use("run", stage("prune", "p")),))
    store = Store(tmp_path / "store")
    assert places([node, lost], store, tmp_path) == ({"mask/m": None, "prune/p": None}, {})
    with (tmp_path / ".dvc/config").open("a") as config:
        config.write(AWAY)
    known, unseen = places([node, lost], store, tmp_path)
    assert known == {"prune/p": None}
    assert list(unseen) == ["mask/m"] and "'away'" in unseen["mask/m"]


def test_watcher_bytes_behind_a_remote_that_does_not_answer_are_not_missing(store):
    versioning.init(store.root)
    with (store.root / ".dvc/config").open("a") as config:
        config.write(AWAY)
    watcher = new(store)
    watcher.read()
    mask = next(iter(watcher.index.entries.values())).lineage.find("mask")
    (store.root / mask.path / "mask.json").rename(store.root / "mask.json")
    try:
        watcher.check(0)
    finally:
        (store.root / "mask.json").rename(store.root / mask.path / "mask.json")
    assert not watcher.marks.missing(mask.path)
    shown = details(mask.path, watcher.index, watcher.marks)
    assert "'away'" in shown.facts["bytes found in"]
    watcher.refresh()
    watcher.read()
    watcher.check(0)
    assert watcher.marks.places[mask.path] == "store" and mask.path not in watcher.marks.unseen
