"""What is tried again, because it may pass."""

from pathlib import Path

import pytest

from flows.engine import push
from moeprune.errors import BadInput
from tasks import versioning


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
