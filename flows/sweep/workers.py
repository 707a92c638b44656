"""Processes in which the stages of recipes under way at once are run.

Processes and not threads: observing, masks in memory and loading change a model, or the libraries underneath, while
they last. In a process of its own a stage does what it would do alone, to the byte.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from io import TextIOBase
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any, TextIO

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ProcessPoolTaskRunner

from flows.engine import Execute, say
from tasks.artifacts import Artifact


class Workers:
    """`count` processes, each started when it is first needed, each keeping the model it has read last.

    `threads` are torch's in each of them; None: torch decides.
    """

    def __init__(self, count: int, threads: int | None) -> None:
        self._free: SimpleQueue[_Worker] = SimpleQueue()
        with get_client(sync_client=True) as client:  # of a server that was set, or of the one for this flow run
            api = str(client.api_url).rstrip("/")
        self._all = [_Worker(threads, api) for _ in range(count)]
        for worker in self._all:
            self._free.put(worker)

    @contextmanager
    def one(self) -> Iterator[Execute]:
        """One of them for oneself. Waits until one is free."""
        worker = self._free.get()
        try:
            yield worker.execute
        finally:
            self._free.put(worker)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for worker in self._all:
            worker.close(at_once=kind is not None)

    def stop(self) -> None:
        """End them in the middle of what they do."""
        for worker in self._all:
            worker.stop()


class _Worker:
    def __init__(self, threads: int | None, api: str) -> None:
        self._threads = threads
        self._api = api
        self._stopped = False
        self._open()

    def _open(self) -> None:
        # The end that is held here is closed when this process dies, however it dies.
        orders, self._held = Pipe(duplex=False)
        self._runner = ProcessPoolTaskRunner(1, initializer=_begin, initargs=(orders, self._threads))
        self._runner.__enter__()

    def execute(self, work: Any, arguments: dict[str, Any]) -> Artifact:
        """Run a Prefect task there; once more, in a new process, if the first ended meanwhile.

        RuntimeError if the second ends as well; the next task gets a new one.
        """
        try:
            return self._try(work, arguments)
        except BrokenExecutor:
            say("a worker ended without a word: what it was doing is tried once more")
        try:
            return self._try(work, arguments)
        except BrokenExecutor as error:
            raise RuntimeError(
                "two processes that ran it ended without a word: killed, perhaps, for want of memory"
            ) from error

    def _try(self, work: Any, arguments: dict[str, Any]) -> Artifact:
        try:
            with temporary_settings({PREFECT_API_URL: self._api}):  # else each worker would start a server of its own
                running = self._runner.submit(work, arguments)
            made: Artifact = running.result()
        except BrokenExecutor as error:
            if self._stopped:
                raise KeyboardInterrupt from error
            self.close()
            self._open()
            raise
        return made

    def stop(self) -> None:
        self._stopped = True
        self._held.close()

    def close(self, at_once: bool = False) -> None:
        if at_once:
            self.stop()
        self._runner.__exit__(None, None, None)
        self._held.close()


class Lines(TextIOBase):
    """A stream that writes whole lines only: bars of several processes, drawn over one another, cannot be read."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text as lines of its own, unless it only moves a cursor or blanks."""
        if text.strip():
            self._stream.write(text.strip("\r\n") + "\n")
            self._stream.flush()
        return len(text)


def _begin(orders: Connection, threads: int | None) -> None:
    """Runs first in a worker: it ends with the process that started it, and leaves interrupting to it."""
    os.setpgrp()  # it and what it starts are one group, which the terminal does not interrupt
    sys.stderr = Lines(sys.stderr)
    import torch

    from flows.running import quiet

    Thread(target=_end_with, args=(orders,), daemon=True).start()
    if threads:
        torch.set_num_threads(threads)
    quiet()


def _end_with(orders: Connection) -> None:
    try:
        orders.recv()
    except EOFError:
        logging.shutdown()
        os.killpg(0, signal.SIGKILL)  # with what measures memory for it
