"""Runs brought back in a clone that has neither store nor data, over a real DVC remote and tracker."""

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sample
from clones import Team, contents, copy_project, flip_a_byte, share, sparse_recipe
from hub import point_at, serve
from mlflow.tracking import MlflowClient

from flows.preflight import preflight
from flows.recipe import read_recipe
from flows.walk import walk
from tasks.artifacts import Store
from tasks.lineage import read_lineage
from tasks.tracking import Tracker


@pytest.fixture
def cloned(finished, tmp_path, monkeypatch) -> Team:
    """After one whole run; the clone is the working directory."""
    found = share(copy_project(finished[0], tmp_path / "project"), tmp_path, finished[1].json["run_id"])
    monkeypatch.chdir(found.clone)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found.tracker)
    return found


def states(answer) -> dict[tuple[str, str], str]:
    return {(thing["where"], thing["name"]): thing["state"] for thing in answer.json["things"]}


def how(answer) -> dict[str, str]:
    return {result["title"]: result["how"] for result in answer.json["results"]}


def test_restore_in_a_fresh_clone_is_the_run_to_the_byte(cloned, moeprune):
    assert not (cloned.clone / ".moeprune").exists() and not (cloned.clone / "data").exists()
    answer = moeprune("restore", cloned.run[:8], "--json")
    assert answer.status == 0, answer.err
    assert how(answer) == {
        "download": "made again",
        "calibrate wiki": "from DVC",
        "calibrate code": "from DVC",
        "observe wiki": "left out",
        "observe code": "left out",
        "score reap": "from the tracker",
        "mask": "from DVC",
        "prune": "made again",
        "evaluate base": "from the tracker",
        "evaluate pruned": "from the tracker",
    }
    there, here = cloned.project / ".moeprune", cloned.clone / ".moeprune"
    for stage in ("download", "calibrate", "score", "mask", "prune", "evaluate"):
        assert contents(here / stage) == contents(there / stage) != {}
    assert not (here / "observe").exists()
    assert contents(cloned.clone / "data") == contents(cloned.project / "data")
    assert Path(answer.json["checkpoint"]).samefile(next((here / "prune").iterdir()))


def test_restore_everything_is_verified_and_twice_does_nothing(cloned, moeprune):
    assert moeprune("verify", cloned.run[:8]).status == 1
    assert moeprune("restore", cloned.run[:8], "--everything").status == 0
    assert contents(cloned.clone / ".moeprune/observe") == contents(cloned.project / ".moeprune/observe")
    answer = moeprune("verify", cloned.run[:8], "--json")
    assert answer.status == 0 and set(states(answer).values()) == {"ok"}
    answer = moeprune("restore", cloned.run[:8], "--json")
    assert set(how(answer).values()) == {"in the store"}
    # It is what a run of the recipe looks for: by these keys nothing is done again.
    recipe = read_recipe(Path(answer.json["recipe"]))
    store = Store(recipe.runtime.store)
    assert store.root.absolute() == cloned.clone / ".moeprune"
    assert walk(recipe, preflight(recipe, store, cloned.clone), store).done(store)


def test_restore_of_a_base_that_moved_says_why_each_result_is_not_there(cloned, moeprune):
    shutil.move(cloned.clone / "model", cloned.clone / "moved")
    answer = moeprune("restore", cloned.run[:8])
    assert answer.status == 1 and "or say with --base where the model is" in answer.err
    assert answer.out.count("not restored: ") == 2, "prune, which needs it, is told of as well"
    assert moeprune("restore", cloned.run[:8], "--base", "moved").status == 0


def test_restore_from_another_base_says_so_and_leaves_nothing(cloned, moeprune):
    shutil.rmtree(cloned.clone / "model")
    sample.write_model(cloned.clone / "model", seed=1)
    answer = moeprune("restore", cloned.run[:8], "--json")
    assert answer.status == 1
    assert "--base" in answer.json["error"] and answer.json["checkpoint"] is None
    assert len([line for line in answer.err.splitlines() if line.startswith("error:")]) == 1
    assert not any((cloned.clone / ".moeprune" / stage).exists() for stage in ("download", "prune"))
    assert not list((cloned.clone / ".moeprune/partial").iterdir())
    answer = moeprune("restore", cloned.run[:8], "--base", str(cloned.project / "model"))
    assert answer.status == 0, answer.err
    assert contents(cloned.clone / ".moeprune/prune") == contents(cloned.project / ".moeprune/prune")


def test_restore_by_code_that_prunes_otherwise_fails_and_leaves_nothing(cloned, moeprune, monkeypatch):
    from moeprune import surgery

    work = surgery.prune_checkpoint

    def otherwise(source, plan, mask, target, *rest):
        work(source, plan, mask, target, *rest)
        flip_a_byte(sorted(target.glob("*.safetensors"))[0])

    monkeypatch.setattr(surgery, "prune_checkpoint", otherwise)
    answer = moeprune("restore", cloned.run[:8], "--json")
    assert answer.status == 1
    assert answer.json["error"].startswith(f"run {cloned.run[:8]} is not whole: prune: made again, model-00001-of-")
    assert how(answer)["prune"] == "" and answer.json["checkpoint"] is None
    assert not (cloned.clone / ".moeprune/prune").exists()
    assert how(answer)["mask"] == "from DVC"


def test_restore_without_what_dvc_had_names_it_and_brings_the_rest(cloned, moeprune):
    cloned.lose_dvc()
    answer = moeprune("restore", cloned.run[:8], "--json")
    assert answer.status == 1
    assert answer.json["error"].startswith(f"run {cloned.run[:8]} is not whole: calibrate wiki: md5 ")
    assert "(1 more above)" in answer.json["error"]
    assert how(answer)["calibrate wiki"] == how(answer)["calibrate code"] == ""
    assert how(answer)["mask"] == "from the tracker"
    assert contents(cloned.clone / ".moeprune/prune") == contents(cloned.project / ".moeprune/prune")


def lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, lose])
@pytest.mark.parametrize("stage", ["mask", "prune", "evaluate"])
def test_restore_over_a_damaged_result_mends_it(
    stage: str, damage: Callable[[Path], None], cloned, moeprune, monkeypatch
):
    monkeypatch.chdir(cloned.project)
    store = cloned.project / ".moeprune"
    before = contents(store / stage)
    file = {"mask": "mask.json", "prune": "config.json", "evaluate": "report.json"}[stage]
    damage(next((store / stage).glob(f"*/{file}")))
    assert contents(store / stage) != before
    answer = moeprune("restore", cloned.run[:8], "--json")
    assert answer.status == 0, answer.err
    assert list(how(answer).values()).count("in the store") == 9
    assert contents(store / stage) == before


def test_restore_where_the_key_has_other_bytes_leaves_them(cloned, moeprune, monkeypatch):
    from moeprune.hashing import digest_of, sha256

    monkeypatch.chdir(cloned.project)
    manifest = next((cloned.project / ".moeprune/mask").glob("*/manifest.json"))
    flip_a_byte(manifest.with_name("mask.json"))
    content = json.loads(manifest.read_text())
    content["files"]["mask.json"]["sha256"] = sha256(manifest.with_name("mask.json"))
    content["digest"] = digest_of({"mask.json": content["files"]["mask.json"]["sha256"]})
    manifest.write_text(json.dumps(content))
    before = contents(manifest.parent)
    answer = moeprune("restore", cloned.run[:8], "--json")
    assert answer.status == 1 and "another result of the same key" in answer.json["error"]
    assert contents(manifest.parent) == before


def test_restore_of_a_mask_that_is_a_rule_observes_again_and_of_a_trained_model_trains_again(
    project, run, moeprune, tmp_path, monkeypatch
):
    done = run(sparse_recipe(project))
    cloned = share(project, tmp_path, done.json["run_id"])
    monkeypatch.chdir(cloned.clone)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", cloned.tracker)
    answer = moeprune("restore", cloned.run, "--json")
    assert answer.status == 0, answer.err
    assert how(answer)["observe wiki"] == how(answer)["prune"] == "made again"
    assert how(answer)["distill"] == "left out"
    for stage in ("observe", "prune"):
        assert contents(cloned.clone / ".moeprune" / stage) == contents(cloned.project / ".moeprune" / stage) != {}
    assert "/prune/" in answer.json["checkpoint"]
    answer = moeprune("restore", cloned.run, "--everything", "--json")
    assert answer.status == 0, answer.err
    assert contents(cloned.clone / ".moeprune/distill") == contents(cloned.project / ".moeprune/distill") != {}
    assert "/distill/" in answer.json["checkpoint"]


def kept(cloned: Team, title: str, name: str) -> Path:
    """Where the tracker has a file of a stage."""
    (stage,) = (
        one for one in read_lineage(Tracker(Store(cloned.clone / ".moeprune")), cloned.run).stages if one.title == title
    )
    return Path(MlflowClient(cloned.tracker).get_run(stage.id).info.artifact_uri.removeprefix("file://")) / name


def test_restore_with_a_damaged_record_of_one_result_brings_the_others(cloned, moeprune):
    manifest = kept(cloned, "evaluate base", "manifest.json")
    manifest.write_text(manifest.read_text()[:100])
    answer = moeprune("restore", cloned.run, "--json")
    assert answer.status == 1 and "evaluate base: the tracker's manifest.json is damaged" in answer.json["error"]
    assert how(answer)["evaluate base"] == "" and how(answer)["prune"] == "made again"


def test_restore_on_a_machine_without_the_device_of_the_record_takes_another(cloned, moeprune):
    for title in ("observe wiki", "prune"):
        manifest = kept(cloned, title, "manifest.json")
        content = manifest.read_text()
        assert '"device": "cpu"' in content
        manifest.write_text(content.replace('"device": "cpu"', '"device": "cuda:7"'))
    assert moeprune("restore", cloned.run, "--everything").status == 0
    for stage in ("observe", "prune"):
        (files, recorded) = (contents(project / ".moeprune" / stage) for project in (cloned.clone, cloned.project))
        weights = {name: content for name, content in files.items() if name.endswith(".safetensors")}
        assert weights.items() <= recorded.items() and weights


def test_restore_leaves_what_a_flow_made_while_it_waited(cloned, moeprune):
    store = Store(cloned.clone / ".moeprune")
    there = next((cloned.project / ".moeprune/mask").iterdir())
    here, waiting = store.root / "mask" / there.name, []

    def flow() -> None:
        with store.lock(f"mask-{there.name}"):
            waiting.append(True)
            time.sleep(3)
            shutil.copytree(there, here)
            (here / "manifest.json").write_text((here / "manifest.json").read_text() + " ")  # to be told from another

    with ThreadPoolExecutor(1) as pool:
        pool.submit(flow)
        while not waiting:
            time.sleep(0.01)
        answer = moeprune("restore", cloned.run, "--json")
    assert answer.status == 0, answer.err
    assert how(answer)["mask"] == "in the store" and (here / "manifest.json").read_text().endswith(" ")


def test_restore_of_a_record_that_names_another_place_touches_nothing(cloned, moeprune):
    outside = cloned.clone.parent / "precious"
    outside.mkdir()
    tracker = Tracker(Store(cloned.clone / ".moeprune"))
    (mask,) = (stage for stage in read_lineage(tracker, cloned.run).stages if stage.stage == "mask")
    tracker.tag(mask.id, "stage", "../..")
    tracker.tag(mask.id, "key", "precious")
    answer = moeprune("restore", cloned.run)
    assert answer.status == 2 and "no place in a store" in answer.err
    assert outside.is_dir() and not (cloned.clone / ".moeprune/mask").exists()


def test_restore_of_an_unknown_run_names_what_to_set(project, moeprune):
    answer = moeprune("restore", "0123456789")
    assert answer.status == 2 and "MLFLOW_TRACKING_URI" in answer.err


def test_restore_from_the_hub_takes_the_commit_that_was_read_though_main_moved_on(
    project, run, moeprune, tmp_path, monkeypatch
):
    name, read, newer = "owner/model", "a" * 40, "b" * 40
    other = sample.write_model(tmp_path / "other", seed=1)
    with serve({name: {read: project / "model", newer: other}}) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache")
        hub.refs[name]["main"] = read
        done = run("params/quick.yaml", f"download.source={name}")
        hub.refs[name]["main"] = newer
        cloned = share(project, tmp_path, done.json["run_id"])
        point_at(monkeypatch, hub.url, tmp_path / "another cache")
        monkeypatch.chdir(cloned.clone)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", cloned.tracker)
        answer = moeprune("restore", cloned.run, "--json")
        assert answer.status == 0, answer.err
        for stage in ("download", "prune"):
            assert contents(cloned.clone / ".moeprune" / stage) == contents(cloned.project / ".moeprune" / stage) != {}
        (source,) = (
            thing for thing in moeprune("verify", cloned.run, "--json").json["things"] if thing["where"] == "source"
        )
        assert (source["name"], source["state"]) == (f"{name} {read[:8]}", "ok")
