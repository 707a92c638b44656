"""The overview of audits: what the tracker keeps of them, beside what the terminal says."""

import json

from recorded import lineage, stage

from flows.dashboard.audits import overview
from flows.dashboard.index import Entry
from flows.pages import Measured, Table

FOUND = {"stability": 0.8, "stability_halves": 0.7, "edge_experts": 9.0}


def test_overview_says_how_many_tokens_suffice_as_the_terminal_does():
    scopes = {"reap/0.25/all corpora": FOUND, "reap/0.25/wiki": FOUND | {"budget": 2048.0},
              "aimer/0.25/code": {"stability": 1.0, "stability_halves": 1.0, "edge_experts": 0.0},
              "reap/0.25/code": FOUND}  # fmt: skip
    metrics = {f"audit/{mask}/{name}": value for mask, those in scopes.items() for name, value in those.items()}
    stages = [
        stage("calibrate", name, name, metrics={"tokens": size}) for name, size in (("wiki", 6000), ("code", 2192))
    ]
    corpora = json.dumps([{"name": "wiki"}, {"name": "code"}])
    entry = Entry(lineage("a", *stages, params={"calibrate.corpora": corpora}, metrics=metrics, kind="audit"))
    table = overview([entry])
    assert isinstance(table, Table)
    assert {(row[1], row[3]): row[-1] for row in table.rows} == {
        ("reap", "all corpora"): Measured(4096, remark="not enough"), ("reap", "wiki"): 2048.0,
        ("aimer", "code"): None, ("reap", "code"): Measured(1096, remark="not enough"),
    }  # fmt: skip
