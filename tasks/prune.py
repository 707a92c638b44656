"""prune: a checkpoint and a mask become a checkpoint with fewer experts, or with sparse ones.

It is a stock checkpoint, unless the mask keeps more experts in one layer than in another: see moeprune/uneven.py.
"""

import io
from pathlib import Path
from typing import Any

from pydantic import ByteSize, Field

from tasks.artifacts import Artifact, Params, Runtime, Step, Store, logger, set_threads, stage
from tasks.identity import code_digest
from tasks.progress import progress

CODE = ("moeprune.surgery", "moeprune.file_plan", "moeprune.sizes", "moeprune.loader.modeling_moeprune")
SPARSE_CODE = ("moeprune.sparsity", "moeprune.projections", "moeprune.files", "moeprune.file_plan")
SEQUENTIAL_CODE = ("moeprune.sequential", "moeprune.models")
LIBRARIES = ("transformers",)


class PruneParams(Params):
    """How the pruned checkpoint is written."""

    shard_size: ByteSize = Field(ByteSize(5_000_000_000), gt=0)
    """Most bytes of a weight file, such as 5GB."""


def step(params: PruneParams, checkpoint: Artifact | None, mask: Artifact | None) -> Step:
    """The mask counts by its content: two criteria that keep the same experts share the checkpoint."""
    identity = {"shard_size": int(params.shard_size)}
    return Step("prune", "", code_digest(CODE, LIBRARIES), identity, {"download": checkpoint, "mask": mask})


def sparse_step(
    params: PruneParams,
    criterion: str,
    checkpoint: Artifact | None,
    mask: Artifact | None,
    statistics: dict[str, Artifact | None],
    corpora: dict[str, Artifact | None] | None,
    dtype: str,
) -> Step:
    """A weight mask is computed from the sums it names; one of order `sequential` from the model and the corpora."""
    identity: dict[str, Any] = {"shard_size": int(params.shard_size)}
    inputs = {"download": checkpoint, "mask": mask}
    modules = [f"moeprune.criteria.{criterion}", *SPARSE_CODE]
    if corpora is None:
        inputs |= {f"observe.{number}": artifact for number, artifact in enumerate(statistics.values())}
        return Step("prune", "", code_digest(modules, LIBRARIES), identity, inputs)
    inputs |= {f"calibrate.{number}": artifact for number, artifact in enumerate(corpora.values())}
    identity["dtype"] = dtype
    return Step("prune", "", code_digest([*modules, *SEQUENTIAL_CODE], ("torch", *LIBRARIES)), identity, inputs)


@stage(name="prune")
def prune(step: Step, runtime: Runtime, params: PruneParams, trust_remote_code: bool) -> Artifact:
    """A folder that `from_pretrained` loads: config, weights and tokenizer, with the mask's experts or weights only."""
    store = Store(runtime.store)

    def build(target: Path) -> dict[str, Any]:
        import json

        artifact = step.inputs["mask"]
        assert artifact
        text = (store.folder(artifact) / "mask.json").read_text()
        work = _remove_experts if "kept" in json.loads(text) else _zero_weights
        return work(step, runtime, text, target, int(params.shard_size), trust_remote_code)

    return store.produce(step, runtime, build)


def _remove_experts(step: Step, runtime: Runtime, text: str, target: Path, shard: int, trusted: bool) -> dict[str, Any]:
    from moeprune.checkpoint import open_checkpoint
    from moeprune.configs import read_config, read_routing
    from moeprune.file_plan import read_file_plan
    from moeprune.masks import Mask
    from moeprune.sizes import parameters, pruned_bytes
    from moeprune.surgery import prune_checkpoint

    store, checkpoint = Store(runtime.store), step.inputs["download"]
    assert checkpoint
    source = open_checkpoint(store.folder(checkpoint))
    mask = Mask.from_json(text)
    plan, routing = read_file_plan(source, trusted), read_routing(read_config(source.folder, trusted))
    routing.check_kept(mask.kept)
    size = pruned_bytes(source, plan, mask)
    store.check_space(size)
    if plan.dropped:
        logger().warning(
            "%s: left out %d tensors of prediction heads, whose experts were not observed, such as %s",
            step.title,
            len(plan.dropped),
            min(plan.dropped),
        )
    with progress(step.title, size, "B") as done:
        prune_checkpoint(source, plan, mask, target, shard, done, trusted)
    total, active = parameters(source, plan, mask, routing.top_k)
    return {"bytes": size, "bytes_before": source.weight_bytes, "parameters": total, "active_parameters": active}


def _zero_weights(step: Step, runtime: Runtime, text: str, target: Path, shard: int, trusted: bool) -> dict[str, Any]:
    from moeprune.checkpoint import open_checkpoint
    from moeprune.configs import read_config
    from moeprune.criteria import find
    from moeprune.file_plan import read_file_plan
    from moeprune.projections import projections
    from moeprune.sparsity import energies_of, sparsify_checkpoint, stored_sizes
    from moeprune.weight_masks import WeightMask, parse_pattern

    set_threads(runtime)
    store, checkpoint = Store(runtime.store), step.inputs["download"]
    assert checkpoint
    source = open_checkpoint(store.folder(checkpoint))
    store.check_space(source.weight_bytes)
    mask = WeightMask.from_json(text)
    criterion, pattern = find(mask.criterion), parse_pattern(mask.pattern)
    config = read_config(source.folder, trusted)
    plan, found = read_file_plan(source, trusted), projections(config, trusted)
    if mask.order == "sequential":
        energies = _sequential(step, runtime, criterion, pattern, trusted)
    else:
        energies = energies_of(_observed(step, store), criterion.energy)
    if energies.unseen:
        logger().warning("%s: experts that saw no token go by their weights alone: %s", step.title, energies.unseen)
    with progress(step.title, source.weight_bytes, "B") as done:
        sparsify_checkpoint(source, plan, found, criterion.score, energies, pattern, target, shard, done)
    sizes = stored_sizes(open_checkpoint(target), plan, found, pattern) | zstd_size(target)
    unseen = {str(layer): list(experts) for layer, experts in energies.unseen.items()}
    return {"bytes": source.weight_bytes, "unseen_experts": unseen, "sizes": sizes}


def _folders(step: Step, store: Store, stage: str) -> list[Path]:
    return [store.folder(entry) for name, entry in step.inputs.items() if name.startswith(f"{stage}.") and entry]


def _observed(step: Step, store: Store) -> Any:
    from moeprune.files import load_statistics
    from moeprune.statistics import pooled

    return pooled([load_statistics(folder / "statistics.safetensors") for folder in _folders(step, store, "observe")])


def _sequential(step: Step, runtime: Runtime, criterion: Any, pattern: Any, trusted: bool) -> Any:
    from moeprune.files import load_corpus
    from moeprune.interface import experts_of
    from moeprune.models import cached_model, pick_device
    from moeprune.sequential import sequential_energies

    store, checkpoint = Store(runtime.store), step.inputs["download"]
    assert checkpoint
    device = pick_device(runtime.device)
    model = cached_model(store.folder(checkpoint), step.params["dtype"], device, trusted)
    corpora = [load_corpus(folder / "tokens.safetensors") for folder in _folders(step, store, "calibrate")]
    total = sum(corpus.tokens for corpus in corpora) * len(experts_of(model))
    with progress(f"{step.title} observing", total, "tok") as done:
        return sequential_energies(model, corpora, criterion.energy, criterion.score, pattern, runtime.batch_size, done)


def zstd_size(folder: Path) -> dict[str, int]:
    """Bytes of a checkpoint's weight files compressed by zstd at its default level: measured, not a loadable model."""
    import pyarrow as arrow

    count = _Count()
    for path in sorted(folder.glob("*.safetensors")):
        with arrow.CompressedOutputStream(arrow.PythonFile(count, "w"), "zstd") as stream, path.open("rb") as file:
            while block := file.read(1 << 24):
                stream.write(block)
    return {"zstd_bytes": count.bytes}


class _Count(io.RawIOBase):
    """A file that only counts what is written to it."""

    bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.bytes += len(data)
        return len(data)

    def close(self) -> None:
        """Stays open: several streams are counted together."""
