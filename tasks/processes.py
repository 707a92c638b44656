"""Which process made a record, and whether it is still there."""

import os
import socket
from pathlib import Path


def place() -> str:
    """Where process ids mean something: this host and, as containers may share its name, their id space."""
    return f"{socket.gethostname()}:{os.stat('/proc/self/ns/pid').st_ino}"


def process(pid: int) -> str:
    """Id and start of a live process: ids are used again. Empty if there is none, or but its unburied remains."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else f"{pid}:{fields[18]}"


def is_alive(known: str) -> bool:
    """Whether what `process` has named is still there."""
    return bool(known) and process(int(known.split(":")[0])) == known
