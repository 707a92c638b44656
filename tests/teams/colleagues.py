"""Machines of a team's members: a clone and a home each, and the environment that docs/team.md asks for."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from started import running

ROOT = Path(__file__).parents[2]
IDENTITY = "[user]\nname = {name}\nemail = {name}@example.org\n"
OFTEN = {"PREFECT_WORKER_QUERY_SECONDS": "2"}
"""Workers ask for work more often than by default, so that the week is short."""


@dataclass(frozen=True)
class Machine:
    """A member's, or a worker's."""

    folder: Path
    """Its clone of the project."""
    environ: Mapping[str, str]
    """All of it: nothing of this process' own is handed on."""

    def run(self, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """A command there, which must end with this exit status."""
        done = subprocess.run(
            words, cwd=self.folder, env=dict(self.environ), capture_output=True, text=True, check=False
        )
        if done.returncode != status:
            raise AssertionError(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def moeprune(self, *words: str, status: int = 0) -> dict[str, Any]:
        """What a command of moeprune tells programs."""
        found: dict[str, Any] = json.loads(
            self.run("moeprune", *words, "--json", status=status).stdout.splitlines()[-1]
        )
        return found

    @contextmanager
    def working(self) -> Iterator[Path]:
        """A worker there meanwhile; yields its log."""
        log = self.folder.with_suffix(".log")
        command = ["prefect", "worker", "start", "--pool", "moeprune", "--limit", "1"]
        with running(command, lambda: None, log, cwd=self.folder, env=self.environ | OFTEN):
            yield log


def machine(folder: Path, name: str, environ: Mapping[str, str], origin: Path | None = None) -> Machine:
    """A new machine in `folder`, with a clone of `origin` or an empty folder for one."""
    home = folder / name / "home"
    for place in (home, home / "tmp"):
        place.mkdir(parents=True)
    (home / ".gitconfig").write_text(IDENTITY.format(name=name))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # The code is this tree's, wherever the program comes from.
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(home), "TMPDIR": str(home / "tmp"), "LANG": "C.UTF-8"}
    clone = folder / name / "project"
    found = Machine(clone, own | environ)
    if origin is None:
        clone.mkdir()
    else:
        subprocess.run(["git", "clone", "--quiet", origin, clone], env=own, check=True)
    return found


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What calls return that are made at the same time."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [one.result() for one in [pool.submit(call) for call in calls]]
