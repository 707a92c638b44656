"""The command line in a child process that kills itself at a chosen call of a chosen function.

Children come from multiprocessing's fork server, which has imported the heavy libraries once.
"""

import os
import signal
import sys
from multiprocessing import get_context
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

HEAVY = [
    "flows.running",
    "flows.show",
    "lm_eval.models.huggingface",
    "tasks.versioning",
    "transformers.models.olmoe.modeling_olmoe",
    "moeprune.models",
]


def moeprune(folder: Path, words: tuple[str, ...], place: str, call: int, server: str) -> int:
    """Run `moeprune WORDS` in a folder, to be killed as it calls `place` for the n-th time; returns the exit code."""
    context: Any = get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    child = context.Process(target=_run, args=(folder, words, place, call, server))
    child.start()
    child.join()
    return int(child.exitcode)


def _run(folder: Path, words: tuple[str, ...], place: str, call: int, server: str) -> None:
    os.chdir(folder)
    log = os.open(folder.parent / "killed.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.command import main
    from moeprune import footprint

    footprint.measure = lambda *_: {"load_peak_anonymous": 1}  # a process of its own, of some seconds
    owner, name = place.rsplit(".", 1)
    work, calls = getattr(resolve_name(owner), name), 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*arguments, **named)

    setattr(resolve_name(owner), name, counted)
    sys.argv = ["moeprune", *words]
    with temporary_settings({PREFECT_API_URL: server}):
        main()
