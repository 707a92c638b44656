"""evaluate: a checkpoint's perplexity, accuracy, memory and writing, each with its error where it has one.

Values of every document and every question are kept, so that two checkpoints are compared pair by pair.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from moeprune.errors import BadInput, known_word
from tasks import suites
from tasks.artifacts import Artifact, Params, Runtime, Step, Store, set_threads, stage
from tasks.comparison import GENERATIONS, REPORT, SAMPLES, write_samples
from tasks.harvest import harvest
from tasks.held_out import EvaluationCorpus, read_corpus, write_on
from tasks.identity import code_digest
from tasks.local_tasks import data_files, is_local, read_task, runs_code, task_folder, twin_files
from tasks.progress import progress

CODE = (
    "moeprune.perplexity",
    "moeprune.footprint",
    "moeprune.models",
    "moeprune.corpus",
    "moeprune.file_plan",
    "moeprune.sizes",
    "moeprune.likelihood",
    "tasks.held_out",
    "tasks.harvest",
)
LIBRARIES = ("torch", "transformers", "lm-eval")
FORMAT = "moeprune-report/1"


class EvaluateParams(Params):
    """What is measured."""

    corpora: tuple[EvaluationCorpus, ...] = ()
    """Held-out text for perplexity and bits per byte."""
    tasks: tuple[str, ...] = ()
    """Words of suites (docs/suites.md), lm-eval's names, or paths of local YAML."""
    data: str = Field("hub", pattern="^(hub|local)$")
    """Where lm-eval's tasks have their data from; local are the files that `python -m tasks.benchmarks` fetches."""
    dtype: str = Field("float32", pattern="^(auto|float32|bfloat16|float16)$")
    """Precision of the model; compare models in one precision only."""
    sequence_length: int = Field(256, gt=1)
    """Longest input, in tokens."""
    num_fewshot: int = Field(0, ge=0)
    limit: int | None = Field(None, gt=0)
    """At most so many documents of a corpus and questions of a task; null is all. A report says that it was limited."""
    generations: int = Field(3, ge=0)
    """Greedy continuations of held-out text to read side by side."""
    seed: int = 0
    expert_skipping: bool = False
    """Whether the pruned model is measured a second time with dynamic expert skipping (models of top-2 routing)."""
    allow_code_execution: bool = False
    """Whether tasks that run generated code may."""


def check(params: EvaluateParams, trusted: bool) -> None:
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


def step(
    params: EvaluateParams,
    of: str,
    checkpoint: Artifact | None,
    corpora: dict[str, Path],
    store: Store,
    trusted: bool,
    skipping: dict[str, Artifact | None] | None = None,
) -> Step:
    """Corpora and local tasks count by their content; `corpora` are the located sources.

    With statistics of the checkpoint as `skipping`, tokens skip experts by the thresholds of all of them together.
    """
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
    identity = params.model_dump(mode="json", exclude={"corpora", "tasks", "data", "expert_skipping"}) | {
        "corpora": [
            {"name": corpus.name, "field": corpus.field, "source": store.hash_of(corpora[corpus.name])}
            for corpus in params.corpora
        ],
        "tasks": tasks,
        "suites": suites.headlines(params.tasks),
        "format": FORMAT,
    }
    inputs = {"checkpoint": checkpoint}
    inputs |= {f"observe.{number}": statistics for number, statistics in enumerate((skipping or {}).values())}
    code = (*CODE, "moeprune.skipping") if skipping else CODE
    return Step("evaluate", of, code_digest(code, LIBRARIES), identity, inputs)


@stage(name="evaluate")
def evaluate(
    step: Step, runtime: Runtime, params: EvaluateParams, corpora: dict[str, Path], trust_remote_code: bool
) -> Artifact:
    """report.json, samples.parquet and generations.json of one checkpoint."""
    store = Store(runtime.store)

    def build(target: Path) -> dict[str, Any]:
        from transformers import AutoTokenizer

        from moeprune.configs import read_config
        from moeprune.footprint import measure
        from moeprune.models import load_model, pick_device

        set_threads(runtime)
        checkpoint = step.inputs["checkpoint"]
        assert checkpoint is not None
        observed = [store.folder(entry) for name, entry in step.inputs.items() if name != "checkpoint" and entry]
        folder, device = store.folder(checkpoint), pick_device(runtime.device)
        memory = measure(folder, params.dtype, device, params.sequence_length, trust_remote_code)
        model = load_model(folder, params.dtype, device, trust_remote_code)
        config = read_config(folder, trust_remote_code)  # by it transformers chooses the tokenizer's class
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=trust_remote_code)
        found: dict[str, Any] = {"metrics": {}, "pooled": {}}
        samples: list[dict[str, Any]] = []
        written: list[dict[str, str]] = []
        with _skipping(model, observed) as skipped:
            for corpus in params.corpora:
                path, batch = corpora[corpus.name], runtime.batch_size
                metrics, rows, starts = read_corpus(
                    model, tokenizer, corpus, path, params.sequence_length, batch, params.limit, step.title
                )
                found["metrics"] |= metrics
                samples += rows
                if len(written) < params.generations:
                    written.append(write_on(model, tokenizer, starts, corpus.name))
            if params.tasks:
                results = _harness(model, tokenizer, params, runtime, trust_remote_code, step)
                metrics, rows, found["pooled"] = harvest(results)
                found["metrics"] |= metrics
                samples += rows
        found["metrics"] |= skipped
        for word, names in step.params["suites"].items():
            found["metrics"][f"suite/{word}"] = suites.average([found["metrics"][name] for name in names])
        report = {
            "format": FORMAT,
            "checkpoint": checkpoint.digest,
            "evaluation": step.params,
            "limited": params.limit is not None,
            **found,
            "suites": step.params["suites"],
            "memory": {**_sizes(folder, trust_remote_code), **memory},
        }
        (target / REPORT).write_text(json.dumps(report, indent=1) + "\n")
        (target / GENERATIONS).write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
        write_samples(target / SAMPLES, samples)
        return {
            "documents": sum(row["kind"] == "document" for row in samples),
            "questions": sum(row["kind"] == "question" for row in samples),
        }

    return store.produce(step, runtime, build)


def _sizes(folder: Path, trust_remote_code: bool) -> dict[str, int]:
    """Bytes of the weights on disk, parameters in total, and parameters a token makes use of."""
    from moeprune.checkpoint import open_checkpoint
    from moeprune.configs import read_config, read_routing
    from moeprune.file_plan import read_file_plan
    from moeprune.sizes import parameters

    checkpoint = open_checkpoint(folder)
    routing = read_routing(read_config(folder, trust_remote_code))
    plan = read_file_plan(checkpoint, trust_remote_code)
    total, active = parameters(checkpoint, plan, routing.experts, routing.top_k)
    return {"disk": checkpoint.weight_bytes, "parameters": total, "active_parameters": active}


def _harness(
    model: Any, tokenizer: Any, params: EvaluateParams, runtime: Runtime, trusted: bool, step: Step
) -> dict[str, Any]:
    """What lm-eval finds."""
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
            with progress(f"{step.title}: choices", len(pairs), "choices") as done:
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


@contextmanager
def _skipping(model: Any, observed: list[Path]) -> Iterator[dict[str, Any]]:
    """Meanwhile tokens skip experts by the thresholds of what was observed, if anything; what is measured of it."""
    measured: dict[str, Any] = {}
    if not observed:
        yield measured
        return
    from moeprune.files import load_statistics
    from moeprune.skipping import skipping, thresholds
    from moeprune.statistics import pooled

    sums = pooled([load_statistics(folder / "statistics.safetensors") for folder in observed])
    beta = dict(zip(sums.layer.tolist(), thresholds(sums).tolist(), strict=True))
    with skipping(model, beta) as skipped:
        yield measured
    tokens = max(skipped.tokens.values(), default=0)
    measured["experts_per_token"] = {"value": skipped.experts_per_token, "stderr": None, "n": tokens}
