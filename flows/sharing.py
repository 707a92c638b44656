"""Stages that several recipes of a sweep share: one makes the result, the others wait for it and find it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from moeprune.errors import BadInput
from tasks.artifacts import Artifact, Step
from tasks.versioning import Version


class Shared:
    """What the recipes under way know of one another."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._locks: dict[str, Lock] = {}
        self._faults: dict[str, Exception] = {}
        self._versions: dict[str, Version] = {}

    @contextmanager
    def alone(self, step: Step) -> Iterator[None]:
        """Within this block nobody else looks for this step's result or makes it.

        A step that failed is not tried again by the next recipe that wants it: its error is raised at once.
        """
        assert step.key is not None, f"{step.title}: its inputs are not known"
        with self._guard:
            lock = self._locks.setdefault(step.key, Lock())
        with lock:
            if fault := self._faults.get(step.key):
                kind = BadInput if isinstance(fault, BadInput) else RuntimeError
                raise kind(f"{step.title} failed for another recipe already: {fault}") from fault
            try:
                yield
            except Exception as error:
                self._faults[step.key] = error
                raise

    def registered(self, artifact: Artifact, register: Callable[[], Version]) -> Version:
        """DVC's version of an artifact, registered by the first recipe that has it."""
        with self._guard:
            lock = self._locks.setdefault(artifact.path, Lock())
        with lock:
            if artifact.path not in self._versions:
                self._versions[artifact.path] = register()
            return self._versions[artifact.path]
