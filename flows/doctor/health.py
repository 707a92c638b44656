"""How well one thing is, and how to mend it."""

from dataclasses import dataclass
from typing import Literal

from moeprune.errors import BadInput


@dataclass(frozen=True)
class Finding:
    """What `moeprune doctor` says of one subject."""

    subject: str
    health: Literal["ok", "warn", "fail"]
    """warn: works, but not as a team may want it. fail: a run would fail, or lose something."""
    what: str
    mend: str = ""


def ok(subject: str, what: str) -> Finding:
    """All is well."""
    return Finding(subject, "ok", what)


def warn(subject: str, what: str, mend: str) -> Finding:
    """It works, but not as a team may want it."""
    return Finding(subject, "warn", what, mend)


def fail(subject: str, what: str, mend: str) -> Finding:
    """A run would fail, or lose something."""
    return Finding(subject, "fail", what, mend)


def refused(subject: str, error: BadInput) -> Finding:
    """What a run would be refused for: the error's last part says what to do."""
    what, _, mend = str(error).rpartition(": ")
    return fail(subject, what, mend) if what else fail(subject, mend, "")
