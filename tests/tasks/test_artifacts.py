"""The store: results whole or absent, verified before they are believed."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sample

from moeprune.errors import BadInput
from tasks.artifacts import Artifact, Runtime, Step, Store, git_state


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def runtime(store: Store) -> Runtime:
    return Runtime(store=store.root)


def step(**params: Any) -> Step:
    return Step("score", "reap", "code", params, {"observe": Artifact(stage="observe", key="k", digest="d")})


def write(text: str) -> Any:
    """A build function that counts its calls."""

    def build(target: Path) -> dict[str, Any]:
        build.calls += 1
        (target / "content.txt").write_text(text)
        return {"length": len(text)}

    build.calls = 0
    return build


def test_produce_twice_builds_once_and_gives_the_same_artifact(store, runtime):
    build = write("a")
    first = store.produce(step(), runtime, build)
    assert store.produce(step(), runtime, build) == first == store.find(step())
    assert build.calls == 1
    assert store.manifest(first)["facts"] == {"length": 1}


def test_digest_is_that_of_the_files_alone(store, runtime):
    one = store.produce(step(a=1), runtime, write("same"))
    two = store.produce(step(a=2), runtime.model_copy(update={"batch_size": 1}), write("same"))
    other = store.produce(step(a=3), runtime, write("other"))
    assert one.key != two.key and one.digest == two.digest != other.digest


def change_a_byte(folder: Path) -> None:
    (folder / "content.txt").write_text("wrong text")


def lose_the_file(folder: Path) -> None:
    (folder / "content.txt").unlink()


def cut_the_file(folder: Path) -> None:
    (folder / "content.txt").write_text("right")


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def cut_the_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:100])


def empty_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    "damage",
    [change_a_byte, lose_the_file, cut_the_file, lose_the_manifest, cut_the_manifest, empty_the_manifest],
    ids=lambda damage: damage.__name__,
)
def test_find_damaged_result_is_not_believed_and_made_again(damage, store, runtime):
    build = write("right text")
    artifact = store.produce(step(), runtime, build)
    damage(store.folder(artifact))
    assert store.find(step()) is None
    assert store.produce(step(), runtime, build) == artifact
    assert (store.folder(artifact) / "content.txt").read_text() == "right text"


def test_produce_that_fails_leaves_nothing_and_the_next_succeeds(store, runtime):
    def fail(target: Path) -> dict[str, Any]:
        (target / "content.txt").write_text("half")
        (target / "rest.txt").write_text("of it")
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        store.produce(step(), runtime, fail)
    assert store.find(step()) is None
    artifact = store.produce(step(), runtime, write("whole"))
    assert sorted(path.name for path in store.folder(artifact).iterdir()) == ["content.txt", "manifest.json"]


def test_produce_by_two_at_once_builds_once(store, runtime):
    calls = []

    def build(target: Path) -> dict[str, Any]:
        calls.append(target)
        time.sleep(0.2)
        (target / "content.txt").write_text("a")
        return {}

    found: list[Artifact] = []
    workers = [threading.Thread(target=lambda: found.append(store.produce(step(), runtime, build))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(calls) == 1 and len(found) == 3 and len(set(found)) == 1


def test_store_moved_holds_the_same_results(store, runtime, tmp_path):
    artifact = store.produce(step(), runtime, write("a"))
    store.root.rename(tmp_path / "moved")
    assert Store(tmp_path / "moved").find(step()) == artifact
    assert str(tmp_path) not in json.dumps(Store(tmp_path / "moved").manifest(artifact))


def test_hash_of_changed_file_is_new_though_its_size_is_the_same(store, tmp_path):
    path = tmp_path / "file"
    path.write_text("one")
    first = store.hash_of(path)
    assert store.hash_of(path) == first
    path.write_text("two")
    assert store.hash_of(path) != first
    path.write_text("one")
    assert store.hash_of(path) == first


def test_find_unknown_input_is_none(store):
    assert store.find(Step("score", "", "code", {}, {"observe": None})) is None


def test_find_damaged_result_stays_where_somebody_may_read_it(store, runtime):
    artifact = store.produce(step(), runtime, write("right text"))
    change_a_byte(store.folder(artifact))
    assert store.find(step()) is None
    assert (store.folder(artifact) / "content.txt").is_file()


def test_git_state_counts_changes_but_for_the_record_that_a_run_writes(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    assert git_state() == {"git_commit": None, "git_dirty": None}
    sample.git(tmp_path, "init", "--quiet")
    sample.git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "project")
    (tmp_path / "data.dvc").write_text("outs: []\n")
    assert git_state() == {"git_commit": sample.git(tmp_path, "rev-parse", "HEAD").strip(), "git_dirty": False}
    (tmp_path / "code.py").write_text("")
    assert git_state()["git_dirty"] is True
    monkeypatch.chdir(tmp_path / "below")
    assert git_state()["git_dirty"] is True


def test_check_space_names_what_is_needed(store):
    store.check_space(1)
    with pytest.raises(BadInput, match=r"runtime\.store: .* needs about 1000000\.00 GB"):
        store.check_space(10**15)
