"""A tracker on PostgreSQL, its artifacts on S3: begun by many at once, and a DVC remote on S3."""

from pathlib import Path

import pytest
from machines import at_once
from servers import Postgres

from tasks.artifacts import Store
from tasks.lineage import read_lineages
from tasks.tracking import Tracker

MANIFEST = {
    "digest": "d" * 64,
    "inputs": {},
    "params": {"a": 1},
    "facts": {"tokens": 8},
    "producer": {
        "flow_run": "f",
        "git_commit": "c",
        "git_dirty": False,
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "peak_memory_bytes": 1,
    },
}
MACHINES = 3
CORPORA = ("wiki", "code", "law", "fiction")


def record(folder: Path) -> None:
    """One run as flows record it: stages with a file and a corpus each, a model; all but the run as the others have."""
    tracker = Tracker(Store(folder / "store"))
    tracker.check()
    file = folder / "report.json"
    file.write_text(folder.name)
    with tracker.run(folder.name, {"a": 1}, recipe="a: 1\n") as run:
        for number, name in enumerate(CORPORA):
            manifest = MANIFEST | {"key": f"{number:064x}"}
            child = run.log_stage(f"calibrate {name}", "calibrate", name, manifest, "miss", [file])
            run.log_corpus(child, name, f"{number:032x}", f"{name}.jsonl", 8)
        run.log_model("base", MANIFEST["digest"], "base")


@pytest.mark.parametrize("kind", ["database", "server"])
def test_tracker_begun_by_many_at_once_loses_no_run(kind, cluster: Postgres, request, tmp_path, monkeypatch):
    """Machines with a store each: nothing but the tracker can keep them apart."""
    address = cluster.create() if kind == "database" else request.getfixturevalue("mlflow_url")
    environ = {"MLFLOW_TRACKING_URI": address, "MLFLOW_EXPERIMENT_NAME": "race"}
    names = [f"machine{number}" for number in range(MACHINES)]
    at_once(record, [tmp_path / name for name in names], environ)

    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    tracker = Tracker(Store(tmp_path / "later"))
    found = read_lineages(tracker)
    assert found.damaged == [] and sorted(one.run.name for one in found.whole) == names
    (model,) = tracker.models()
    for one in found.whole:
        assert one.run.status == "FINISHED" and one.models == (model,)
        assert [(stage.of, int(stage.key, 16)) for stage in one.stages] == [
            (name, number) for number, name in enumerate(CORPORA)
        ]
        assert {stage.metrics["tokens"] for stage in one.stages} == {8}
        assert [tracker.files(stage.id) for stage in one.stages] == [["report.json"]] * len(CORPORA)
    for number in range(len(CORPORA)):
        assert len(tracker.runs_with_dataset(f"{number:032x}")) == MACHINES
