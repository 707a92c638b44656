"""score: statistics, or weights alone, become an importance for every expert."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from moeprune.criteria import Criterion, find, words
from moeprune.errors import BadInput, known_word
from tasks.artifacts import Artifact, Params, Runtime, Step, Store, logger, offering, stage
from tasks.identity import code_digest
from tasks.progress import progress

SCORES = "scores.safetensors"
FILES = ("moeprune.experts", "moeprune.file_plan")
LIBRARIES = ("transformers", "compressed-tensors")
AUTO = "auto"
PRINCIPLE = {
    "task-agnostic": (
        "man",
        "a task-agnostic objective calls for the mean over routed tokens without the gate (b=1, a=0): what it keeps "
        "depends least on the calibration corpus (arXiv:2606.15716)",
    ),
    "task-specific": (
        "gate_weighted_ean",
        "a task-specific objective with matching calibration data calls for a sum that keeps frequency and gate "
        "(b=0, a=1): how often the task uses an expert is what is wanted (arXiv:2606.15716)",
    ),
}
"""The selection principle of arXiv:2606.15716: the criterion for an objective, and why."""


class ScoreParams(Params):
    """Which criterion, and how the scores of several corpora are combined."""

    criterion: str = Field("reap", json_schema_extra=offering(lambda: [AUTO, *words()]))
    """A file of moeprune/criteria; or auto, which follows from the objective."""
    objective: str | None = None
    """For auto: task-agnostic, or task-specific where the calibration corpora are of the task."""
    options: dict[str, int | float | str | bool] = Field(default_factory=dict)
    """The criterion's own options, such as b, a and c of unified or seed of uniform_random."""
    combine: str = "pooled"
    """pooled: sums of all corpora; mean, max, rank or normalised: of each corpus' scores."""
    weights: dict[str, float] | None = None
    """How much each corpus counts, by name; null: all alike."""
    gate_mode: str = "deployed"
    """Which gate the sums are of: deployed, softmax_full, softmax_topk."""
    super_experts: str | None = None
    """Keep experts of outstanding activations, whatever their scores: early (first 75% of layers) or all."""

    @model_validator(mode="after")
    def _known(self) -> "ScoreParams":
        from moeprune.combining import COMBINATIONS
        from moeprune.protection import WHERE
        from moeprune.statistics import GATE_MODES

        if self.criterion == AUTO:
            known_word(self.objective or "", PRINCIPLE, "score.objective (criterion auto follows it)")
        elif self.objective is not None:
            raise BadInput(f"score.objective: criterion '{self.criterion}' does not follow it: set criterion: auto")
        self.found.options(self.options)
        known_word(self.combine, COMBINATIONS, "score.combine")
        known_word(self.gate_mode, GATE_MODES, "score.gate_mode")
        if self.super_experts is not None:
            known_word(self.super_experts, WHERE, "score.super_experts")
        if self.weights is not None and (self.combine == "max" or min(self.weights.values(), default=0) <= 0):
            raise BadInput("score.weights: give each corpus a number above 0, and combine them other than by max")
        return self

    @property
    def found(self) -> Criterion:
        """The criterion itself."""
        return find(PRINCIPLE[self.objective or ""][0] if self.criterion == AUTO else self.criterion)

    @property
    def reason(self) -> str | None:
        """Why auto chose what it chose; None for a criterion that was named."""
        return f"{self.found.word}: {PRINCIPLE[self.objective or ''][1]}" if self.criterion == AUTO else None

    @property
    def reads_statistics(self) -> bool:
        """Whether scoring needs observations."""
        return self.found.reads == "statistics" or self.super_experts is not None


def step(params: ScoreParams, checkpoint: Artifact | None, statistics: dict[str, Artifact | None]) -> Step:
    """A criterion's result depends on what it reads and on nothing else."""
    criterion = params.found
    identity: dict[str, Any] = {"criterion": criterion.word, "options": criterion.options(params.options)}
    inputs: dict[str, Artifact | None] = {}
    modules = [criterion.module, "moeprune.files"]
    libraries: tuple[str, ...] = ()
    if criterion.reads == "statistics":
        modules.append("moeprune.combining")
        identity |= {"combine": params.combine, "gate_mode": params.gate_mode}
        identity["weights"] = params.weights and [params.weights[name] for name in statistics]
    else:
        modules += FILES
        libraries = LIBRARIES
        inputs["download"] = checkpoint
    if params.super_experts is not None:
        modules.append("moeprune.protection")
        identity["super_experts"] = params.super_experts
    if params.reads_statistics:
        inputs |= {f"observe.{number}": artifact for number, artifact in enumerate(statistics.values())}
    return Step("score", criterion.word, code_digest(modules, libraries), identity, inputs)


@stage(name="score")
def score(step: Step, runtime: Runtime, params: ScoreParams, trust_remote_code: bool) -> Artifact:
    """scores.safetensors: the importance of each expert, and that by each corpus alone."""
    store = Store(runtime.store)

    def build(target: Path) -> dict[str, Any]:
        import torch

        from moeprune.files import load_statistics, save_scores
        from moeprune.protection import protect
        from moeprune.statistics import pooled

        criterion = params.found
        if params.reason:
            logger().info("criterion %s", params.reason)
        corpora = [
            load_statistics(store.folder(artifact) / "statistics.safetensors")
            for name, artifact in step.inputs.items()
            if name.startswith("observe.") and artifact
        ]
        if criterion.reads == "statistics":
            scores, per_corpus, layer = _from_statistics(step, corpora, params)
        else:
            scores, layer = _from_checkpoint(step, store, params, trust_remote_code)
            per_corpus = scores[None]
        if scores.isnan().any():
            raise BadInput(f"score: criterion '{criterion.word}' gives NaN for some experts: choose other options")
        dead = _by_layer(layer, scores == -torch.inf)
        if dead:
            logger().warning("experts whose weights are all zero score minus infinity, by layer: %s", dead)
        if params.super_experts is not None:
            whole = pooled(corpora)
            scores = protect(scores, whole, params.super_experts)
            per_corpus = torch.stack([protect(part, whole, params.super_experts) for part in per_corpus])
        metadata = {name: str(value) for name, value in step.params.items()}
        save_scores(target / SCORES, scores.double(), per_corpus.double(), layer, metadata)
        return {"dead_experts": dead, "super_experts": _by_layer(layer, scores == torch.inf)}

    return store.produce(step, runtime, build)


def _by_layer(layer: Any, which: Any) -> dict[str, list[int]]:
    return {
        str(number): experts
        for number, row in zip(layer.tolist(), which, strict=True)
        if (experts := row.nonzero().flatten().tolist())
    }


def _from_statistics(step: Step, corpora: list[Any], params: ScoreParams) -> tuple[Any, Any, Any]:
    from moeprune.combining import combine

    criterion = params.found
    options = criterion.options(params.options)
    scores, per_corpus = combine(
        lambda statistics: criterion.score(statistics, **options),
        [corpus.in_gate_mode(params.gate_mode) for corpus in corpora],
        params.combine,
        step.params["weights"],
    )
    return scores, per_corpus, corpora[0].layer


def _from_checkpoint(step: Step, store: Store, params: ScoreParams, trust_remote_code: bool) -> tuple[Any, Any]:
    import torch

    from moeprune.checkpoint import open_checkpoint
    from moeprune.experts import LayerExperts, layer_router
    from moeprune.file_plan import read_file_plan

    artifact = step.inputs["download"]
    assert artifact is not None
    checkpoint = open_checkpoint(store.folder(artifact))
    plan = read_file_plan(checkpoint, trust_remote_code)
    criterion = params.found
    options = criterion.options(params.options)
    layers = torch.tensor(plan.layers)
    if criterion.reads == "shape":
        return criterion.score((len(layers), plan.experts), **options), layers
    read = layer_router if criterion.reads == "router" else LayerExperts
    rows = []
    with progress(step.title, len(layers), "layer") as done:
        for layer in plan.layers:
            rows.append(criterion.score(read(checkpoint, plan, layer), **options))
            done(1)
    return torch.stack(rows), layers
