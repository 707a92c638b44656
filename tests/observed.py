"""What moeprune observes of a tiny model, beside what is true of the same tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import tiny
import torch
from torch import Tensor, nn

from moeprune.corpus import Corpus
from moeprune.observation import observe_chunk
from moeprune.observer import Observer
from moeprune.statistics import GATE_MODES, GROUPS, Statistics


@dataclass(frozen=True)
class Observed:
    """The statistics of some tokens, and the truth about them."""

    statistics: Statistics
    truth: dict[int, tiny.LayerTruth]

    def expected(self, entry: Callable[[tiny.LayerTruth, int], Any]) -> Tensor:
        """[L, E, ...] in float64, one entry at a time."""
        rows = [[torch.as_tensor(entry(layer, e)) for e in range(tiny.EXPERTS)] for layer in self.truth.values()]
        return torch.stack([torch.stack([value.double() for value in row]) for row in rows])


def corpus_of(sequences: list[Tensor], chunk: list[int]) -> Corpus:
    """One document per sequence, in the chunk given."""
    ids, mask = tiny.padded(sequences)
    document = torch.arange(len(ids)).int()
    return Corpus(ids.int(), mask.sum(1).int(), document, torch.tensor(chunk).int())


def observe(model: nn.Module, corpus: Corpus, batch_size: int = 4) -> Statistics:
    """All groups of sums and all gate modes, chunk by chunk."""
    with Observer(model, tuple(GROUPS), GATE_MODES) as observer:
        parts = [observe_chunk(model, observer, corpus, chunk, batch_size) for chunk in range(corpus.chunks)]
    return sum(parts[1:], parts[0])


@lru_cache
def observed(family: str) -> Observed:
    """Three sequences of unlike lengths, padded in one batch, against each of them alone."""
    sequences = tiny.token_ids(14, 9, 20)
    model = tiny.shared_model(family)
    return Observed(observe(model, corpus_of(sequences, [0, 0, 0])), tiny.truth(model, sequences))


def gate_ratios(layer: tiny.LayerTruth) -> Tensor:
    """Of each token the smaller of its two gates divided by the larger."""
    gates: dict[int, list[float]] = {}
    for visit in layer.visits:
        gates.setdefault(visit.token, []).append(visit.gates["deployed"])
    return torch.tensor([min(pair) / max(pair) for pair in gates.values()], dtype=torch.float64)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest relative difference of any entry; where 0 is expected, 0 it must be."""
    assert found.shape == expected.shape
    assert not found[expected == 0].any()
    return float(((found - expected).abs() / expected.abs().where(expected != 0, 1)).max())


def relative_error_of_vectors(found: Tensor, expected: Tensor) -> float:
    """Largest length of a difference along the last axis, relative to the vector's own length.

    For vectors whose single entries may be almost zero by chance or by cancelling.
    """
    return relative_error((found - expected).norm(dim=-1) + expected.norm(dim=-1), expected.norm(dim=-1))
