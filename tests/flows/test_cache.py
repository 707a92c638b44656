"""What runs again and what does not, by real runs of the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sample

from moeprune.hashing import sha256

ALL = [
    "download",
    "calibrate wiki",
    "calibrate code",
    "observe wiki",
    "observe code",
    "score reap",
    "mask",
    "prune",
    "evaluate base",
    "evaluate pruned",
]
WHOLE = "params/whole.yaml"


def test_run_first_time_runs_every_stage(finished):
    _, answer = finished
    assert answer.missed == ALL


def test_run_second_time_runs_nothing(done, finished, run):
    again = run(WHOLE)
    assert again.missed == []
    assert again.keys == finished[1].keys
    assert again.json["metrics"] == finished[1].json["metrics"]


def test_run_other_ratio_runs_mask_prune_and_evaluation_of_the_pruned_model(done, run):
    assert run(WHOLE, "mask.ratio=0.5").missed == ["mask", "prune", "evaluate pruned"]


def test_run_other_criterion_runs_from_score_onward(done, run):
    answer = run(WHOLE, "score.criterion=frequency")
    assert answer.missed[:2] == ["score frequency", "mask"]
    assert set(answer.missed) <= {"score frequency", "mask", "prune", "evaluate pruned"}
    assert run(WHOLE, "score.criterion=frequency").missed == []


def test_run_two_criteria_that_keep_the_same_experts_share_the_checkpoint_and_its_evaluation(done, finished, run):
    # reap is this member of the unified family: other scores by name, the same mask.
    answer = run(WHOLE, "score={criterion: unified, options: {b: 1, a: 1, c: 1}}")
    assert answer.missed == ["score unified", "mask"]
    assert answer.keys["prune"] == finished[1].keys["prune"]


def test_run_same_budget_in_other_words_runs_nothing(done, run):
    assert run(WHOLE, f"mask.keep={sample.EXPERTS * 3 // 4}").missed == []


@pytest.mark.parametrize(
    "changes",
    [["runtime.batch_size=2"], ["runtime.threads=2", "runtime.device=auto"]],
    ids=["batch size", "threads and device"],
)
def test_run_other_runtime_runs_nothing(changes, done, run):
    assert run(WHOLE, *changes).missed == []


def test_run_store_moved_runs_nothing(done, run, tmp_path):
    shutil.move(done / ".moeprune", tmp_path / "elsewhere")
    assert run(WHOLE, f"runtime.store={tmp_path / 'elsewhere'}").missed == []


def test_run_sources_moved_runs_nothing(done, run, tmp_path):
    for name in ("model", "sources", "questions"):
        shutil.move(done / name, tmp_path / name)
    text = (done / WHOLE).read_text().replace("sources/", f"{tmp_path}/sources/")
    text = text.replace("source: model", f"source: {tmp_path}/model").replace("questions/", f"{tmp_path}/questions/")
    (done / WHOLE).write_text(text)
    assert run(WHOLE).missed == []


def delete(path: Path) -> None:
    path.unlink()


def corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # a linked source must not change with it
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [delete, corrupt])
@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("calibrate code", "tokens.safetensors"),
        ("observe wiki", "statistics.safetensors"),
        ("score reap", "scores.safetensors"),
        ("mask", "mask.json"),
        ("prune", "model-00002-of-*.safetensors"),
        ("evaluate pruned", "samples.parquet"),
        ("download", "config.json"),
        ("mask", "manifest.json"),
    ],
    ids=lambda value: value,
)
def test_run_artifact_damaged_runs_that_stage_alone_again(
    title: str, name: str, damage: Callable[[Path], None], done, finished, run
):
    folder = done / ".moeprune" / title.split()[0] / finished[1].keys[title]
    (path,) = folder.glob(name)
    before = sha256(path)
    damage(path)
    if name == "manifest.json" and damage is corrupt:
        path.write_text(path.read_text()[:50])
    answer = run(WHOLE)
    assert answer.missed == [title]
    assert answer.keys == finished[1].keys
    assert name == "manifest.json" or sha256(path) == before


def test_run_whole_stage_lost_is_made_again_though_prefect_has_a_record(done, finished, run):
    results = done / ".moeprune" / "results"
    assert (results / f"prune-{finished[1].keys['prune']}").is_file()
    shutil.rmtree(done / ".moeprune" / "prune")
    answer = run(WHOLE)
    assert answer.missed == ["prune"]
    assert (Path(answer.json["checkpoint"]) / "config.json").is_file()


def test_run_prefect_records_lost_runs_nothing(done, run):
    shutil.rmtree(done / ".moeprune" / "results")
    assert run(WHOLE).missed == []


def test_run_one_changed_corpus_runs_what_depends_on_it(done, run):
    texts = sample.documents("code", 60, 3)
    sample.write_lines(done / "sources/code.jsonl", [{"text": text} for text in texts])
    missed = run(WHOLE).missed
    assert missed[:3] == ["calibrate code", "observe code", "score reap"]
    assert set(missed[3:]) <= {"mask", "prune", "evaluate pruned"}


def test_run_corpus_rewritten_with_the_same_text_stops_before_score(done, run):
    # Other bytes of the source, the same tokens drawn, hence the same statistics.
    path = done / "sources/code.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    sample.write_lines(path, [row | {"licence": "none"} for row in rows])
    missed = run(WHOLE).missed
    assert missed[0] == "calibrate code" and set(missed) <= {"calibrate code", "observe code"}
