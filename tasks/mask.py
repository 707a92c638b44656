"""mask: scores and a budget become the experts each layer keeps."""

import inspect
from pathlib import Path
from typing import Any

from pydantic import ByteSize, Field, model_validator

from moeprune.errors import BadInput, known_word
from tasks.artifacts import Artifact, Params, Runtime, Step, Store, stage
from tasks.identity import code_digest

MASK = "mask.json"
CODE = ("moeprune.masks", "moeprune.routing")


class MaskParams(Params):
    """How much to remove: give one of ratio, keep and bytes."""

    ratio: float | None = Field(None, ge=0, lt=1)
    """Fraction of each layer's experts to REMOVE; the number removed is rounded down."""
    keep: int | None = Field(None, gt=0)
    """Experts each layer keeps."""
    bytes: ByteSize | None = None
    """Most bytes the pruned checkpoint's weights may have, such as 9GB."""
    selection: str = "uniform"
    """A file of moeprune/selection."""

    @model_validator(mode="after")
    def _one_budget(self) -> "MaskParams":
        from moeprune.selection import words

        given = [name for name in ("ratio", "keep", "bytes") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of ratio, keep and bytes, not {' and '.join(given) or 'none'}")
        known_word(self.selection, words(), "mask.selection")
        return self


def number_to_keep(params: MaskParams, folder: Path, trust_remote_code: bool = False) -> int:
    """Experts each layer keeps; only headers and the config are read. BadInput if the router cannot work with them.

    `folder` holds the checkpoint, for `bytes` with its weights.
    """
    from moeprune.masks import number_kept
    from moeprune.schema import read_config, read_routing

    routing = read_routing(read_config(folder, trust_remote_code))
    if params.bytes is not None:
        return _within(params.bytes, folder, trust_remote_code)
    keep = params.keep if params.keep is not None else number_kept(params.ratio or 0.0, routing.experts)
    routing.check(keep)
    return keep


def _within(budget: int, folder: Path, trust_remote_code: bool) -> int:
    from moeprune.checkpoint import open_checkpoint
    from moeprune.schema import read_config, read_plan, read_routing
    from moeprune.surgery import pruned_bytes

    config = read_config(folder, trust_remote_code)
    routing, plan = read_routing(config), read_plan(config, trust_remote_code)
    checkpoint = open_checkpoint(folder)
    for keep in range(routing.experts, routing.least - 1, -routing.groups):
        if keep % routing.groups == 0 and (size := pruned_bytes(checkpoint, plan, keep)) <= budget:
            return keep
    raise BadInput(
        f"mask.bytes: {budget} bytes wanted, but with {routing.least} experts a layer, the fewest the "
        f"router can work with, the weights have {size}: give at least that"
    )


def step(params: MaskParams, keep: int, checkpoint: Artifact | None, scores: Artifact | None) -> Step:
    """Ratio, number and bytes that come to the same number of experts are the same mask."""
    modules = [f"moeprune.selection.{params.selection}", *CODE]
    identity = {"keep": keep, "selection": params.selection}
    return Step("mask", "", code_digest(modules), identity, {"download": checkpoint, "score": scores})


@stage(name="mask")
def mask(step: Step, runtime: Runtime, params: MaskParams, trust_remote_code: bool) -> Artifact:
    """mask.json. By what margin experts stay or go is in the manifest."""
    store = Store(runtime.store)

    def build(target: Path) -> dict[str, Any]:
        from moeprune.files import load_scores
        from moeprune.masks import Mask
        from moeprune.schema import read_config, read_routing
        from moeprune.selection import find

        checkpoint, artifact = step.inputs["download"], step.inputs["score"]
        assert checkpoint and artifact
        routing = read_routing(read_config(store.folder(checkpoint), trust_remote_code))
        scores, _, layers = load_scores(store.folder(artifact) / "scores.safetensors")
        select = find(params.selection)
        readable = {"scores": scores, "keep": step.params["keep"], "routing": routing}
        chosen = select(**{name: readable[name] for name in inspect.signature(select).parameters})
        kept = {layer: tuple(row) for layer, row in zip(layers, chosen.tolist(), strict=True)}
        result = Mask(checkpoint.digest, routing.experts, kept)
        (target / MASK).write_text(result.to_json())
        return {"kept": step.params["keep"], "experts": routing.experts, "table": margins(result, scores.tolist())}

    return store.produce(step, runtime, build)


def margins(mask: Any, scores: list[list[float]]) -> list[dict[str, Any]]:
    """One row for each expert: its score, whether it is kept, and its distance from the cut of its layer.

    The cut lies halfway between the lowest score kept and the highest removed; positive margins are kept.
    """
    rows = []
    for (layer, kept), values in zip(mask.kept.items(), scores, strict=True):
        removed = [value for expert, value in enumerate(values) if expert not in kept]
        cut = (min(values[expert] for expert in kept) + max(removed)) / 2 if removed else float("-inf")
        rows += [
            # JSON has no infinities: an expert without weights has no score, one of a whole layer no margin.
            {
                "layer": layer,
                "expert": expert,
                "kept": expert in kept,
                "score": _finite(value),
                "margin": _finite(value - cut),
            }
            for expert, value in enumerate(values)
        ]
    return rows


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
