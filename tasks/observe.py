"""observe: one dense pass over a corpus leaves the sums that criteria are computed from."""

import time
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from moeprune.errors import known_word
from tasks.artifacts import Artifact, Params, Runtime, Step, Store, logger, set_threads, stage
from tasks.identity import code_digest
from tasks.progress import progress

CODE = ("moeprune.observation", "moeprune.files", "moeprune.models")
LIBRARIES = ("torch", "transformers", "compressed-tensors")
STATISTICS = "statistics.safetensors"


class ObserveParams(Params):
    """What the pass collects."""

    dtype: str = Field("auto", pattern="^(auto|float32|bfloat16|float16)$")
    """Precision of the pass; auto: as stored. Sums are float64 always."""
    sums: tuple[str, ...] = ("core", "vectors")
    """Groups of sums: core, vectors, pairs, inputs, ratios."""
    gate_modes: tuple[str, ...] = ("deployed",)
    """Gates to take moments of: deployed, softmax_full, softmax_topk."""

    @field_validator("sums", "gate_modes")
    @classmethod
    def _known(cls, words: tuple[str, ...], info: Any) -> tuple[str, ...]:
        from moeprune.statistics import GATE_MODES, GROUPS

        for word in words:
            known_word(word, GROUPS if info.field_name == "sums" else GATE_MODES, "word")
        base = "core" if info.field_name == "sums" else "deployed"
        return tuple(sorted({base, *words}))


def step(params: ObserveParams, name: str, checkpoint: Artifact | None, corpus: Artifact | None) -> Step:
    """The corpus counts by its file: its tokens, name, seed and source, not the key it was made under."""
    inputs = {"download": checkpoint, "calibrate": corpus}
    return Step("observe", name, code_digest(CODE, LIBRARIES), params.model_dump(mode="json"), inputs)


@stage(name="observe")
def observe(step: Step, runtime: Runtime, params: ObserveParams, trust_remote_code: bool) -> Artifact:
    """statistics.safetensors of one corpus. Progress is kept after every chunk; a killed pass goes on from there."""
    store = Store(runtime.store)

    def build(target: Path) -> dict[str, Any]:
        from moeprune.files import load_corpus, load_statistics, save_statistics
        from moeprune.models import cached_model, pick_device
        from moeprune.observation import observe_chunk
        from moeprune.observer import Observer

        set_threads(runtime)
        checkpoint, corpus_artifact = step.inputs["download"], step.inputs["calibrate"]
        assert checkpoint and corpus_artifact
        corpus = load_corpus(store.folder(corpus_artifact) / "tokens.safetensors")
        model = cached_model(store.folder(checkpoint), params.dtype, pick_device(runtime.device), trust_remote_code)
        saved = store.partial(step) / STATISTICS
        sofar = load_statistics(saved) if saved.is_file() else None
        done = 0 if sofar is None else int((sofar.tokens > 0).sum())
        start = 0 if sofar is None else int(sofar.tokens.sum())
        if done:
            logger().info("%s goes on after chunk %d of %d", step.title, done, corpus.chunks)
        started = time.monotonic()
        with (
            Observer(model, params.sums, params.gate_modes) as observer,
            progress(step.title, corpus.tokens, "tok", start) as tell,
        ):
            for chunk in range(done, corpus.chunks):
                part = observe_chunk(model, observer, corpus, chunk, runtime.batch_size, tell)
                sofar = part if sofar is None else sofar + part
                new = saved.with_suffix(".new")
                save_statistics(new, sofar)
                new.rename(saved)
        assert sofar is not None
        seconds = time.monotonic() - started
        (target / STATISTICS).hardlink_to(saved)  # kept in both places until the result is in the store
        unseen = {
            str(layer): experts
            for layer, counts in zip(sofar.layer.tolist(), sofar.count.sum(0), strict=True)
            if (experts := (counts == 0).nonzero().flatten().tolist())
        }
        if unseen:
            logger().warning("%s: experts that saw no token, by layer: %s", step.title, unseen)
        return {"tokens_per_second": round((corpus.tokens - start) / seconds), "unseen_experts": unseen}

    return store.produce(step, runtime, build)
