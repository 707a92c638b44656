"""Server processes of tests: started, waited for, and ended with what they started."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

PATIENCE = 240
"""Seconds a server has to come up in; on a busy machine one needs minutes."""


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def running(
    command: list[str], up: Callable[[], Any], log: Path, stop: signal.Signals = signal.SIGTERM, **named: Any
) -> Iterator[int]:
    """A process and its children, ended with the block; yields its id as soon as `up` no longer raises OSError.

    If it ends before or takes too long, RuntimeError with the end of its log.
    """
    with log.open("wb") as file:
        # A session of its own, so that what it starts can be ended with it, and nothing else.
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True, **named)
    try:
        limit = time.monotonic() + PATIENCE
        while True:
            try:
                up()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > limit:
                    end = log.read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"{command[0]} did not come up:\n{end}") from None
                time.sleep(0.1)
        yield process.pid
    finally:
        _end(process, stop)


def _end(process: subprocess.Popen[bytes], stop: signal.Signals) -> None:
    for sign in (stop, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(20)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def answers(address: str) -> Callable[[], Any]:
    """Whether an address is answered, as `running` asks it."""
    opener = build_opener(ProxyHandler({}))

    def ask() -> None:
        try:
            opener.open(address, timeout=2).close()
        except HTTPError as error:
            if error.code >= 500:  # a server that asks who we are is up
                raise

    return ask
