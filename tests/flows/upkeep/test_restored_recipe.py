"""The recipe that comes with a restored run, on a machine whose store lies elsewhere."""

import shutil
from pathlib import Path

from clones import share


def test_recipe_of_a_restored_run_finds_all_of_it_in_another_store(project, run, moeprune, tmp_path, monkeypatch):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    monkeypatch.setenv("MOEPRUNE_STORE", str(theirs))
    done = run("params/quick.yaml")
    assert Path(done.json["checkpoint"]).is_relative_to(theirs)
    cloned = share(project, tmp_path, done.json["run_id"])
    for stage in done.json["stages"]:  # of that machine only the tracker can be reached
        shutil.rmtree(theirs / stage)
    monkeypatch.chdir(cloned.clone)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{theirs}/mlflow.db")
    monkeypatch.setenv("MOEPRUNE_STORE", str(ours))
    answer = moeprune("restore", cloned.run, "--everything", "--json")
    assert answer.status == 0, answer.err
    again = run(answer.json["recipe"])
    assert again.missed == [] and again.keys == done.keys
    assert Path(again.json["checkpoint"]).is_relative_to(ours)
    assert not any((theirs / stage).exists() for stage in done.json["stages"])
