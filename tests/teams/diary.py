"""What is told of a week: each step in one line as it ends, all that was checked in a table."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Step:
    """One step, and what was found to hold in it."""

    day: str
    title: str
    claims: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def holds(self, claim: str, found: Any, wanted: Any = True) -> None:
        """Note that what was found is what was claimed; else AssertionError with both."""
        if found != wanted:
            raise AssertionError(f"{self.day}, {self.title}: {claim}: found {found!r}, not {wanted!r}")
        self.claims.append(claim)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While it is; it is told when it ends."""
        started = time.monotonic()
        yield
        self.seconds = time.monotonic() - started
        print(f"{self.day}  {self.seconds:6.1f} s  {len(self.claims):2} claims  {self.title}", flush=True)


@dataclass
class Diary:
    """The steps, in the order in which they are told of."""

    steps: list[Step] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def add(self, day: str, title: str) -> Step:
        """A step that is to be taken."""
        self.steps.append(Step(day, title))
        return self.steps[-1]

    def table(self) -> str:
        """All steps with all that held, as Markdown."""
        rows = ["| day | step | what was checked | s |", "| --- | --- | --- | --- |"]
        rows += [f"| {one.day} | {one.title} | {'; '.join(one.claims)} | {one.seconds:.1f} |" for one in self.steps]
        claims, seconds = sum(len(one.claims) for one in self.steps), time.monotonic() - self.began
        return "\n".join([*rows, f"| | {len(self.steps)} steps | {claims} claims hold | {seconds:.1f} |"])
