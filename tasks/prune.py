"""prune: a checkpoint and a mask become a smaller stock checkpoint."""

from pathlib import Path
from typing import Any

from pydantic import ByteSize, Field

from tasks.artifacts import Artifact, Params, Runtime, Step, Store, stage
from tasks.identity import code_digest
from tasks.progress import progress

CODE = ("moeprune.surgery",)


class PruneParams(Params):
    """How the pruned checkpoint is written."""

    shard_size: ByteSize = Field(ByteSize(5_000_000_000), gt=0)
    """Most bytes of a weight file, such as 5GB."""


def step(params: PruneParams, checkpoint: Artifact | None, mask: Artifact | None) -> Step:
    """The mask counts by its content: two criteria that keep the same experts share the checkpoint."""
    identity = {"shard_size": int(params.shard_size)}
    return Step("prune", "", code_digest(CODE), identity, {"download": checkpoint, "mask": mask})


@stage(name="prune")
def prune(step: Step, runtime: Runtime, params: PruneParams, trust_remote_code: bool) -> Artifact:
    """A folder that `from_pretrained` loads: config, weights and tokenizer, with the mask's experts only."""
    store = Store(runtime.store)

    def build(target: Path) -> dict[str, Any]:
        from moeprune.checkpoint import open_checkpoint
        from moeprune.masks import Mask
        from moeprune.schema import read_config, read_plan, read_routing
        from moeprune.surgery import parameters, prune_checkpoint, pruned_bytes

        checkpoint, artifact = step.inputs["download"], step.inputs["mask"]
        assert checkpoint and artifact
        source = open_checkpoint(store.folder(checkpoint))
        mask = Mask.from_json((store.folder(artifact) / "mask.json").read_text())
        config = read_config(source.folder, trust_remote_code)
        plan, routing = read_plan(config, trust_remote_code), read_routing(config)
        (keep,) = set(mask.counts.values())
        size = pruned_bytes(source, plan, keep)
        store.check_space(size)
        with progress(step.title, size, "B") as done:
            prune_checkpoint(source, plan, mask, target, int(params.shard_size), done)
        total, active = parameters(source, plan, keep, routing.top_k)
        return {"bytes": size, "bytes_before": source.weight_bytes, "parameters": total, "active_parameters": active}

    return store.produce(step, runtime, build)
