"""Runs killed with SIGKILL in the middle of a stage, run again, against a run that was never killed."""

import shutil
from pathlib import Path

import killed
import pytest
import sample

from moeprune import observation
from moeprune.hashing import sha256
from tasks.artifacts import Store
from tasks.tracking import Tracker

WHOLE = "params/whole.yaml"
STAGES = ("download", "calibrate", "observe", "score", "mask", "prune", "evaluate")


def contents(store: Path, *stages: str) -> dict[str, str]:
    """sha256 of every file but the manifests, which tell when and by which run."""
    return {
        str(path.relative_to(store)): sha256(path)
        for stage in stages
        for path in (store / stage).rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.mark.parametrize(
    ("stage", "place", "call"),
    [
        ("download", "tasks.download.refuse_non_finite", 3),
        ("calibrate", "moeprune.files.save_corpus", 2),
        ("observe", "moeprune.observation.observe_chunk", 6),
        ("score", "moeprune.files.save_scores", 1),
        ("mask", "moeprune.masks.Mask.to_json", 1),
        ("prune", "moeprune.writing.write_safetensors", 2),
        ("evaluate", "moeprune.perplexity.document_nll", 2),
    ],
    ids=STAGES,
)
def test_run_killed_in_a_stage_ends_as_if_never_killed(
    stage: str, place: str, call: int, done, finished, run, server, monkeypatch
):
    store = done / ".moeprune"
    for later in STAGES[STAGES.index(stage) :]:  # as it was before this stage first ran, but for Prefect's records
        shutil.rmtree(store / later)
    assert killed.moeprune(done, ("run", WHOLE), place, call, server) == -9
    # Whole or absent: what is there under a key can be relied upon.
    assert [path for path in (store / stage).glob("[0-9a-f]*") if not (path / "manifest.json").is_file()] == []

    observed = []
    observe_chunk = observation.observe_chunk

    def watched(model, observer, corpus, chunk, *rest):
        observed.append(chunk)
        return observe_chunk(model, observer, corpus, chunk, *rest)

    monkeypatch.setattr(observation, "observe_chunk", watched)
    answer = run(WHOLE)
    assert answer.keys == finished[1].keys
    # The first corpus and the first chunk of the second were done.
    chunks = sample.RECIPE["calibrate"]["chunks"]
    expected = {"download": 2 * list(range(chunks)), "calibrate": 2 * list(range(chunks)), "observe": [1, 2, 3]}
    assert observed == expected.get(stage, [])
    assert answer.json["stages"][stage]["cache"] == "miss"

    never_killed = finished[0] / ".moeprune"
    compared = ("calibrate", "observe", "score", "mask", "prune")
    assert contents(store, *compared) == contents(never_killed, *compared)
    assert answer.json["metrics"] == finished[1].json["metrics"]
    assert not list((store / "partial").glob("*"))
    assert not list(store.glob("*/.*.building"))


def test_run_killed_is_closed_in_the_tracker_by_the_next(project, run, server):
    assert killed.moeprune(project, ("run", "params/quick.yaml"), "moeprune.files.save_corpus", 1, server) == -9
    tracker = Tracker(Store(project / ".moeprune"))
    assert [record.status for record in tracker.list_runs()] == ["RUNNING"]
    run("params/quick.yaml")
    assert [record.status for record in tracker.list_runs()] == ["FINISHED", "KILLED"]


@pytest.mark.parametrize(
    ("place", "call", "missed"),
    [
        # The artifact of the second corpus is in the store, but not yet in DVC.
        ("dvc.repo.Repo.add", 2, ["observe wiki", "observe code", "score reap", "mask", "prune"]),
        # The statistics are in the store, but not yet in the tracker.
        ("tasks.tracking.Run.log_stage", 5, ["score reap", "mask", "prune"]),
        # The files of the scores are written, their manifest is not.
        ("tasks.artifacts.git_state", 6, ["score reap", "mask", "prune"]),
    ],
    ids=["DVC", "MLflow", "manifest"],
)
def test_run_killed_between_stages_goes_on_there(
    place: str, call: int, missed: list[str], project, finished, run, server
):
    quick = "params/quick.yaml"
    assert killed.moeprune(project, ("run", quick), place, call, server) == -9
    answer = run(quick)
    assert answer.missed == missed
    stages = ("calibrate", "observe", "score", "mask", "prune")
    assert contents(project / ".moeprune", *stages) == contents(finished[0] / ".moeprune", *stages)
    assert (project / "data.dvc").read_bytes() == (finished[0] / "data.dvc").read_bytes()
