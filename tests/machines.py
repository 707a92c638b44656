"""Several machines on one: processes that share neither a folder for temporary files nor a home."""

import os
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

HEAVY = ["tasks.tracking", "tasks.versioning"]


def at_once(work: Callable[[Path], None], folders: Sequence[Path], environ: Mapping[str, str]) -> None:
    """Call `work(folder)` in a process for each folder, all at the same moment.

    AssertionError with what each wrote if one of them fails.
    """
    context: Any = get_context("forkserver")  # its children start with the libraries imported: they do race
    context.set_forkserver_preload(HEAVY)
    start = context.Barrier(len(folders))
    children = [context.Process(target=_begin, args=(work, folder, dict(environ), start)) for folder in folders]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
    failed = [folder for child, folder in zip(children, folders, strict=True) if child.exitcode != 0]
    said = "\n".join(f"{folder.name}: {log_of(folder).read_text()[-3000:]}" for folder in failed)
    assert not failed, said


def log_of(folder: Path) -> Path:
    """What the process of a folder wrote."""
    return folder.with_suffix(".log")


def _begin(work: Callable[[Path], None], folder: Path, environ: dict[str, str], start: Barrier) -> None:
    folder.mkdir(exist_ok=True)
    temporary = folder / "tmp"
    temporary.mkdir()
    os.environ.update({**environ, "TMPDIR": str(temporary), "HOME": str(folder)})
    log = os.open(log_of(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    start.wait(120)
    work(folder)
