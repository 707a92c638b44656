"""score: statistics, or weights alone, become an importance for every expert."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from moeprune.criteria import Criterion, find
from moeprune.errors import BadInput, known_word
from tasks.artifacts import Artifact, Params, Runtime, Step, Store, logger, stage
from tasks.identity import code_digest
from tasks.progress import progress

SCORES = "scores.safetensors"
CODE = ("moeprune.files",)
COMBINE = ("moeprune.combining",)
WEIGHTS = ("moeprune.experts", "moeprune.schema")


class ScoreParams(Params):
    """Which criterion, and how the scores of several corpora are combined."""

    criterion: str = "reap"
    """A file of moeprune/criteria."""
    options: dict[str, int | float | str | bool] = Field(default_factory=dict)
    """The criterion's own options, such as b, a and c of unified or seed of uniform_random."""
    combine: str = "pooled"
    """pooled: sums of all corpora; mean, max or rank: of each corpus' scores."""
    gate_mode: str = "deployed"
    """Which gate the sums are of: deployed, softmax_full, softmax_topk."""

    @model_validator(mode="after")
    def _known(self) -> "ScoreParams":
        from moeprune.combining import COMBINATIONS
        from moeprune.statistics import GATE_MODES

        self.found.options(self.options)
        known_word(self.combine, COMBINATIONS, "score.combine")
        known_word(self.gate_mode, GATE_MODES, "score.gate_mode")
        return self

    @property
    def found(self) -> Criterion:
        """The criterion itself."""
        return find(self.criterion)


def step(params: ScoreParams, checkpoint: Artifact | None, statistics: dict[str, Artifact | None]) -> Step:
    """A criterion's result depends on what it reads and on nothing else."""
    criterion = params.found
    identity: dict[str, Any] = {"criterion": params.criterion, "options": criterion.options(params.options)}
    if criterion.reads == "statistics":
        identity |= {"combine": params.combine, "gate_mode": params.gate_mode}
        inputs = {f"observe.{number}": artifact for number, artifact in enumerate(statistics.values())}
        return Step("score", params.criterion, code_digest([criterion.module, *CODE, *COMBINE]), identity, inputs)
    modules = [criterion.module, *CODE, *(WEIGHTS if criterion.reads == "experts" else ())]
    return Step("score", params.criterion, code_digest(modules), identity, {"download": checkpoint})


@stage(name="score")
def score(step: Step, runtime: Runtime, params: ScoreParams, trust_remote_code: bool) -> Artifact:
    """scores.safetensors: the importance of each expert, and that by each corpus alone."""
    store = Store(runtime.store)

    def build(target: Path) -> dict[str, Any]:
        import torch

        from moeprune.files import save_scores

        if params.found.reads == "statistics":
            scores, per_corpus, layer = _from_statistics(step, store, params)
        else:
            scores, layer = _from_checkpoint(step, store, params, trust_remote_code)
            per_corpus = scores[None]
        if scores.isnan().any():
            raise BadInput(f"score: criterion '{params.criterion}' gives NaN for some experts: choose other options")
        dead = {
            str(number): experts
            for number, row in zip(layer.tolist(), scores, strict=True)
            if (experts := (row == -torch.inf).nonzero().flatten().tolist())
        }
        if dead:
            logger().warning("experts whose weights are all zero score minus infinity, by layer: %s", dead)
        metadata = {name: str(value) for name, value in step.params.items()}
        save_scores(target / SCORES, scores.double(), per_corpus.double(), layer, metadata)
        return {"dead_experts": dead}

    return store.produce(step, runtime, build)


def _from_statistics(step: Step, store: Store, params: ScoreParams) -> tuple[Any, Any, Any]:
    from moeprune.combining import combine
    from moeprune.files import load_statistics

    corpora = [
        load_statistics(store.folder(artifact) / "statistics.safetensors").in_gate_mode(params.gate_mode)
        for artifact in step.inputs.values()
        if artifact is not None
    ]
    criterion = params.found
    options = criterion.options(params.options)
    scores, per_corpus = combine(lambda statistics: criterion.score(statistics, **options), corpora, params.combine)
    return scores, per_corpus, corpora[0].layer


def _from_checkpoint(step: Step, store: Store, params: ScoreParams, trust_remote_code: bool) -> tuple[Any, Any]:
    import torch

    from moeprune.checkpoint import open_checkpoint
    from moeprune.experts import LayerExperts
    from moeprune.schema import read_config, read_plan

    artifact = step.inputs["download"]
    assert artifact is not None
    checkpoint = open_checkpoint(store.folder(artifact))
    plan = read_plan(read_config(checkpoint.folder, trust_remote_code), trust_remote_code)
    criterion = params.found
    options = criterion.options(params.options)
    layers = torch.tensor(plan.layers)
    if criterion.reads == "shape":
        return criterion.score((len(layers), plan.experts), **options), layers
    rows = []
    with progress(step.title, len(layers), "layer") as done:
        for layer in plan.layers:
            rows.append(criterion.score(LayerExperts(checkpoint, plan, layer), **options))
            done(1)
    return torch.stack(rows), layers
