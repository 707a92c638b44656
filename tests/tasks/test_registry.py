"""The registry in a database of its own, as MLflow's client sees it afterwards."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from moeprune.errors import BadInput
from tasks.artifacts import Store
from tasks.registry import Registry, Version
from tasks.tracked import LoggedModel
from tasks.tracking import Tracker


@pytest.fixture(params=["database", "server"])
def tracker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    """One that has nothing yet: a database in its store, or an experiment of the team's server."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if request.param == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("mlflow_url"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = Tracker(Store(tmp_path / "store"))
    found.check()
    return found


@pytest.fixture
def name(tmp_path: Path) -> str:
    """Of a model that nobody has registered."""
    return f"{tmp_path.name}-pruned"


def client_of(tracker: Tracker) -> MlflowClient:
    return MlflowClient(tracking_uri=tracker.uri, registry_uri=tracker.uri)


def made(tracker: Tracker, *digests: str) -> tuple[list[LoggedModel], str]:
    """Models of these digests as one run logs them, in that order, and the run's id."""
    with tracker.run("made", {}) as run:
        for digest in digests:
            run.log_model("pruned", digest, "tiny-6-experts")
    models = {model.digest: model for model in tracker.models()}
    return [models[digest] for digest in digests], run.id


def test_registering_a_checkpoint_twice_is_one_version_and_leaves_nothing_elsewhere(tracker: Tracker, name: str):
    (one, other), run = made(tracker, "a" * 64, "b" * 64)
    registry = Registry(tracker)
    first, second, again = (registry.register(name, model, run) for model in (one, other, one))
    assert first == again == Version(name, 1, "a" * 64, "pruned", one.id, run, (), first.tags)
    assert (second.number, second.digest, second.model) == (2, "b" * 64, other.id)
    assert [version.number for version in Registry(tracker).versions(name)] == [2, 1]
    assert registry.versions("unknown") == []
    # A database keeps no model id beside a version's source: MLflow's pages lead from the model by its tag.
    links = client_of(tracker).get_logged_model(one.id).tags["mlflow.modelVersions"]
    assert links == f'[{{"name": "{name}", "version": 1}}]'
    assert client_of(tracker).get_model_version(name, "1").source == f"models:/{one.id}"
    assert not list(Path.cwd().iterdir()), "MLflow looked into its default database"


def test_alias_names_one_version_at_a_time_and_says_why(tracker: Tracker, name: str):
    models, run = made(tracker, "a" * 64, "b" * 64)
    registry = Registry(tracker)
    first, second = (registry.register(name, model, run) for model in models)
    assert registry.holder(name, "production") is None and registry.holder("unknown", "production") is None
    moved, before = registry.move("candidate", first, run, {})
    assert (moved.number, moved.aliases, before) == (1, ("candidate",), None)
    good, _ = registry.move("production", first, run, {"why": "as it is good"})
    assert good.number == 1
    held, before = registry.move("production", second, "c" * 32, {"why": "as it is better"})
    assert (held.number, held.aliases, held.run) == (2, ("production",), "c" * 32)
    assert json.loads(held.tags["promoted.production"]) == {"why": "as it is better", "before": 1}
    assert before is not None and before.number == 1
    assert registry.holder(name, "production") == held
    assert {version.number: version.aliases for version in registry.versions(name)} == {
        1: ("candidate",),
        2: ("production",),
    }
    held = client_of(tracker).get_registered_model(name).aliases
    assert {alias: int(number) for alias, number in held.items()} == {"candidate": 1, "production": 2}


def test_version_registered_by_hand_is_told_by_its_source(tracker: Tracker, name: str, monkeypatch: pytest.MonkeyPatch):
    (model,), run = made(tracker, "a" * 64)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)  # as a script of somebody's would
    client = client_of(tracker)
    client.create_registered_model(name)
    client.create_model_version(name, f"models:/{model.id}", model_id=model.id)
    client.create_model_version(name, "s3://somewhere/else")
    client.set_registered_model_alias(name, "champion", "1")
    strange, own = Registry(tracker).versions(name)
    assert (own.digest, own.model, own.run, own.aliases) == ("a" * 64, model.id, run, ("champion",))
    assert (strange.digest, strange.model, strange.run, strange.aliases) == ("", "", "", ())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    assert Registry(Tracker(tracker.store)).versions(name) == [strange, own]
    client.delete_logged_model(model.id)
    assert [version.number for version in Registry(tracker).versions(name)] == [2, 1]


def test_versions_are_read_while_models_come_and_go(tracker: Tracker, name: str, monkeypatch: pytest.MonkeyPatch):
    (one, other), run = made(tracker, "a" * 64, "b" * 64)
    registry = Registry(tracker)
    registry.register(name, one, run)
    searches = {what: getattr(registry._client, what) for what in ("search_registered_models", "search_model_versions")}

    def change(what: str, how: Callable[[], object]) -> None:
        def search(**words: object) -> object:
            found = searches[what](**words)
            monkeypatch.setattr(registry._client, what, searches[what])
            how()
            return found

        monkeypatch.setattr(registry._client, what, search)

    change("search_registered_models", lambda: Registry(tracker).register(f"{name}-other", other, run))
    assert [version.digest for version in registry.versions(name)] == ["a" * 64]
    change("search_model_versions", lambda: client_of(tracker).delete_registered_model(name))
    assert [version.aliases for version in registry.versions(name)] in ([()], [])
    assert registry.versions(name) == []


def test_aliases_moved_at_once_name_one_another_as_before(tracker: Tracker, name: str):
    models, run = made(tracker, *(letter * 64 for letter in "abcd"))
    registry = Registry(tracker)
    versions = [registry.register(name, model, run) for model in models]
    with ThreadPoolExecutor(4) as pool:
        moved = list(pool.map(lambda version: Registry(tracker).move("production", version, run, {}), versions))
    followed = [before.number if before else 0 for _, before in moved]
    last = registry.holder(name, "production")
    # Each follows another, and only the last one nobody: had two read the same alias, both would follow it.
    assert last is not None and sorted([*followed, last.number]) == [0, 1, 2, 3, 4]


def test_name_that_no_model_can_have_is_refused(tracker: Tracker):
    with pytest.raises(BadInput, match="'a/b' is no name of a registered model: "):
        Registry(tracker).holder("a/b", "production")
