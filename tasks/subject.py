"""The model that is measured: a checkpoint's own, or the base model without the experts that a mask removes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moeprune.checkpoint import Checkpoint, open_checkpoint
from moeprune.errors import BadInput
from moeprune.masks import Mask
from moeprune.routing import Routing


@dataclass(frozen=True)
class Subject:
    """A model, and what it takes.

    `memory` holds bytes, and numbers of parameters: `disk` of all tensors in files, `weights` of all in memory,
    `parameters` and `active_parameters`; if it was `known` by measuring, also the peaks of moeprune.footprint.
    """

    model: Any
    memory: dict[str, int]
    known: Literal["measured", "computed"]


@contextmanager
def loaded(
    folder: Path, dtype: str, device: str, tokens: int, trust_remote_code: bool, stays: bool
) -> Iterator[Subject]:
    """A checkpoint's model, after its memory was measured in a process of its own.

    `tokens` is the length of the forward pass measured. If it `stays`, virtual masks of this process use it too.
    """
    from moeprune.footprint import measure
    from moeprune.models import cached_model, load_model

    source, plan, routing = _read(folder, trust_remote_code)
    sizes = {"disk": source.weight_bytes, **_parameters(source, plan, routing.experts, routing.top_k)}
    peaks = measure(folder, dtype, device, tokens, trust_remote_code)
    model = (cached_model if stays else load_model)(folder, dtype, device, trust_remote_code)
    yield Subject(model, {**sizes, "weights": _weights(model), **peaks}, "measured")


@contextmanager
def virtually_pruned(
    folder: Path, base: str, mask: Mask, dtype: str, device: str, trust_remote_code: bool
) -> Iterator[Subject]:
    """The base model in `folder`, whose digest is `base`, with the mask applied in memory; it is whole afterwards.

    It is loaded once in a process, whatever the number of masks. Memory holds the base and a copy of what is kept; the
    sizes are computed: they are those of the checkpoint that pruning would write. Meanwhile the model is no other
    thread's: whatever this process does with it, it does with what the mask leaves. Raises BadInput for a mask of
    another base, or one that the router cannot work with.
    """
    from moeprune.models import cached_model
    from moeprune.sizes import pruned_bytes
    from moeprune.slicing import sliced

    if mask.base != base:
        raise BadInput(
            f"mask: it is of the base model {mask.base[:12]}, not of {base[:12]}: make a mask for this checkpoint"
        )
    source, plan, routing = _read(folder, trust_remote_code)
    routing.check_kept(mask.kept)
    sizes = {"disk": pruned_bytes(source, plan, mask), **_parameters(source, plan, mask, routing.top_k)}
    model = cached_model(folder, dtype, device, trust_remote_code)
    with sliced(model, plan, mask.kept):
        yield Subject(model, {**sizes, "weights": _weights(model)}, "computed")


def _read(folder: Path, trust_remote_code: bool) -> tuple[Checkpoint, Any, Routing]:
    """A checkpoint's headers, which of its tensors belong to which expert, and what its router demands."""
    from moeprune.configs import read_config, read_routing
    from moeprune.file_plan import read_file_plan

    source = open_checkpoint(folder)
    return source, read_file_plan(source, trust_remote_code), read_routing(read_config(folder, trust_remote_code))


def _parameters(source: Checkpoint, plan: Any, keep: int | Mask, top_k: int) -> dict[str, int]:
    from moeprune.sizes import parameters

    total, active = parameters(source, plan, keep, top_k)
    return {"parameters": total, "active_parameters": active}


def _weights(model: Any) -> int:
    """Bytes of all that a model holds in memory, tied weights once."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


@contextmanager
def skipping_experts(model: Any, observed: list[Path]) -> Iterator[dict[str, Any]]:
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
