"""What is tried again, because it may pass."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from hub import closed_port

from flows.engine import push, reach
from moeprune.errors import BadInput
from tasks import versioning
from tasks.artifacts import Store
from tasks.tracking import Tracker


@pytest.mark.parametrize("mended", [True, False], ids=["mended meanwhile", "broken for good"])
def test_push_to_a_remote_that_fails_at_first_is_tried_again(mended: bool, project, server, monkeypatch):
    remote = project.parent / "remote"
    remote.write_text("a file, where DVC wants a folder")
    (project / ".dvc/config").write_text(f"[core]\n    remote = team\n['remote \"team\"']\n    url = {remote}\n")
    versioning.register(project / "model/config.json", "corpora/some.json", project)
    attempts, original = [], versioning.push

    def watched(folder: Path) -> bool:
        attempts.append(folder)
        if mended and len(attempts) == 2:
            remote.unlink()
        return original(folder)

    monkeypatch.setattr(versioning, "push", watched)
    at_once = push.with_options(retry_delay_seconds=0)
    if mended:
        assert at_once(project) and len(attempts) == 2
        assert any(path.is_file() for path in remote.rglob("*"))
    else:
        with pytest.raises(BadInput, match="DVC remote 'team'"):
            at_once(project)
        assert len(attempts) == 3


@pytest.mark.parametrize(("mended", "attempts"), [(True, 2), (False, 4)], ids=["back meanwhile", "gone for good"])
def test_tracker_that_is_away_when_a_run_begins_is_waited_for(mended, attempts, project, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port()}")
    asked, original = [], Tracker.check

    def watched(tracker: Tracker) -> None:
        asked.append(tracker.uri)
        if mended and len(asked) == 2:
            tracker.uri = f"sqlite:///{project.parent / 'mlflow.db'}"
        original(tracker)

    monkeypatch.setattr(Tracker, "check", watched)
    at_once = reach.with_options(retry_delay_seconds=0)
    with nullcontext() if mended else pytest.raises(BadInput, match="Connection refused"):
        assert at_once(Store(project / ".moeprune"), project).uri.startswith("sqlite")
    assert len(asked) == attempts


def test_remote_that_is_away_when_a_run_begins_is_waited_for(project, server, monkeypatch):
    address = f"http://127.0.0.1:{closed_port()}"
    (project / ".dvc/config").write_text(f"[core]\n    remote = team\n['remote \"team\"']\n    url = {address}\n")
    asked, original = [], versioning.reach
    monkeypatch.setattr(versioning, "reach", lambda folder: (asked.append(folder), original(folder)))
    with pytest.raises(BadInput, match="DVC remote 'team'"):
        reach.with_options(retry_delay_seconds=0)(Store(project / ".moeprune"), project)
    assert len(asked) == 4
