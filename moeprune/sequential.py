"""Input energies layer by layer, each of the model whose earlier layers are already sparse."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moeprune.corpus import Corpus
from moeprune.interface import experts_of
from moeprune.observer import Observer
from moeprune.projections import KINDS, memory_projections
from moeprune.sparsity import Energies, Score, sparsify
from moeprune.statistics import DEPLOYED
from moeprune.weight_masks import Pattern


class _Reached(Exception):
    """The layer that was to be observed has run: the rest of the forward pass is not needed."""


@torch.no_grad()
def sequential_energies(
    model: PreTrainedModel,
    corpora: Sequence[Corpus],
    kind: Literal["gated", "ungated"],
    score: Score,
    pattern: Pattern,
    batch_size: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Energies:
    """The energies of all corpora together, a layer's taken while it is dense and all earlier ones are sparse.

    MoE-Pruner's Algorithm 1 (arXiv:2410.12013) passes on the outputs of the dense layer, and one pass is enough; its
    text speaks of layer-wise reconstruction, and Wanda's code passes on those of the sparse one, as here. That takes a
    pass for each layer, stopped where it has run: on average half a pass. `progress` is told the tokens of each batch,
    each token once a layer. The model is as before at the end, however it ends; until then the dense weights of the
    layers done are held in the memory of the CPU.

    Raises BadInput if the family has no experts interface or a row is not made of whole blocks.
    """
    suffix = "" if kind == "gated" else ".ungated"
    layers = experts_of(model)
    taken: list[dict[str, Tensor]] = []
    dense: list[tuple[Tensor, Tensor]] = []
    try:
        for layer, experts in layers.items():
            sums = _observe(model, layer, corpora, batch_size, progress)
            taken.append({part: sums[f"input_energy.{part}{suffix}"] for part in KINDS})
            for name, projection in memory_projections(experts.module).items():
                weight: Tensor = getattr(experts.module, name)
                dense.append((weight, weight.to("cpu", copy=True)))
                weight.copy_(sparsify(weight, projection.input_axis, taken[-1][projection.kind], score, pattern))
    finally:
        for weight, before in dense:
            weight.copy_(before)
    up, down = (torch.stack([energies[part] for energies in taken]) for part in KINDS)
    return Energies(tuple(layers), up, down)


def _observe(
    model: PreTrainedModel, layer: int, corpora: Sequence[Corpus], batch_size: int, progress: Callable[[int], None]
) -> dict[str, Tensor]:
    """The sums of one layer, from passes that end with it."""
    base: Any = model.get_decoder()
    observer = Observer(model, ("inputs",), (DEPLOYED,))
    seen = observer.layers[layer]
    observer.layers = {layer: seen}

    def stop(module: nn.Module, inputs: Any, output: Any) -> None:
        raise _Reached

    handle = seen.experts.module.register_forward_hook(stop)
    try:
        with observer:
            for corpus in corpora:
                for chunk in range(corpus.chunks):
                    for input_ids, mask in corpus.batches(chunk, batch_size):
                        observer.valid = there = mask.to(model.device)
                        with suppress(_Reached):
                            base(input_ids=input_ids.to(model.device), attention_mask=there, use_cache=False)
                        progress(int(mask.sum()))
    finally:
        handle.remove()
    return {name: value[0] for name, value in observer.take().items()}
