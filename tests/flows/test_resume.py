"""Runs killed with SIGKILL in the middle of a stage, run again, against a run that was never killed."""

import shutil
from pathlib import Path

import pytest
import sample

from moeprune.checkpoint import sha256

WHOLE = "params/whole.yaml"
STAGES = ("download", "calibrate", "observe", "score", "mask", "prune", "evaluate")

KILL = """
import os, signal, sys
from importlib import import_module
from pkgutil import resolve_name

place, call, moment = sys.argv.pop(1), int(sys.argv.pop(1)), sys.argv.pop(1)
owner, name = place.rsplit(".", 1)
owner, calls = resolve_name(owner), 0
work = getattr(owner, name)

def killed(*arguments, **named):
    global calls
    calls += 1
    result = work(*arguments, **named) if calls < call or moment == "after" else None
    if calls == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, name, killed)
from flows.command import main
main()
"""
"""Runs the command and kills it before or after the n-th call of a function."""


def contents(store: Path, *stages: str) -> dict[str, str]:
    """sha256 of every file but the manifests, which tell when and by which run."""
    return {
        str(path.relative_to(store)): sha256(path)
        for stage in stages
        for path in (store / stage).rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


@pytest.mark.parametrize(
    ("stage", "place", "call", "moment"),
    [
        ("download", "tasks.download.refuse_non_finite", 3, "before"),
        ("calibrate", "moeprune.files.save_corpus", 2, "after"),
        ("observe", "moeprune.observation.observe_chunk", 6, "before"),
        ("score", "moeprune.files.save_scores", 1, "before"),
        ("mask", "moeprune.masks.Mask.to_json", 1, "before"),
        ("prune", "moeprune.surgery.write_safetensors", 2, "before"),
        ("evaluate", "moeprune.perplexity.document_nll", 2, "before"),
    ],
    ids=STAGES,
)
def test_run_killed_in_a_stage_ends_as_if_never_killed(
    stage: str, place: str, call: int, moment: str, done, finished, run, process, monkeypatch
):
    store = done / ".moeprune"
    for later in STAGES[STAGES.index(stage) :]:  # as it was before this stage first ran, but for Prefect's records
        shutil.rmtree(store / later)
    # Counting the calls of one criterion's chain: memory is measured by a child process, which is not the point.
    quiet = "import moeprune.footprint as f; f.measure = lambda *_: dict.fromkeys(('load_peak_anonymous',), 1)\n"
    killed = process(done, place, str(call), moment, "run", WHOLE, script=quiet + KILL)
    assert killed.status == -9, killed.err
    # Whole or absent: what is there under a key can be relied upon.
    assert [path for path in (store / stage).glob("[0-9a-f]*") if not (path / "manifest.json").is_file()] == []

    observed = []
    observe_chunk = __import__("moeprune.observation").observation.observe_chunk

    def watched(model, observer, corpus, chunk, *rest):
        observed.append(chunk)
        return observe_chunk(model, observer, corpus, chunk, *rest)

    monkeypatch.setattr("moeprune.observation.observe_chunk", watched)
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
    assert not [path for path in store.glob("*/.*.building")]


def test_run_killed_is_closed_in_the_tracker_by_the_next(project, run, process):
    from tasks.artifacts import Store
    from tasks.tracking import Tracker

    killed = process(project, "moeprune.files.save_scores", "1", "before", "run", "params/quick.yaml", script=KILL)
    assert killed.status == -9, killed.err
    tracker = Tracker(Store(project / ".moeprune"))
    assert [record.status for record in tracker.list_runs()] == ["RUNNING"]
    run("params/quick.yaml")
    assert [record.status for record in tracker.list_runs()] == ["FINISHED", "KILLED"]
