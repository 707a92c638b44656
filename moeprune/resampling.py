"""Scores of many replicates of the calibration data at once, from the sums of its chunks.

A replicate counts each chunk a number of times (`moeprune.replicates`). Criteria work layer by layer, so the layers of
all replicates stand one after another in a single `Statistics`, and a criterion is called once for all of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from moeprune.chunk_sums import joined, layers_of, only
from moeprune.combining import combine
from moeprune.errors import BadInput
from moeprune.replicates import Replicates
from moeprune.statistics import MAXIMA, PER_CHUNK, Statistics

Score = Callable[[Statistics], Tensor]
"""A criterion with its options: statistics to scores [L, E], higher = keep."""

BLOCK_BYTES = 2**25
"""About how much a block of layers may take, never less than one layer: larger ones are slower."""


def resampled(statistics: Statistics, replicates: Float64[Tensor, "R C"]) -> Statistics:
    """The statistics of R replicates as one chunk with R * L layers, layer l of replicate r at r * L + l.

    Sums are weighted over chunks, in float64; maxima are taken over the chunks that count at all. Sums that are kept
    for the whole corpus are left out. `tokens` has no layers and is NaN: no score may depend on it.
    """
    weight = replicates.to(statistics.count.device)

    def summed(value: Tensor) -> Tensor:
        # What follows layers and experts comes first in memory: criteria read one cell of the moments at a time.
        cells = value.double().permute(*range(3, value.dim()), 0, 1, 2)
        found = (weight @ cells.flatten(-2)).reshape(*cells.shape[:-3], 1, -1, cells.shape[-1])
        return found.permute(*range(value.dim() - 3, value.dim()), *range(value.dim() - 3))

    def largest(value: Tensor) -> Tensor:
        found = value.new_full((len(weight), *value.shape[1:]), -torch.inf)
        for chunk, counts in zip(value, weight.T > 0, strict=True):
            found = torch.maximum(found, chunk.where(counts[:, None, None], -torch.inf))
        return found.flatten(0, 1)[None]

    return Statistics(
        layer=statistics.layer.repeat(len(weight)),
        tokens=weight.new_full((1,), torch.nan),
        count=summed(statistics.count),
        moments=summed(statistics.moments),
        other_gates={mode: summed(moments) for mode, moments in statistics.other_gates.items()},
        sums={
            name: largest(value) if name in MAXIMA else summed(value)
            for name, value in statistics.sums.items()
            if name in PER_CHUNK
        },
    )


@dataclass(frozen=True)
class Block:
    """Some layers of all replicates: the sums of each chunk, and those of each replicate, for each corpus."""

    layers: slice
    chunks: Sequence[Statistics]
    replicates: Replicates
    whole: Sequence[Statistics]

    def rows(self, where: slice) -> "Block":
        """The same layers of some of the replicates."""
        layers = self.chunks[0].count.shape[1]
        long = slice(where.start * layers, where.stop * layers)
        return Block(
            self.layers,
            self.chunks,
            [weight[where] for weight in self.replicates],
            [layers_of(statistics, long) for statistics in self.whole],
        )


@dataclass(frozen=True)
class Resampling:
    """What replicates of the scores are computed from: see `prepare`.

    `scores` are those of all the data, by criterion; `chunks` the number of chunks of each corpus. Pooled `corpora` are
    joined into one.
    """

    chunks: tuple[int, ...]
    criteria: Mapping[str, Score]
    scores: Mapping[str, Float64[Tensor, "L E"]]
    corpora: Sequence[Statistics]
    how: str
    weights: Sequence[float] | None

    def blocks(self, replicates: Replicates) -> Iterator[Block]:
        """All layers, in blocks of about `BLOCK_BYTES`.

        Layers rather than replicates are divided: who reads a block sees all replicates of its scores.
        """
        if self.how == "pooled":
            replicates = [torch.cat(_weighted(replicates, self.weights), 1)]
        _, layers, experts = self.corpora[0].count.shape
        step = max(1, BLOCK_BYTES // (8 * len(replicates[0]) * experts * self._planes()))
        for first in range(0, layers, step):
            where = slice(first, min(first + step, layers))
            chunks = [layers_of(corpus, where) for corpus in self.corpora]
            whole = [resampled(corpus, weight) for corpus, weight in zip(chunks, replicates, strict=True)]
            yield Block(where, chunks, replicates, whole)

    def block_scores(self, name: str, block: Block) -> Float64[Tensor, "R l E"]:
        """The scores of each replicate in a block's layers by one of the criteria.

        BadInput if some are not numbers, though those of all the data are: a replicate may hold no token of an expert.
        """
        if self.how == "pooled":
            scores = self.criteria[name](block.whole[0])
        else:
            scores, _ = combine(self.criteria[name], block.whole, self.how, self.weights)
        if scores.isnan().any():
            raise BadInput(
                f"audit: criterion '{name}' gives scores that are not numbers for some parts of the data, such as "
                "those without a token of some expert: leave the criterion out of the audit"
            )
        return scores.reshape(len(block.replicates[0]), -1, scores.shape[-1])

    def _planes(self) -> int:
        """About how many numbers are held at a time for each score of each replicate."""
        one, corpora = self.corpora[0], len(self.corpora)
        sums = corpora * (10 + 9 * len(one.other_gates) + len(one.sums))
        # Ranks compare every two experts, a byte each.
        return sums + 8 + (corpora * one.count.shape[-1] // 8 if self.how == "rank" else 0)


def prepare(
    criteria: Mapping[str, Score],
    corpora: Sequence[Statistics],
    how: str = "pooled",
    weights: Sequence[float] | None = None,
) -> Resampling:
    """Score all the data, and see what the criteria read: only that is resampled.

    `how` and `weights` are those of `moeprune.combining.combine`. Raises BadInput for a criterion that cannot be
    resampled, as it reads sums that are kept for a whole corpus or numbers of tokens, and for what `combine` refuses.
    """
    read: set[str] = set()
    scores = {}
    for name, score in criteria.items():
        seen: set[str] = set()
        scores[name], _ = combine(_spied(score, seen), corpora, how, weights)
        if whole := sorted(
            entry for corpus in corpora for entry in seen & corpus.sums.keys() if entry not in PER_CHUNK
        ):
            raise BadInput(
                f"audit: criterion '{name}' reads '{whole[0]}', which is kept for a whole corpus and not for each of "
                "its chunks, so that it cannot be resampled: leave the criterion out of the audit"
            )
        if scores[name].isnan().any():
            raise BadInput(
                f"audit: criterion '{name}' has scores that are not numbers, or that depend on the number of tokens, "
                "which cannot be resampled: leave the criterion out of the audit"
            )
        read |= seen
    kept = [only(corpus, read) for corpus in corpora]
    chunks = tuple(len(corpus.tokens) for corpus in corpora)
    return Resampling(chunks, criteria, scores, [joined(kept)] if how == "pooled" else kept, how, weights)


def resampled_scores(
    score: Score,
    corpora: Sequence[Statistics],
    replicates: Replicates,
    how: str = "pooled",
    weights: Sequence[float] | None = None,
) -> Float64[Tensor, "R L E"]:
    """The combined scores of each replicate by one criterion. Raises BadInput as `prepare` does."""
    resampling = prepare({"": score}, corpora, how, weights)
    return torch.cat([resampling.block_scores("", block) for block in resampling.blocks(replicates)], 1)


class _Spied(dict[str, Tensor]):
    """Sums that note which of them are read."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.seen.add(name)
        return super().__getitem__(name)


def _spied(score: Score, seen: set[str]) -> Score:
    def spied(statistics: Statistics) -> Tensor:
        watched = replace(
            statistics,
            tokens=torch.full_like(statistics.tokens, torch.nan, dtype=torch.float64),
            other_gates=(gates := _Spied(statistics.other_gates)),
            sums=(sums := _Spied(statistics.sums)),
        )
        gates.seen = sums.seen = seen  # from here on: a checker of types has read them already
        return score(watched)

    return spied


def _weighted(replicates: Replicates, weights: Sequence[float] | None) -> Replicates:
    """Chunks count as their corpus does: the weights of `moeprune.statistics.pooled`."""
    if weights is None:
        return replicates
    mean = sum(weights) / len(weights)
    return [matrix * (weight / mean) for matrix, weight in zip(replicates, weights, strict=True)]
