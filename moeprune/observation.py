"""Observing a corpus: one chunk at a time, so that a pass can be taken up again where it was cut off."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moeprune.corpus import Corpus
from moeprune.observer import Observer
from moeprune.statistics import MAXIMA, PER_CHUNK, Statistics


@torch.no_grad()
def observe_chunk(
    model: PreTrainedModel,
    observer: Observer,
    corpus: Corpus,
    chunk: int,
    batch_size: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Statistics:
    """The statistics of one chunk: `chunks` long like the corpus, zero (maxima: -inf) in all others.

    A batch never crosses a chunk. `progress` is told the tokens of each batch.
    """
    device = next(model.parameters()).device
    tokens = 0
    for input_ids, mask in corpus.batches(chunk, batch_size):
        observer.valid = there = mask.to(device)
        base = model.get_decoder() if hasattr(model, "get_decoder") else model  # the head is not needed
        base(input_ids=input_ids.to(device), attention_mask=there, use_cache=False)
        tokens += int(mask.sum())
        progress(int(mask.sum()))
    return _in_chunk(list(observer.layers), observer.take(), tokens, chunk, corpus.chunks)


def _in_chunk(layers: list[int], sums: dict[str, Tensor], tokens: int, chunk: int, chunks: int) -> Statistics:
    def spread(value: Tensor, empty: float = 0.0) -> Tensor:
        spread = torch.full((chunks, *value.shape), empty, dtype=value.dtype)
        spread[chunk] = value
        return spread

    gates = {name.removeprefix("moments."): value for name, value in sums.items() if name.startswith("moments.")}
    return Statistics(
        layer=torch.tensor(layers),
        tokens=spread(torch.tensor(tokens)),
        count=spread(sums["moments"][..., 0, 0].long()),
        moments=spread(sums["moments"]),
        other_gates={mode: spread(value) for mode, value in gates.items()},
        sums={
            name: spread(value, -torch.inf if name in MAXIMA else 0.0) if name in PER_CHUNK else value
            for name, value in sums.items()
            if not name.startswith("moments")
        },
    )
