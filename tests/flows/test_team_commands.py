"""What the commands of teams have in common."""

import time
from pathlib import Path

import pytest
from hub import closed_port

from tasks.artifacts import Store
from tasks.tracking import Tracker

RUN = "0123456789abcdef0123456789abcdef"
READERS = [
    ["dashboard"],
    ["dashboard", "--export", "page.html"],
    ["promote", RUN, "--to", "candidate"],
    ["export", RUN, "out"],
    ["push", RUN, "owner/name"],
    ["restore", RUN],
    ["verify", RUN],
    ["verify", "--all"],
    ["verify", "model@production"],
    ["gc"],
    ["runs", "list"],
    ["runs", "list", RUN],
    ["runs", "compare", RUN, RUN],
    ["runs", "keep", RUN],
    ["runs", "unkeep", RUN],
    ["runs", "close", RUN],
]


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_tracker_that_does_not_answer_is_told_of_at_once(words, moeprune, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(".moeprune").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"http://127.0.0.1:{closed_port()}")
    started = time.monotonic()
    done = moeprune(*words)
    assert done.status == 2 and f"MLflow at {uri} cannot be used" in done.err
    assert len(done.err.splitlines()) == 1 and "Connection refused" in done.err and len(done.err) < 250
    assert time.monotonic() - started < 30, "MLflow by itself goes on for minutes"


def test_every_command_that_has_a_store_is_asked_for_its_tracker():
    """But doctor, which says so among other things."""
    from flows.command import app, runs_app

    asked = {("doctor",)} | {tuple(words[: 2 if words[0] == "runs" else 1]) for words in READERS}
    commands = {(name,): app[name] for name in app} | {("runs", name): runs_app[name] for name in runs_app}
    have = [name for name, one in commands.items() if "store" in getattr(one.default_command, "__annotations__", ())]
    assert sorted(have) == sorted(asked)


def test_runs_that_are_kept_or_closed_are_named_to_programs(moeprune, tmp_path: Path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(Store(tmp_path))
    with tracker.run("lost", {}, {"place": "a machine that is gone"}) as run:
        for word in ("keep", "unkeep", "close"):
            done = moeprune("runs", word, run.id[:8], "--store", str(tmp_path), "--json")
            assert done.json == {"status": "done", "error": None, "runs": [run.id]}
        assert tracker.find_run(run.id).status == "KILLED"
