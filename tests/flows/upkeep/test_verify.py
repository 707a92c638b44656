"""What verify says of a run after something it names was damaged or lost, and whether what it says mends it."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import sample
from clones import Team, copy_project, flip_a_byte, share
from mlflow.tracking import MlflowClient

from tasks import versioning
from tasks.artifacts import Store
from tasks.lineage import read_lineage, read_manifest
from tasks.tracking import Tracker


@pytest.fixture
def cloned(finished, tmp_path, monkeypatch) -> Team:
    """After one whole run; the project where it was done is the working directory."""
    found = share(copy_project(finished[0], tmp_path / "project"), tmp_path, finished[1].json["run_id"])
    monkeypatch.chdir(found.project)
    return found


def states(answer) -> dict[tuple[str, str], str]:
    return {(thing["where"], thing["name"]): thing["state"] for thing in answer.json["things"]}


def faults(answer) -> dict[tuple[str, str], str]:
    return {name: state for name, state in states(answer).items() if state != "ok"}


def kept(project: Path, title: str, name: str) -> Path:
    """Where the tracker has a file of a stage, by its title or id."""
    database = sqlite3.connect(project / ".moeprune/mlflow.db")
    (uri,) = database.execute("SELECT artifact_uri FROM runs WHERE ? IN (name, run_uuid)", (title,)).fetchone()
    database.close()
    return Path(uri.removeprefix("file://")) / name


def test_verify_after_a_run_finds_all_that_it_names(cloned, moeprune):
    answer = moeprune("verify", cloned.run[:8], "--json")
    assert answer.status == 0, answer.err
    found = states(answer)
    assert set(found.values()) == {"ok"}
    assert [name for where, name in found if where == "store"] == [
        *("download", "calibrate wiki", "calibrate code", "observe wiki", "observe code"),
        *("score reap", "mask", "prune", "evaluate base", "evaluate pruned"),
    ]
    assert [name for where, name in found if where == "DVC"] == ["calibrate wiki", "calibrate code", "mask"]
    assert [name for where, name in found if where == "source"] == ["model"]
    tracked = {name for where, name in found if where == "tracker"}
    assert {"recipe.yaml", "prune: manifest.json", "evaluate pruned: samples.parquet", "prune: logged model"} <= tracked
    assert answer.json["runs"] == {cloned.run: {"ok": len(found)}}


def lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "state", "name"),
    [
        (flip_a_byte, "changed", "prune"),
        (lose, "changed", "calibrate wiki"),
        (lambda path: shutil.rmtree(path.parent), "missing", "evaluate base"),
    ],
)
def test_verify_of_the_store_names_the_result_and_what_it_says_mends_it(
    damage: Callable[[Path], None], state: str, name: str, cloned, moeprune
):
    stage = name.split()[0]
    wanted = {"prune": "*-00001-of*", "calibrate": "tokens*", "evaluate": "report.json"}[stage]
    key = answer_key(moeprune("verify", cloned.run, "--json"), cloned, name)
    damage(next((cloned.project / ".moeprune" / stage / key).glob(wanted)))
    answer = moeprune("verify", cloned.run, "--json")
    assert answer.status == 1 and faults(answer) == {("store", name): state}
    (mend,) = [thing["mend"] for thing in answer.json["things"] if thing["mend"]]
    assert mend == f"moeprune restore {cloned.run[:8]}" and mend in answer.json["error"]
    assert moeprune(*mend.split()[1:]).status == 0
    assert moeprune("verify", cloned.run).status == 0


def answer_key(answer, cloned: Team, name: str) -> str:
    """The key of a stage, from the tracker's own database."""
    assert answer.status == 0
    database = sqlite3.connect(cloned.project / ".moeprune/mlflow.db")
    (key,) = database.execute(
        "SELECT value FROM tags JOIN runs USING (run_uuid) WHERE runs.name = ? AND key = 'key'", (name,)
    ).fetchone()
    database.close()
    return str(key)


def test_verify_of_rot_that_keeps_size_and_time_needs_rehash(cloned, moeprune):
    assert moeprune("verify", cloned.run).status == 0
    shard = next((cloned.project / ".moeprune/prune").glob("*/*-00001-of*"))
    state, content = shard.stat(), bytearray(shard.read_bytes())
    content[-1] ^= 1
    with shard.open("r+b") as file:
        file.write(content)
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert moeprune("verify", cloned.run).status == 0
    assert faults(moeprune("verify", cloned.run, "--rehash", "--json")) == {("store", "prune"): "changed"}


DVC = dict.fromkeys([("DVC", "calibrate wiki"), ("DVC", "calibrate code"), ("DVC", "mask")], "missing")


def test_verify_of_dvc_goes_by_the_remote_of_the_team_and_says_who_can_push(cloned, moeprune):
    shutil.move(cloned.project / ".dvc/cache", cloned.project / ".dvc/away")
    assert moeprune("verify", cloned.run).status == 0
    shutil.rmtree(cloned.remote)
    assert faults(moeprune("verify", cloned.run, "--json")) == DVC
    shutil.move(cloned.project / ".dvc/away", cloned.project / ".dvc/cache")
    answer = moeprune("verify", cloned.run, "--json")
    assert answer.status == 1 and faults(answer) == DVC
    assert "the remote 'team' has lost it, cache has it, and a run pushes" in answer.json["error"]
    assert versioning.push(cloned.project)  # as every run does
    assert moeprune("verify", cloned.run).status == 0


def test_verify_with_a_remote_that_does_not_answer_says_that_and_no_more(cloned, moeprune):
    config = cloned.project / ".dvc/config"
    config.write_text(config.read_text().replace(str(cloned.remote), "http://127.0.0.1:9/dvc"))
    answer = moeprune("verify", cloned.run, "--json")
    assert answer.status == 1 and faults(answer) == {("DVC", "remote 'team'"): "missing"}
    assert "could not be asked" in answer.json["error"]


def test_verify_does_not_mind_the_silence_of_a_remote_if_that_of_the_team_has_all(cloned, moeprune):
    config = cloned.project / ".dvc/config"
    config.write_text(config.read_text() + "['remote \"gone\"']\n    url = http://127.0.0.1:9/dvc\n")
    assert moeprune("verify", cloned.run).status == 0
    shutil.rmtree(cloned.remote)
    silent = {("DVC", "remote 'gone'"): "missing"}
    assert faults(moeprune("verify", cloned.run, "--json")) == DVC | silent


def test_verify_of_a_remote_with_wrong_bytes_does_not_believe_their_name(cloned, moeprune):
    shutil.rmtree(cloned.project / ".dvc/cache")
    for path in (cloned.remote / "files/md5").glob("*/*"):
        if not path.name.endswith(".dir"):
            flip_a_byte(path)
    assert len(faults(moeprune("verify", cloned.run, "--json"))) == 3


@pytest.mark.parametrize("damage", [(flip_a_byte, "changed"), (lose, "missing")], ids=["changed", "missing"])
@pytest.mark.parametrize(("title", "name"), [("mask", "mask.json"), ("evaluate pruned", "samples.parquet")])
def test_verify_of_the_tracker_names_the_file(
    title: str, name: str, damage: tuple[Callable[[Path], None], str], cloned, moeprune
):
    work, state = damage
    work(kept(cloned.project, title, name))
    answer = moeprune("verify", cloned.run, "--json")
    assert answer.status == 1 and faults(answer) == {("tracker", f"{title}: {name}"): state}


def test_verify_of_a_manifest_and_recipe_that_were_edited_in_the_tracker_says_changed(cloned, moeprune):
    manifest = kept(cloned.project, "score reap", "manifest.json")
    manifest.write_text(manifest.read_text().replace('"reap"', '"ean"'))
    recipe = kept(cloned.project, "whole", "recipe.yaml")
    recipe.write_text(recipe.read_text().replace("ratio: 0.25", "ratio: 0.5"))
    assert faults(moeprune("verify", cloned.run, "--json")) == {
        ("tracker", "score reap: manifest.json"): "changed",
        ("tracker", "recipe.yaml"): "changed",
    }


@pytest.mark.parametrize("size", [0, 40], ids=["empty", "cut short"])
def test_verify_of_records_that_are_damaged_says_changed(size: int, cloned, moeprune):
    for title, name in (("mask", "manifest.json"), ("whole", "recipe.yaml")):
        file = kept(cloned.project, title, name)
        file.write_bytes(b"\xff" + file.read_bytes()[:size])
    assert faults(moeprune("verify", cloned.run, "--json")) == {
        ("tracker", "mask: manifest.json"): "changed",
        ("tracker", "recipe.yaml"): "changed",
    }


def test_verify_of_a_run_whose_stage_was_deleted_from_the_record_misses_it(cloned, moeprune):
    tracker = Tracker(Store(cloned.project / ".moeprune"))
    (mask,) = (stage for stage in read_lineage(tracker, cloned.run).stages if stage.title == "mask")
    MlflowClient(tracker.uri).delete_run(mask.id)
    answer = moeprune("verify", cloned.run, "--json")
    assert answer.status == 1 and faults(answer) == {("tracker", "mask: its record"): "missing"}


def test_verify_all_tells_of_a_run_whose_record_is_damaged_and_looks_at_the_others(cloned, moeprune):
    tracker = Tracker(Store(cloned.project / ".moeprune"))
    with tracker.run("edited", {}) as edited:
        (stage, *_) = read_lineage(tracker, cloned.run).stages
        child = edited.log_stage(stage.stage, stage.title, stage.of, read_manifest(tracker, stage), "hit")
    tracker.tag(child, "key", "../../elsewhere")
    answer = moeprune("verify", "--all", "--json")
    ((where, name),) = faults(answer)
    assert answer.status == 1 and where == "tracker" and "no place in a store" in name
    assert answer.json["runs"][edited.id] == {"changed": 1} and answer.json["runs"][cloned.run]["ok"] > 20


def test_verify_of_a_base_model_that_is_another_or_gone(cloned, moeprune):
    shutil.move(cloned.project / "model", cloned.project / "moved")
    answer = moeprune("verify", cloned.run, "--json")
    assert faults(answer) == {("source", "model"): "missing"} and "--base" in answer.json["error"]
    assert moeprune("verify", cloned.run, "--base", "moved").status == 0
    sample.write_model(cloned.project / "model", seed=1)
    assert faults(moeprune("verify", cloned.run, "--json")) == {("source", "model"): "changed"}


def test_verify_all_shows_which_run_is_not_whole(cloned, moeprune):
    store = Store(cloned.project / ".moeprune")
    (mask,) = (store.root / "mask").iterdir()
    with Tracker(store).run("another", {"mask": {"ratio": 0.25}}, recipe="mask: {ratio: 0.25}\n") as run:
        manifest = json.loads((mask / "manifest.json").read_text())
        files = [mask / "manifest.json", mask / "mask.json"]
        stage = run.log_stage("mask", "mask", "", manifest, "hit", files)
    with pytest.raises(ZeroDivisionError), Tracker(store).run("failed, so it promises nothing", {}) as failed:
        failed.log_stage("mask", "mask", "", manifest, "hit")
        raise ZeroDivisionError
    answer = moeprune("verify", "--all", "--json")
    assert answer.status == 0 and answer.json["runs"].keys() == {cloned.run, run.id}
    flip_a_byte(kept(cloned.project, stage, "mask.json"))
    answer = moeprune("verify", "--all", "--json")
    assert answer.status == 1
    assert [(thing["run"], thing["name"]) for thing in answer.json["things"] if thing["state"] != "ok"] == [
        (run.id, "mask: mask.json")
    ]


@pytest.mark.parametrize("words", [(), ("abcdef", "--all")])
def test_verify_of_neither_or_both_one_run_and_all_is_refused(words: tuple[str, ...], project, moeprune):
    answer = moeprune("verify", *words)
    assert answer.status == 2 and "give one run, or --all" in answer.err
