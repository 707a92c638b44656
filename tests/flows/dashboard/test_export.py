"""The one file: which runs it draws where none is named."""

from dataclasses import replace

from recorded import lineage

from flows.dashboard.export import DRAWN, newest
from flows.dashboard.index import Entry


def entry(run: str, status: str = "FINISHED", **tags: str) -> Entry:
    one = lineage(run, **tags)
    return Entry(replace(one, run=replace(one.run, status=status)))


def test_newest_are_those_that_finished_and_others_only_where_these_are_few():
    done = [entry(f"done {number}") for number in range(DRAWN)]
    others = [entry("failed", "FAILED"), entry("running", "RUNNING")]
    audit = entry("audit", kind="audit")
    assert newest([audit, *others, *done]) == done
    assert newest([others[0], done[0], others[1]]) == [done[0], *others]
    assert newest([audit]) == [audit]
