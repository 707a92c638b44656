"""lm-eval tasks from local YAML: read without running anything, checked, and made ready for lm-eval."""

import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from moeprune.errors import BadInput


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


def data_files(name: str, content: dict[str, Any]) -> dict[str, Path]:
    """The data files of a local task, absolute, by split; BadInput for one that is not there."""
    files = (content.get("dataset_kwargs") or {}).get("data_files") or {}
    files = files if isinstance(files, dict) else {"test": files}
    found = {str(split): (Path(name).parent / str(file)).resolve() for split, file in files.items()}
    for file in found.values():
        if not file.is_file():
            raise BadInput(f"evaluate.tasks: {name} names the data file {file}, which is not there")
    return found


@contextmanager
def task_folder(names: Iterable[str], trusted: bool) -> Iterator[Path]:
    """A folder for lm-eval's TaskManager: each local task included, with absolute paths of its data files."""
    with tempfile.TemporaryDirectory(prefix="moeprune-tasks-") as folder:
        for number, name in enumerate(filter(is_local, names)):
            content = read_task(name, trusted)
            task: dict[str, Any] = {"include": str(Path(name).resolve()), "task": content["task"]}
            if files := data_files(name, content):
                paths = {split: str(path) for split, path in files.items()}
                task["dataset_kwargs"] = {**content["dataset_kwargs"], "data_files": paths}
            (Path(folder) / f"{number}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
        yield Path(folder)
