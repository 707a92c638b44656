"""mask: scores and a budget become the experts each layer keeps, or the recipe of a weight mask."""

from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ByteSize, Field, field_validator, model_validator

from moeprune.checkpoint import Checkpoint
from moeprune.errors import BadInput, known_word
from moeprune.routing import Routing
from moeprune.selection import Rule, find, words
from tasks.artifacts import Artifact, Params, Runtime, Step, Store, offering, set_threads, stage
from tasks.identity import code_digest
from tasks.progress import progress

MASK = "mask.json"
CODE = ("moeprune.masks", "moeprune.routing", "moeprune.files", "moeprune.schema")
LIBRARIES = ("transformers",)
BUDGETS = ("ratio", "keep", "bytes", "sparsity")
ORDERS = ("as_printed", "sequential")


class MaskParams(Params):
    """How much to remove: give one of ratio, keep, bytes and sparsity."""

    ratio: float | None = Field(None, ge=0, lt=1)
    """Fraction of each layer's experts to REMOVE; the number removed is rounded down."""
    keep: int | None = Field(None, gt=0)
    """Experts each layer keeps; on average, if the selection rule keeps more in one than in another."""
    bytes: ByteSize | None = None
    """Most bytes the pruned checkpoint's weights may have, such as 9GB."""
    sparsity: float | str | None = None
    """Zero weights inside experts instead: a fraction of each row such as 0.5, or a pattern such as "2:4"."""
    order: str = Field("as_printed", json_schema_extra=offering(lambda: ORDERS))
    """For sparsity, whether layers see the dense model's inputs (as_printed) or those of sparse ones (sequential)."""
    selection: str = Field("uniform", json_schema_extra=offering(words))
    """A file of moeprune/selection."""
    options: dict[str, int | float | str | bool] = Field(default_factory=dict)
    """The selection rule's own options."""

    @field_validator("sparsity", mode="before")
    @classmethod
    def _quoted(cls, value: Any) -> Any:
        if isinstance(value, int) and value:  # YAML takes 2:4 for a number of base 60
            raise ValueError(f'{value} is neither a fraction nor a pattern: quote a pattern, as in "2:4"')
        return value

    @model_validator(mode="after")
    def _one_budget(self) -> "MaskParams":
        from moeprune.weight_masks import parse_pattern

        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(BUDGETS)}, not {' and '.join(given) or 'none'}")
        known_word(self.order, ORDERS, "mask.order")
        self.rule.options(self.options)
        if self.sparsity is not None:
            if self.selection != "uniform":
                raise BadInput("mask.selection: weights inside experts are chosen row by row: leave selection out")
            parse_pattern(self.pattern)
        elif self.order != "as_printed":
            raise BadInput("mask.order is for mask.sparsity: leave it out")
        return self

    @property
    def rule(self) -> Rule:
        """The selection rule itself."""
        return find(self.selection)

    @property
    def pattern(self) -> str:
        """The sparsity as it is written into a weight mask."""
        return str(self.sparsity)

    @property
    def candidate(self) -> "MaskParams | None":
        """The mask that must be made first because the rule fills up from it."""
        options = self.rule.options(self.options)
        if "candidate" not in self.rule.reads or options["fill"] not in words():
            return None
        searched = {"corpus": options["fill_corpus"], "tokens": options["fill_tokens"]}
        return self.model_copy(update={"selection": options["fill"], "options": searched})


def number_to_keep(params: MaskParams, checkpoint: Checkpoint, trust_remote_code: bool = False) -> int:
    """Experts each layer keeps, or keeps on average; only the config and, for `bytes`, the headers count.

    Raises BadInput, with the nearest request that can be met, if the router cannot work with that many experts.
    """
    from moeprune.configs import read_config, read_routing

    routing = read_routing(read_config(checkpoint.folder, trust_remote_code))
    if params.bytes is not None:
        return _within(params.bytes, checkpoint, routing, trust_remote_code)
    return _checked(params, routing)


def _checked(params: MaskParams, routing: Routing) -> int:
    from moeprune.masks import number_kept, ratio_kept

    if params.keep is not None:
        routing.check(params.keep, "mask.keep")
        return params.keep
    ratio = params.ratio or 0.0
    keep = number_kept(ratio, routing.experts)
    routing.check(
        keep,
        f"mask.ratio {ratio}",
        lambda number: f"{ratio_kept(number, routing.experts)} ({number} of {routing.experts} kept)",
    )
    return keep


def _within(budget: int, checkpoint: Checkpoint, routing: Routing, trust_remote_code: bool) -> int:
    from moeprune.file_plan import read_file_plan
    from moeprune.sizes import pruned_bytes

    plan = read_file_plan(checkpoint, trust_remote_code)
    feasible = [keep for keep in range(routing.experts + 1) if routing.works(keep)]
    fitting = bisect_right(feasible, budget, key=lambda keep: pruned_bytes(checkpoint, plan, keep))
    if fitting:
        return feasible[fitting - 1]
    least = pruned_bytes(checkpoint, plan, routing.least)
    raise BadInput(
        f"mask.bytes: {budget} bytes wanted, but with {routing.least} experts a layer, the fewest the "
        f"router can work with, the weights have {least}: give at least that"
    )


def step(
    params: MaskParams,
    keep: int,
    checkpoint: Artifact | None,
    scores: Artifact | None = None,
    statistics: dict[str, Artifact | None] | None = None,
    corpora: dict[str, Artifact | None] | None = None,
    candidate: Artifact | None = None,
    dtype: str = "auto",
    of: str = "",
) -> Step:
    """What the rule reads decides. Ratio, number and bytes that come to the same number of experts are the same mask.

    `dtype` is the precision of a rule that runs the model.
    """
    rule = params.rule
    inputs: dict[str, Artifact | None] = {"download": checkpoint}
    identity: dict[str, Any] = {"keep": keep, "selection": params.selection, "options": rule.options(params.options)}
    modules = [rule.module, *CODE]
    libraries: tuple[str, ...] = LIBRARIES
    if {"scores", "per_corpus"} & set(rule.reads):
        inputs["score"] = scores
    if "statistics" in rule.reads:
        inputs |= _numbered("observe", statistics)
    if "model" in rule.reads:
        inputs |= _numbered("calibrate", corpora)
        identity |= {"corpora": list(corpora or {}), "dtype": dtype}
        modules.append("moeprune.models")
        libraries += ("torch", "compressed-tensors")
    if params.candidate is not None:
        inputs["candidate"] = candidate
    return Step("mask", of, code_digest(modules, libraries), identity, inputs)


def weight_step(
    params: MaskParams, criterion: str, checkpoint: Artifact | None, read: dict[str, Artifact | None]
) -> Step:
    """A weight mask is a recipe: base, criterion, pattern and what it is to be computed from.

    That is the statistics, or the corpora where layers are observed one after another.
    """
    identity = {"criterion": criterion, "pattern": params.pattern, "order": params.order}
    stage = "observe" if params.order == "as_printed" else "calibrate"
    inputs = {"download": checkpoint, **_numbered(stage, read)}
    return Step("mask", "", code_digest(["moeprune.weight_masks"]), identity, inputs)


def _numbered(stage: str, artifacts: dict[str, Artifact | None] | None) -> dict[str, Artifact | None]:
    return {f"{stage}.{number}": artifact for number, artifact in enumerate((artifacts or {}).values())}


@stage(name="mask")
def mask(step: Step, runtime: Runtime, params: MaskParams, trust_remote_code: bool) -> Artifact:
    """mask.json. By what margin experts stay or go is in the manifest."""
    store = Store(runtime.store)

    def build(target: Path) -> dict[str, Any]:
        if params.sparsity is not None:
            return _write_weight_mask(step, target)
        from moeprune.configs import read_config, read_routing
        from moeprune.masks import Mask
        from moeprune.schema import read_plan

        set_threads(runtime)
        checkpoint = step.inputs["download"]
        assert checkpoint
        # The config tells all that is needed: a mask can be made when the weights are gone.
        config = read_config(store.folder(checkpoint), trust_remote_code)
        plan, routing = read_plan(config, trust_remote_code), read_routing(config)
        with progress(step.title, len(plan.layers), "layer") as done:
            given = _readable(step, runtime, trust_remote_code) | {
                "plan": lambda: plan,
                "routing": lambda: routing,
                "keep": lambda: step.params["keep"],
                "progress": lambda: done,
            }
            rule = params.rule
            chosen = rule.select(**{name: given[name]() for name in rule.reads}, **step.params["options"])
        kept = {layer: tuple(row.tolist()) for layer, row in zip(plan.layers, chosen, strict=True)}
        routing.check_kept(kept)
        result = Mask(checkpoint.digest, routing.experts, kept)
        (target / MASK).write_text(result.to_json())
        scores = given["scores"]() if "scores" in rule.reads else None
        table = margins(result, scores.tolist() if scores is not None else None, routing.groups)
        counts = {str(layer): count for layer, count in result.counts.items()}
        return {"kept": step.params["keep"], "counts": counts, "experts": routing.experts, "table": table}

    return store.produce(step, runtime, build)


def _write_weight_mask(step: Step, target: Path) -> dict[str, Any]:
    from moeprune.weight_masks import WeightMask

    base = step.inputs["download"]
    assert base is not None
    statistics = tuple(entry.digest for name, entry in step.inputs.items() if name != "download" and entry)
    (target / MASK).write_text(WeightMask(base=base.digest, statistics=statistics, **step.params).to_json())
    return {}


def _readable(step: Step, runtime: Runtime, trust_remote_code: bool) -> dict[str, Callable[[], Any]]:
    """What a rule may ask for by the names of its parameters; read when asked for."""
    store = Store(runtime.store)

    def folders(stage: str) -> list[Path]:
        return [store.folder(entry) for name, entry in step.inputs.items() if name.split(".")[0] == stage and entry]

    def scores(which: int) -> Any:
        from moeprune.files import load_scores

        (folder,) = folders("score")
        return load_scores(folder / "scores.safetensors")[which]

    def statistics() -> Any:
        from moeprune.files import load_statistics

        return [load_statistics(folder / "statistics.safetensors") for folder in folders("observe")]

    def corpora() -> Any:
        from moeprune.files import load_corpus

        blocks = [load_corpus(folder / "tokens.safetensors") for folder in folders("calibrate")]
        return dict(zip(step.params["corpora"], blocks, strict=True))

    def model() -> Any:
        from moeprune.models import cached_model, pick_device

        (folder,) = folders("download")
        return cached_model(folder, step.params["dtype"], pick_device(runtime.device), trust_remote_code)

    def candidate() -> Any:
        import torch

        from moeprune.masks import Mask

        for folder in folders("candidate"):
            return torch.tensor(list(Mask.from_json((folder / MASK).read_text()).kept.values()))
        return None

    return {
        "scores": lambda: scores(0),
        "per_corpus": lambda: scores(1),
        "statistics": statistics,
        "corpora": corpora,
        "model": model,
        "candidate": candidate,
    }


def margins(mask: Any, scores: list[list[float]] | None, groups: int) -> list[dict[str, Any]]:
    """One row for each expert: its score, whether it is kept, and its distance from the cut of its router group.

    The cut lies halfway between the lowest score kept and the highest removed among the experts of a group, which is
    the whole layer for most routers; where the rule goes by these scores alone, positive margins are kept. A rule
    without scores has neither, and layers that keep different numbers have no margins: their cut is not one of scores.
    """
    even, size = len(set(mask.counts.values())) == 1, mask.experts // groups
    rows = []
    for number, (layer, kept) in enumerate(mask.kept.items()):
        values = scores[number] if scores is not None else [float("nan")] * mask.experts
        for expert, value in enumerate(values):
            group = range(expert // size * size, (expert // size + 1) * size)
            removed = [values[other] for other in group if other not in kept]
            staying = [values[other] for other in group if other in kept]
            cut = (min(staying) + max(removed)) / 2 if even and removed else float("-inf")
            # JSON has no infinities: an expert without weights has no score, one of a whole group no margin.
            rows.append(
                {
                    "layer": layer,
                    "expert": expert,
                    "kept": expert in kept,
                    "score": _finite(value),
                    "margin": _finite(value - cut),
                }
            )
    return rows


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
