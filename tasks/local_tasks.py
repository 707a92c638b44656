"""lm-eval tasks that read local data: YAML of the user's, and twins of lm-eval's own; made ready for lm-eval.

A twin is lm-eval's own definition of a task with only the place of its data changed.
"""

import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from moeprune.errors import BadInput
from tasks import benchmarks, suites


class _Loader(yaml.SafeLoader):
    """Reads lm-eval's YAML without running its `!function`s, which it only notes."""


def _note_function(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> str:
    return f"!{suffix}"


_Loader.add_multi_constructor("!", _note_function)


def is_local(name: str) -> bool:
    """Whether a task is a YAML file rather than one of lm-eval's names."""
    return name.endswith((".yaml", ".yml"))


def read_task(name: str, trusted: bool) -> dict[str, Any]:
    """A local task's YAML; BadInput if it is missing, or runs code or includes other folders without being trusted."""
    path = Path(name)
    if not path.is_file():
        raise BadInput(f"evaluate.tasks: there is no file {name}: check the path")
    try:
        content = yaml.load(path.read_text(), Loader=_Loader)
    except yaml.YAMLError as error:
        raise BadInput(f"evaluate.tasks: {name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("task"), str):
        raise BadInput(f"evaluate.tasks: {name} names no task: give lm-eval YAML with a key 'task'")
    if not trusted:
        _refuse_code(path, path.parent.resolve())
    return content


def _refuse_code(path: Path, folder: Path) -> None:
    """BadInput if the YAML, or one it includes, runs code or leaves the folder."""
    trust = "set download.trust_remote_code: true if you trust it"
    if re.search(r"!function\b", path.read_text()):
        raise BadInput(f"evaluate.tasks: {path} runs code (!function): {trust}")
    included = yaml.load(path.read_text(), Loader=_Loader).get("include") or []
    for name in [included] if isinstance(included, str) else included:
        other = (path.parent / name).resolve()
        if folder not in other.parents:
            raise BadInput(f"evaluate.tasks: {path} includes {name} outside its folder: {trust}")
        if not other.is_file():
            raise BadInput(f"evaluate.tasks: {path} includes {name}, which is not there")
        _refuse_code(other, folder)


def runs_code(name: str) -> bool:
    """Whether a local task, or what it includes, is marked as running what a model writes."""

    def marks(path: Path) -> Iterator[bool]:
        content = yaml.load(path.read_text(), Loader=_Loader)
        if "unsafe_code" in content:
            yield bool(content["unsafe_code"])
        included = content.get("include") or []
        for other in [included] if isinstance(included, str) else included:
            yield from marks(path.parent / other)

    return next(marks(Path(name)), False)


def data_files(name: str, content: dict[str, Any]) -> dict[str, Path]:
    """The data files of a local task, absolute, by split; BadInput for one that is not there."""
    files = (content.get("dataset_kwargs") or {}).get("data_files") or {}
    files = files if isinstance(files, dict) else {"test": files}
    found = {str(split): (Path(name).parent / str(file)).resolve() for split, file in files.items()}
    for file in found.values():
        if not file.is_file():
            raise BadInput(f"evaluate.tasks: {name} names the data file {file}, which is not there")
    return found


def _split_keys(splits: Iterable[str]) -> dict[str, str | None]:
    """What a twin says of its splits; the ones it has not are taken away from lm-eval's definition."""
    keys = {"training_split": "train", "validation_split": "validation", "test_split": "test", "fewshot_split": "dev"}
    return {key: split if split in splits else None for key, split in keys.items()}


def _leaves(name: str) -> dict[str, Path]:
    """lm-eval's YAML of each single task that a suite's task consists of."""
    contents = {path: yaml.load(path.read_text(), Loader=_Loader) for path in suites.files(name)}
    return {content["task"]: path for path, content in contents.items() if "group" not in content}


def twin_files(name: str) -> dict[str, dict[str, Path]]:
    """The data of a suite's task by single task and split; BadInput if it has no twin or was not fetched."""
    task = suites.TASKS.get(name)
    if task is None or not task.splits:
        raise BadInput(
            f"evaluate.data: there is no local data of '{name}': set evaluate.data: hub, or take it out of "
            "evaluate.tasks"
        )
    folder = benchmarks.location()
    if not benchmarks.present(folder):
        raise BadInput(f"evaluate.data: {folder} does not hold the benchmarks: fetch them with {benchmarks.COMMAND}")
    return {leaf: {split: folder / leaf / f"{split}.parquet" for split in task.splits} for leaf in _leaves(name)}


@contextmanager
def task_folder(names: Iterable[str], trusted: bool, local_data: bool) -> Iterator[Path]:
    """A folder for lm-eval's TaskManager: each local and each suite's task included, with absolute paths of its data.

    With `local_data` a suite's tasks are their twins.
    """
    with tempfile.TemporaryDirectory(prefix="moeprune-tasks-") as folder:

        def write(task: dict[str, Any]) -> None:
            number = len(list(Path(folder).iterdir()))
            (Path(folder) / f"{number:03}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))

        for name in names:
            if is_local(name):
                content = read_task(name, trusted)
                task: dict[str, Any] = {"include": str(Path(name).resolve()), "task": content["task"]}
                if files := data_files(name, content):
                    paths = {split: str(path) for split, path in files.items()}
                    task["dataset_kwargs"] = {**content["dataset_kwargs"], "data_files": paths}
                write(task)
            elif name in suites.TASKS:
                twins = twin_files(name) if local_data else {}
                sources = {path: leaf for leaf, path in _leaves(name).items()}
                for path in suites.files(name):
                    write({"include": str(path)} | _data_of(twins.get(sources.get(path, ""), {})))
        yield Path(folder)


def _data_of(files: dict[str, Path]) -> dict[str, Any]:
    if not files:
        return {}
    paths = {split: str(path) for split, path in files.items()}
    place = {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": {"data_files": paths}}
    return place | _split_keys(paths)
