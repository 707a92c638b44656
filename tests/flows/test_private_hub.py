"""A private repository: its token opens the Hub and is written nowhere, whether the run ends well or not."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hub import Fault, Hub, point_at, serve
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_HOME

from tasks import download

NAME, COMMIT, TOKEN = "owner/private-model", "d" * 40, "hf_onlyForTheHub0123456789"


@pytest.fixture
def private(project, monkeypatch, caplog):
    """The project's model on a Hub that tells nothing without the token; everything logged is caught."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(project.parent / "token"))
    caplog.set_level(logging.DEBUG)
    with serve({NAME: {COMMIT: project / "model"}}) as hub:
        hub.token = TOKEN
        point_at(monkeypatch, hub.url, project.parent / "cache")
        yield hub


@pytest.fixture
def places(project, server, caplog) -> Callable[..., set[str]]:
    """Where a text is written, of everything that a run with these outputs left behind."""

    def call(text: str, *outputs: str) -> set[str]:
        APILogHandler().flush()  # to Prefect's server, which else gets them every two seconds
        database = Path(PREFECT_API_DATABASE_CONNECTION_URL.value().rpartition("sqlite+aiosqlite:///")[2])
        roots = {
            "project": project,
            "store": project / ".moeprune",
            "tracker": project / ".moeprune/mlflow.db",
            "prefect": database.parent,
            "home of prefect": PREFECT_HOME.value(),
            "cache": project.parent / "cache",
        }
        found = {
            name for name, root in roots.items() if any(text.encode() in file.read_bytes() for file in _files(root))
        }
        found |= {"log"} if text in caplog.text else set()
        return found | ({"output"} if any(text in output for output in outputs) else set())

    return call


def _files(root: Path) -> list[Path]:
    found = [root] if root.is_file() else [path for path in root.rglob("*") if path.is_file()]
    return found + [path for path in root.parent.glob(f"{root.name}-*") if root.is_file()]  # sqlite's journals


def log_in(how: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "variable":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    else:
        monkeypatch.delenv("HF_TOKEN", raising=False)
        (project.parent / "token").write_text(TOKEN)


@pytest.mark.parametrize(("how", "recipe"), [("variable", "whole"), ("file", "quick")])
def test_run_from_a_private_repository_writes_its_token_nowhere(
    how: str, recipe: str, private: Hub, project, moeprune, server, places, monkeypatch
):
    log_in(how, project, monkeypatch)
    answer = moeprune("run", f"params/{recipe}.yaml", "--set", f"download.source={NAME}", "--json")
    assert answer.status == 0, answer.err
    assert answer.json["stages"]["download"]["cache"] == "miss" and private.sent > 0
    assert private.told == set(), "the storage is no part of the Hub"
    # What may be written is found by the same search.
    assert places(NAME, answer.out, answer.err) >= {"project", "store", "tracker", "prefect", "log"}
    assert places(TOKEN, answer.out, answer.err) == set()


@pytest.mark.parametrize(("status", "tries"), [(403, 1), (503, 3)], ids=["refused for good", "failing, which may pass"])
def test_run_that_fails_while_downloading_says_why_and_writes_the_token_nowhere(
    status: int, tries: int, private: Hub, project, moeprune, server, places, monkeypatch
):
    log_in("variable", project, monkeypatch)
    private.faults.append(fault := Fault("GET /storage/.*-00001-", status, times=100, whole=True))
    monkeypatch.setattr(download.download, "retry_delay_seconds", 0)
    answer = moeprune("run", "params/quick.yaml", "--set", f"download.source={NAME}", "--json")
    assert answer.status == 2, answer.err
    (line,) = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert f"({status})" in line and NAME in line
    assert 100 - fault.times == tries
    assert places(f"({status})", answer.out, answer.err) >= {"prefect", "log", "output"}
    assert places(TOKEN, answer.out, answer.err) == set()


def test_run_without_the_token_is_refused_before_any_file_is_sent(private: Hub, project, moeprune, server, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    answer = moeprune("run", "params/quick.yaml", "--set", f"download.source={NAME}")
    assert answer.status == 2 and "HF_TOKEN" in answer.err and len(answer.err.splitlines()) == 1
    assert private.sent == 0


def test_run_with_no_space_for_the_download_is_refused_before_any_weight_is_sent(
    private: Hub, project, moeprune, monkeypatch
):
    log_in("variable", project, monkeypatch)
    whole = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: whole._replace(free=50_000))
    answer = moeprune("run", "params/quick.yaml", "--set", f"download.source={NAME}")
    assert answer.status == 2 and "are to be fetched into" in answer.err and "HF_HOME" in answer.err
    assert not [name for name in private.served if name.endswith(".safetensors")]
