"""evaluate: a model's perplexity, accuracy, memory and writing, each with its error where it has one.

Values of every document and every question are kept, so that two models are compared pair by pair.
"""

import json
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from moeprune.masks import Mask
from tasks import harness, suites
from tasks.artifacts import Artifact, Runtime, Step, Store, set_threads, stage
from tasks.comparison import GENERATIONS, REPORT, SAMPLES, write_samples
from tasks.harvest import harvest
from tasks.held_out import EvaluationCorpus, read_corpus, write_on
from tasks.identity import code_digest
from tasks.subject import Subject, loaded, skipping_experts, virtually_pruned

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
VIRTUAL_CODE = ("moeprune.slicing", "moeprune.file_plan", "moeprune.masks")
LIBRARIES = ("torch", "transformers", "lm-eval")
FORMAT = "moeprune-report/2"


class EvaluateParams(harness.HarnessParams):
    """What is measured."""

    corpora: tuple[EvaluationCorpus, ...] = ()
    """Held-out text for perplexity and bits per byte."""
    dtype: str = Field("float32", pattern="^(auto|float32|bfloat16|float16)$")
    """Precision of the model; compare models in one precision only."""
    generations: int = Field(3, ge=0)
    """Greedy continuations of held-out text to read side by side."""
    expert_skipping: bool = False
    """Whether the pruned model is measured a second time with dynamic expert skipping (models of top-2 routing)."""
    virtual: bool = False
    """Whether the mask is only applied to the base model in memory: no checkpoint is written, memory is computed."""


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
    elsewhere = {"corpora", "tasks", "data", "expert_skipping", "virtual"}
    identity = params.model_dump(mode="json", exclude=elsewhere) | {
        "corpora": [
            {"name": corpus.name, "field": corpus.field, "source": store.hash_of(corpora[corpus.name])}
            for corpus in params.corpora
        ],
        "tasks": harness.identity(params, store, trusted),
        "suites": suites.headlines(params.tasks),
        "format": FORMAT,
    }
    inputs = {"checkpoint": checkpoint}
    inputs |= {f"observe.{number}": statistics for number, statistics in enumerate((skipping or {}).values())}
    code = (*CODE, "moeprune.skipping") if skipping else CODE
    return Step("evaluate", of, code_digest(code, LIBRARIES), identity, inputs)


def virtual_step(
    params: EvaluateParams,
    of: str,
    base: Artifact | None,
    mask: Artifact | None,
    corpora: dict[str, Path],
    store: Store,
    trusted: bool,
) -> Step:
    """The mask counts by its content, applied to the base: two criteria that keep the same experts share the report."""
    whole = step(params, of, base, corpora, store, trusted)
    code = code_digest((*CODE, *VIRTUAL_CODE), LIBRARIES)
    return replace(whole, code=code, inputs={**whole.inputs, "mask": mask})


@stage(name="evaluate")
def evaluate(
    step: Step, runtime: Runtime, params: EvaluateParams, corpora: dict[str, Path], trust_remote_code: bool
) -> Artifact:
    """report.json, samples.parquet and generations.json of one model."""
    store = Store(runtime.store)

    def build(target: Path) -> dict[str, Any]:
        from transformers import AutoTokenizer

        from moeprune.configs import read_config

        set_threads(runtime)
        checkpoint = step.inputs["checkpoint"]
        assert checkpoint is not None
        observed = [store.folder(entry) for name, entry in step.inputs.items() if name.startswith("observe.") and entry]
        folder = store.folder(checkpoint)
        config = read_config(folder, trust_remote_code)  # by it transformers chooses the tokenizer's class
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=trust_remote_code)
        found: dict[str, Any] = {"metrics": {}, "pooled": {}}
        samples: list[dict[str, Any]] = []
        written: list[dict[str, str]] = []
        with (
            _subject(step, store, runtime, params, trust_remote_code) as subject,
            skipping_experts(subject.model, observed) as skipped,
        ):
            model = subject.model
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
                results = harness.ask(model, tokenizer, params, runtime, trust_remote_code, step.title)
                metrics, rows, found["pooled"] = harvest(results)
                found["metrics"] |= metrics
                samples += rows
        found["metrics"] |= skipped
        for word, names in step.params["suites"].items():
            found["metrics"][f"suite/{word}"] = suites.average([found["metrics"][name] for name in names])
        mask = step.inputs.get("mask")
        report = {
            "format": FORMAT,
            "checkpoint": checkpoint.digest,
            "mask": mask and mask.digest,
            "evaluation": step.params,
            "limited": params.limit is not None,
            **found,
            "suites": step.params["suites"],
            "memory_known": subject.known,
            "memory": subject.memory,
        }
        (target / REPORT).write_text(json.dumps(report, indent=1) + "\n")
        (target / GENERATIONS).write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
        write_samples(target / SAMPLES, samples)
        return {
            "documents": sum(row["kind"] == "document" for row in samples),
            "questions": sum(row["kind"] == "question" for row in samples),
        }

    return store.produce(step, runtime, build)


def _subject(
    step: Step, store: Store, runtime: Runtime, params: EvaluateParams, trusted: bool
) -> AbstractContextManager[Subject]:
    """What a step is to measure: a checkpoint's model, or with a mask among its inputs, what that leaves of it."""
    from moeprune.models import pick_device

    checkpoint, mask, device = step.inputs["checkpoint"], step.inputs.get("mask"), pick_device(runtime.device)
    assert checkpoint is not None
    folder = store.folder(checkpoint)
    if mask is None:
        return loaded(folder, params.dtype, device, params.sequence_length, trusted, stays=params.virtual)
    kept = Mask.from_json((store.folder(mask) / "mask.json").read_text())
    return virtually_pruned(folder, checkpoint.digest, kept, params.dtype, device, trusted)
