"""evaluate: a checkpoint's perplexity, accuracy, memory and writing, each with its error where it has one.

Values of every document and every question are kept, so that two checkpoints are compared pair by pair.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from moeprune.errors import BadInput, known_word
from tasks.artifacts import Artifact, Params, Runtime, Step, Store, set_threads, stage
from tasks.identity import code_digest
from tasks.local_tasks import data_files, is_local, read_task, task_folder
from tasks.progress import progress

CODE = ("moeprune.perplexity", "moeprune.footprint", "moeprune.models", "moeprune.corpus", "moeprune.surgery")
LIBRARIES = ("torch", "transformers", "lm-eval")
REPORT, SAMPLES, GENERATIONS = "report.json", "samples.parquet", "generations.json"
FORMAT = "moeprune-report/1"


class EvaluationCorpus(Params):
    """A held-out corpus."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    source: str
    field: str = "text"


class EvaluateParams(Params):
    """What is measured."""

    corpora: tuple[EvaluationCorpus, ...] = ()
    """Held-out text for perplexity and bits per byte."""
    tasks: tuple[str, ...] = ()
    """lm-eval tasks: built-in names, or paths of local YAML."""
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
    allow_code_execution: bool = False
    """Whether tasks that run generated code may."""


def check_built_in(name: str) -> None:
    """BadInput, with the nearest name, if lm-eval has no such task."""
    from lm_eval.tasks import TaskManager

    known_word(name, TaskManager().all_tasks, "evaluate.tasks:")


def step(
    params: EvaluateParams, of: str, checkpoint: Artifact | None, corpora: dict[str, Path], store: Store, trusted: bool
) -> Step:
    """Corpora and local tasks count by their content; `corpora` are the located sources."""
    tasks: dict[str, Any] = {}
    for name in params.tasks:
        if is_local(name):
            content = read_task(name, trusted)
            files = {split: store.hash_of(path) for split, path in data_files(name, content).items()}
            tasks[content["task"]] = {"yaml": store.hash_of(Path(name)), "data": files}
        else:
            tasks[name] = "built-in"
    identity = params.model_dump(mode="json", exclude={"corpora", "tasks"}) | {
        "corpora": [
            {"name": corpus.name, "field": corpus.field, "source": store.hash_of(corpora[corpus.name])}
            for corpus in params.corpora
        ],
        "tasks": tasks,
    }
    return Step("evaluate", of, code_digest(CODE, LIBRARIES), identity, {"checkpoint": checkpoint})


@stage(name="evaluate")
def evaluate(
    step: Step, runtime: Runtime, params: EvaluateParams, corpora: dict[str, Path], trust_remote_code: bool
) -> Artifact:
    """report.json, samples.parquet and generations.json of one checkpoint."""
    store = Store(runtime.store)

    def build(target: Path) -> dict[str, Any]:
        from transformers import AutoTokenizer

        from moeprune.footprint import measure
        from moeprune.models import load_model, pick_device

        set_threads(runtime)
        (checkpoint,) = step.inputs.values()
        assert checkpoint is not None
        folder, device = store.folder(checkpoint), pick_device(runtime.device)
        memory = measure(folder, params.dtype, device, params.sequence_length, trust_remote_code)
        model = load_model(folder, params.dtype, device, trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        metrics: dict[str, Any] = {}
        samples: list[dict[str, Any]] = []
        written: list[dict[str, str]] = []
        for corpus in params.corpora:
            found, rows, starts = _perplexity(model, tokenizer, corpus, corpora[corpus.name], params, runtime, step)
            metrics |= found
            samples += rows
            if len(written) < params.generations:
                written.append(_continue(model, tokenizer, starts, corpus.name))
        if params.tasks:
            found, rows = _harness(model, tokenizer, params, runtime, trust_remote_code, step)
            metrics |= found
            samples += rows
        memory = {**_sizes(folder, trust_remote_code), **memory}
        report = {
            "format": FORMAT,
            "checkpoint": checkpoint.digest,
            "evaluation": step.params,
            "limited": params.limit is not None,
            "metrics": metrics,
            "memory": memory,
        }
        (target / REPORT).write_text(json.dumps(report, indent=1) + "\n")
        (target / GENERATIONS).write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
        _write_samples(target / SAMPLES, samples)
        return {
            "documents": sum(row["kind"] == "document" for row in samples),
            "questions": sum(row["kind"] == "question" for row in samples),
        }

    return store.produce(step, runtime, build)


def _sizes(folder: Path, trust_remote_code: bool) -> dict[str, int]:
    """Bytes of the weights on disk, parameters in total, and parameters a token makes use of."""
    from moeprune.checkpoint import open_checkpoint
    from moeprune.schema import read_config, read_plan, read_routing
    from moeprune.surgery import parameters

    checkpoint = open_checkpoint(folder)
    config = read_config(folder, trust_remote_code)
    routing = read_routing(config)
    total, active = parameters(checkpoint, read_plan(config, trust_remote_code), routing.experts, routing.top_k)
    return {"disk": checkpoint.weight_bytes, "parameters": total, "active_parameters": active}


def _perplexity(
    model: Any,
    tokenizer: Any,
    corpus: EvaluationCorpus,
    path: Path,
    params: EvaluateParams,
    runtime: Runtime,
    step: Step,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[int]]:
    """(metrics, a row for each document, the tokens of the first document) of one corpus."""
    import torch

    from moeprune.corpus import read_documents
    from moeprune.perplexity import bits_per_byte, document_nll, perplexity

    texts = list(read_documents(path, corpus.field))[: params.limit]
    if not texts:
        raise BadInput(f"evaluate.corpora '{corpus.name}': {path} holds no text: give another source")
    # Special tokens are left out: the prefix stands for them, and every token of the text is predicted.
    ids = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if prefix is None:
        raise BadInput(
            "evaluate: the tokenizer has neither a bos nor an eos token to begin a document with: set one "
            "in tokenizer_config.json"
        )
    tokens = torch.tensor([len(document) for document in ids], dtype=torch.float64)
    size = torch.tensor([len(text.encode()) for text in texts], dtype=torch.float64)
    with progress(f"{step.title}: {corpus.name}", int(tokens.sum()), "tok") as done:
        nll = document_nll(model, ids, prefix, params.sequence_length, runtime.batch_size, done)
    metrics = {
        f"perplexity/{corpus.name}": asdict(perplexity(nll, tokens)),
        f"bits_per_byte/{corpus.name}": asdict(bits_per_byte(nll, size)),
    }
    rows = [
        {
            "kind": "document",
            "set": corpus.name,
            "id": number,
            "nll": float(nll[number]),
            "tokens": int(tokens[number]),
            "bytes": int(size[number]),
        }
        for number in range(len(texts))
    ]
    return metrics, rows, ids[0]


def _continue(model: Any, tokenizer: Any, ids: list[int], name: str) -> dict[str, str]:
    """What the model writes after the first 48 tokens of a document, greedily."""
    import torch

    start = torch.tensor([ids[:48]], device=model.device)
    with torch.no_grad():
        whole = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=48,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
    return {"corpus": name, "prompt": tokenizer.decode(start[0]), "text": tokenizer.decode(whole[0, start.shape[1] :])}


def _harness(
    model: Any, tokenizer: Any, params: EvaluateParams, runtime: Runtime, trusted: bool, step: Step
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(metrics, a row for each question) by lm-eval."""
    import logging

    import torch
    from datasets.exceptions import DatasetsError
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from moeprune.perplexity import mean

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    names = [read_task(task, trusted)["task"] if is_local(task) else task for task in params.tasks]
    lm = HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=runtime.batch_size * 4, max_length=params.sequence_length
    )
    with task_folder(params.tasks, trusted) as folder:
        manager = TaskManager(include_path=str(folder), include_defaults=not all(map(is_local, params.tasks)))
        try:
            results = simple_evaluate(
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
        except (KeyError, ConnectionError, DatasetsError) as error:
            raise BadInput(
                f"evaluate.tasks: lm-eval cannot run {', '.join(names)}: {error}; check the names and that "
                "their data can be reached"
            ) from error
    metrics: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for task, questions in results["samples"].items():
        for metric in ("acc", "acc_norm"):
            values = torch.tensor([row[metric] for row in questions if metric in row], dtype=torch.float64)
            if len(values):
                metrics[f"{task}/{metric}"] = asdict(mean(values))
        rows += [
            {"kind": "question", "set": task, "id": row["doc_id"], **{m: row.get(m) for m in ("acc", "acc_norm")}}
            for row in questions
        ]
    for task, found in results["results"].items():  # metrics that are not means of questions, as lm-eval has them
        for label, value in found.items():
            name, _, filtered = label.partition(",")
            if (
                filtered
                and not name.endswith("_stderr")
                and f"{task}/{name}" not in metrics
                and isinstance(value, float)
            ):
                deviation = found.get(f"{name}_stderr,{filtered}")
                metrics[f"{task}/{name}"] = {
                    "value": value,
                    "stderr": deviation if isinstance(deviation, float) else None,
                    "n": len(results["samples"].get(task, ())),
                }
    return metrics, rows


def _write_samples(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    schema = arrow.schema(
        [
            ("kind", arrow.string()),
            ("set", arrow.string()),
            ("id", arrow.int64()),
            ("nll", arrow.float64()),
            ("tokens", arrow.int64()),
            ("bytes", arrow.int64()),
            ("acc", arrow.float64()),
            ("acc_norm", arrow.float64()),
        ]
    )
    parquet.write_table(arrow.Table.from_pylist(rows, schema=schema), path)


def compare(before: Path, after: Path) -> dict[str, dict[str, float | int | None]]:
    """Paired differences, after minus before, between two artifacts of this stage, by metric.

    `log_perplexity/<corpus>` is in nats per token; accuracies are differences of means. Each has a standard error
    over pairs. Sets that are not the same documents or questions in both are left out.
    """
    import torch
    from pyarrow import parquet

    from moeprune.perplexity import mean, ratio

    def read(folder: Path) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
        sets: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        for row in parquet.read_table(folder / SAMPLES).to_pylist():
            sets.setdefault((row["kind"], row["set"]), {})[row["id"]] = row
        return sets

    old, new = read(before), read(after)
    found: dict[str, dict[str, float | int | None]] = {}
    for (kind, name), rows in old.items():
        others = new.get((kind, name), {})
        if rows.keys() != others.keys():
            continue

        def column(source: dict[int, dict[str, Any]], field: str, ids: Any = tuple(rows)) -> Any:
            return torch.tensor([source[number][field] for number in ids], dtype=torch.float64)

        if kind == "document":
            tokens = column(rows, "tokens")
            if torch.equal(tokens, column(others, "tokens")):
                shift = column(others, "nll") - column(rows, "nll")
                found[f"log_perplexity/{name}"] = asdict(ratio(shift, tokens))
                found[f"bits_per_byte/{name}"] = asdict(
                    ratio(shift / torch.log(torch.tensor(2.0)), column(rows, "bytes"))
                )
        else:
            for metric in ("acc", "acc_norm"):
                if all(row[metric] is not None for row in [*rows.values(), *others.values()]):
                    found[f"{name}/{metric}"] = asdict(mean(column(others, metric) - column(rows, metric)))
    return found


def side_by_side(before: Path, after: Path) -> str:
    """What two evaluated models write after the same beginnings, as Markdown."""
    old, new = (json.loads((folder / GENERATIONS).read_text()) for folder in (before, after))
    return "\n".join(
        f"## {one['corpus']}\n\n**prompt** {one['prompt']}\n\n**base** {one['text']}\n\n**pruned** {other['text']}\n"
        for one, other in zip(old, new, strict=True)
    )
