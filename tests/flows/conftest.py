"""Projects to run in, one Prefect server for the whole session, and the command line called as users call it."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sample

os.environ["COLUMNS"] = "300"  # tables whose cells are not folded
os.environ.pop("MLFLOW_TRACKING_URI", None)

MEMORY = {"load_peak_anonymous": 1, "load_peak_mapped": 1, "forward_peak_anonymous": 1, "forward_peak_mapped": 1}


@dataclass(frozen=True)
class Answer:
    """How a command ended and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of stdout."""
        content: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return content

    @property
    def cache(self) -> dict[str, str]:
        """Hit or miss of every artifact by stage and label, such as "observe wiki"."""
        return {
            f"{stage} {artifact['of']}".strip(): artifact["cache"]
            for stage, entry in self.json["stages"].items()
            for artifact in entry["artifacts"]
        }

    @property
    def missed(self) -> list[str]:
        """What was run, in order."""
        return [title for title, cache in self.cache.items() if cache == "miss"]

    @property
    def keys(self) -> dict[str, str]:
        """The key of every artifact."""
        return {
            f"{stage} {artifact['of']}".strip(): artifact["key"]
            for stage, entry in self.json["stages"].items()
            for artifact in entry["artifacts"]
        }


Moeprune = Callable[..., Answer]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A Prefect server with a database of its own; runs in this process use it, children are given its address."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield str(PREFECT_API_URL.value())


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed git and DVC project that has never run; its MLflow database is made, which takes seconds."""
    from mlflow.tracking import MlflowClient

    from flows.project import init

    folder = sample.write_project(tmp_path_factory.mktemp("template") / "project")
    init(folder)
    sample.git(folder, "add", "--all")
    sample.git(folder, "commit", "--quiet", "--message", "project")
    (folder / ".moeprune").mkdir()
    MlflowClient(tracking_uri=f"sqlite:///{folder}/.moeprune/mlflow.db").search_experiments(max_results=1)
    return folder


@pytest.fixture(scope="session")
def process(server: str) -> Moeprune:
    """The command line in a process of its own, in a folder. `script` is Python run in place of the entry point."""

    def call(folder: Path, *words: str, script: str | None = None, **environ: str) -> Answer:
        start = ["-m", "flows.command"] if script is None else ["-c", script]
        environment = os.environ | {"PREFECT_API_URL": server, "OMP_NUM_THREADS": "1"} | environ
        done = subprocess.run(
            [sys.executable, *start, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def finished(template: Path, process: Moeprune, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A project after one whole run in a process of its own, and what the run wrote. To be copied, not changed."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    shutil.copytree(template, folder)
    answer = process(folder, "run", "params/whole.yaml", "--json")
    assert answer.status == 0, answer.err
    return folder, answer


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project that has never run; the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def done(finished: tuple[Path, Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, its store included, of the project after its run; the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(finished[0], folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def moeprune(monkeypatch: pytest.MonkeyPatch) -> Moeprune:
    """The command line in this process. Memory is not measured: each measurement is a process of some seconds."""
    from flows.command import main

    monkeypatch.setattr("moeprune.footprint.measure", lambda *_: MEMORY)

    def call(*words: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["moeprune", *words])
        status = 0
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            try:
                main()
            except SystemExit as end:
                status = int(end.code or 0)
        return Answer(status, out.getvalue(), err.getvalue())

    return call


@pytest.fixture
def run(moeprune: Moeprune, server: str) -> Moeprune:
    """`moeprune run RECIPE ... --json`, which must succeed."""

    def call(recipe: str, *changes: str) -> Answer:
        answer = moeprune("run", recipe, *(word for change in changes for word in ("--set", change)), "--json")
        assert answer.status == 0, answer.err
        return answer

    return call
