"""Questions that lm-eval asks of a model: which there are, what decides their answers, and asking them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from moeprune.errors import BadInput, known_word
from tasks import suites
from tasks.artifacts import Params, Runtime, Store
from tasks.local_tasks import data_files, is_local, read_task, runs_code, task_folder, twin_files
from tasks.progress import progress


class HarnessParams(Params):
    """What is asked, and how."""

    tasks: tuple[str, ...] = ()
    """Words of suites (docs/suites.md), lm-eval's names, or paths of local YAML."""
    data: str = Field("hub", pattern="^(hub|local)$")
    """Where lm-eval's tasks have their data from; local are the files that `moeprune suites --fetch` gets."""
    sequence_length: int = Field(256, gt=1)
    """Longest input, in tokens."""
    num_fewshot: int = Field(0, ge=0)
    """Examples shown before each question."""
    limit: int | None = Field(None, gt=0)
    """At most so many documents of a corpus and questions of a task; null is all. A report says that it was limited."""
    seed: int = 0
    """Of the drawing of examples."""
    allow_code_execution: bool = False
    """Whether tasks that run generated code may."""


def check(params: HarnessParams, trusted: bool) -> None:
    """BadInput for tasks that are unknown or absent, or that would run code without leave; nothing is measured."""
    for name in suites.expand(params.tasks):
        task = suites.TASKS.get(name)
        if is_local(name):
            data_files(name, read_task(name, trusted))
            executes = runs_code(name)
        elif params.data == "local":
            twin_files(name)
            executes = False
            if params.num_fewshot and task and "dev" not in task.splits:
                raise BadInput(
                    f"evaluate.num_fewshot: local data of '{name}' has no split to take examples from: set 0, "
                    "or evaluate.data: hub"
                )
        elif task:
            executes = task.runs_code
        else:
            known_word(name, [*_built_in().all_tasks, *suites.SUITES], "evaluate.tasks:")
            executes = _runs_code(name)
        if executes and not params.allow_code_execution:
            raise BadInput(
                f"evaluate.tasks: '{name}' runs what a model writes: set evaluate.allow_code_execution: true where "
                "that can do no harm"
            )
        if task and task.writes >= params.sequence_length:
            raise BadInput(
                f"evaluate.sequence_length: '{name}' writes up to {task.writes} tokens after its question: set it to "
                f"{task.writes + 1024} or more"
            )


@cache
def _built_in() -> Any:
    """lm-eval's index of its own tasks: some ten seconds, hence once."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _runs_code(name: str) -> bool:
    """Whether one of lm-eval's tasks, or a member of one of its groups and tags, is marked as running code."""
    entry = _built_in().task_index.get(name)
    if entry is None:
        return False
    config = entry.cfg or {}
    members = config.get("task") if "group" in config else sorted(entry.tags) if not config else []
    return bool(config.get("unsafe_code")) or any(
        _runs_code(member) for member in members or [] if isinstance(member, str) and member != name
    )


def identity(params: HarnessParams, store: Store, trusted: bool) -> dict[str, Any]:
    """What decides the answers to each task: its definition and the content of its data, wherever they lie."""
    tasks: dict[str, Any] = {}
    for name in suites.expand(params.tasks):
        if is_local(name):
            content = read_task(name, trusted)
            files = {split: store.hash_of(path) for split, path in data_files(name, content).items()}
            tasks[content["task"]] = {"yaml": suites.digest([Path(name)]), "data": files}
        elif params.data == "local":
            data = {
                leaf: {split: store.hash_of(path) for split, path in files.items()}
                for leaf, files in twin_files(name).items()
            }
            tasks[name] = {"yaml": suites.digest(suites.files(name)), "data": data}
        else:
            tasks[name] = "built-in"
    return tasks


def ask(
    model: Any, tokenizer: Any, params: HarnessParams, runtime: Runtime, trusted: bool, title: str
) -> dict[str, Any]:
    """What lm-eval finds. Raises BadInput if it cannot run a task or reach its data."""
    import logging

    from datasets import disable_progress_bars
    from datasets.exceptions import DatasetsError
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from moeprune.likelihood import log_likelihoods

    class Model(HFLM):  # type: ignore[misc]
        """lm-eval's model, told log-likelihoods by ours."""

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: Any = None) -> Any:
            pairs = [(context, continuation) for _, context, continuation in requests]
            with progress(f"{title}: choices", len(pairs), "choices") as done:
                return log_likelihoods(self.model, pairs, self.max_length, runtime.batch_size * 4, done)

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    disable_progress_bars()  # one for every file of every task
    given = suites.expand(params.tasks)
    names = [read_task(task, trusted)["task"] if is_local(task) else task for task in given]
    lm = Model(
        pretrained=model, tokenizer=tokenizer, batch_size=runtime.batch_size * 4, max_length=params.sequence_length
    )
    with task_folder(given, trusted, params.data == "local") as folder, _leave(params.allow_code_execution):
        in_folder = all(is_local(name) or name in suites.TASKS for name in given)
        manager = TaskManager(include_path=str(folder), include_defaults=not in_folder)
        try:
            results: dict[str, Any] = simple_evaluate(
                model=lm,
                tasks=names,
                task_manager=manager,
                num_fewshot=params.num_fewshot,
                limit=params.limit,
                log_samples=True,
                random_seed=params.seed,
                numpy_random_seed=params.seed,
                torch_random_seed=params.seed,
                fewshot_random_seed=params.seed,
                confirm_run_unsafe_code=params.allow_code_execution,
            )
        except (KeyError, ConnectionError, FileNotFoundError, DatasetsError) as error:
            raise BadInput(
                f"evaluate.tasks: lm-eval cannot run {', '.join(names)}: {error}; check the names and that "
                "their data can be reached"
            ) from error
    return results


@contextmanager
def _leave(allowed: bool) -> Iterator[None]:
    """Meanwhile the evaluate library may run code that a model wrote, if that is allowed."""
    name = "HF_ALLOW_CODE_EVAL"
    before = os.environ.get(name)
    os.environ[name] = "1" if allowed else "0"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
