"""The dashboard's look at its tracker, with what goes wrong there."""

from contextlib import ExitStack

import many_runs
import pytest
from mlflow.tracking import MlflowClient
from recorded import stage

from flows.dashboard import lists
from flows.dashboard import living as looking
from flows.dashboard.details import details
from flows.dashboard.index import Node, Use
from flows.dashboard.living import Living
from flows.dashboard.marks import places
from tasks import versioning
from tasks.artifacts import Store
from tasks.tracking import Tracker

AWAY = "['remote \"away\"']\n    url = http://127.0.0.1:9/objects\n"
"""A remote on a port where nothing listens."""


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    folder = tmp_path_factory.mktemp("living")
    many_runs.make(folder, 4)
    return Store(folder)


def new(store: Store) -> Living:
    return Living(Tracker(store), store, store.root)


def test_living_whole_read_that_fails_is_tried_again_at_the_next_look(store, monkeypatch):
    living = new(store)
    read, calls = living.tracker.runs_with_stages, []

    def fail_once(*words):
        calls.append(words)
        if len(calls) == 2:
            raise OSError("the server starts anew")
        return read(*words)

    monkeypatch.setattr(looking, "FIRST", 2)
    monkeypatch.setattr(living.tracker, "runs_with_stages", fail_once)
    with pytest.raises(OSError, match="starts anew"):
        living.read()
    assert len(living.index.entries) == 2 and not living.whole
    living.read()
    assert len(living.index.entries) == 4 and living.whole and living.unchecked == 4


def test_living_asks_the_tracker_as_often_for_many_runs_as_for_one(store, monkeypatch):
    asked = []

    def counted(name):
        ask = getattr(MlflowClient, name)
        return lambda *words, **options: asked.append(name) or ask(*words, **options)

    living = new(store)
    living.tracker.check()
    monkeypatch.setattr(looking, "FIRST", 4)
    for name in dir(MlflowClient):
        if name.startswith(("search_", "get_", "list_", "download_")):
            monkeypatch.setattr(MlflowClient, name, counted(name))
    living.read()
    assert len(asked) <= 11  # the newest runs: 5, all of them: 3, the registry: 3
    with ExitStack() as opened:
        for name in "abc":
            opened.enter_context(living.tracker.run(name, {}))
        for _ in range(2):
            asked.clear()
            living.read()
            assert len(asked) <= 3 and len(living.index.entries) == 7
    for run in living.tracker.list_runs(3):
        MlflowClient(living.tracker.uri).delete_run(run.id)


def test_living_run_whose_record_is_damaged_is_told_and_leaves_the_others(store):
    living = new(store)
    run, other = living.tracker.list_runs(2)
    stage = living.tracker.find_run(run.id).children[0]
    key = stage.tags["key"]
    living.tracker.tag(stage.id, "key", "../../etc")
    try:
        living.read()
        assert other.id in living.index.entries and run.id not in living.index.entries
        assert "1 run cannot be shown" in lists.status(living) and "../../etc" in lists.status(living)
    finally:
        living.tracker.tag(stage.id, "key", key)
    living.refresh()
    living.read()
    assert run.id in living.index.entries and "cannot be shown" not in lists.status(living)


def test_living_recipe_that_nobody_understands_is_told_of_its_run_alone(store):
    living = new(store)
    living.read()
    run = next(iter(living.index.entries.values()))
    recipe = store.root / "mlruns" / run.id / "artifacts/recipe.yaml"
    kept = recipe.read_bytes()
    recipe.write_text("- a list\n")
    try:
        living.check(600)
    finally:
        recipe.write_bytes(kept)
    assert living.unchecked == 0
    assert "TypeError" in living.marks.unknown[run.lineage.find("prune").path]
    assert "not known whether stale" in lists.marks_of(run, living.marks)


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


def test_living_bytes_behind_a_remote_that_does_not_answer_are_not_missing(store):
    versioning.init(store.root)
    with (store.root / ".dvc/config").open("a") as config:
        config.write(AWAY)
    living = new(store)
    living.read()
    mask = next(iter(living.index.entries.values())).lineage.find("mask")
    (store.root / mask.path / "mask.json").rename(store.root / "mask.json")
    try:
        living.check(0)
    finally:
        (store.root / "mask.json").rename(store.root / mask.path / "mask.json")
    assert not living.marks.missing(mask.path)
    shown = details(mask.path, living.index, living.marks)
    assert "'away'" in shown.facts["bytes found in"]
    living.refresh()
    living.read()
    living.check(0)
    assert living.marks.places[mask.path] == "store" and mask.path not in living.marks.unseen
