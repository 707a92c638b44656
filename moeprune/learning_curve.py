"""How many calibration tokens a mask needs: agreement of masks and rankings against the size of the data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from moeprune.agreement import chance_corrected, jaccard, kendall_tau, rank_biased_overlap
from moeprune.errors import BadInput
from moeprune.replicates import Replicates, check, random_orders, stacked, subsets
from moeprune.resampling import Score, prepare
from moeprune.routing import Routing
from moeprune.stability import kept, places
from moeprune.statistics import Statistics

FRACTIONS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
Measure = Literal["jaccard", "corrected", "tau", "overlap"]


@dataclass(frozen=True)
class Curve:
    """Agreement at several sizes of the calibration data, in several random orders of their chunks; means over layers.

    tokens     [F]     mean number of calibration tokens; a chunk holds whole documents, so orders differ
    jaccard    [B, F]  Jaccard index of the sets of removed experts
    corrected  [B, F]  agreement of the masks corrected for chance (`agreement.chance_corrected`)
    tau        [B, F]  Kendall's tau-b of the scores; layers whose scores are all equal are left out
    overlap    [B, F]  rank-biased overlap of the orders of removal, which looks at as many experts as go, on average
    """

    tokens: Float64[Tensor, "F"]
    jaccard: Float64[Tensor, "B F"]
    corrected: Float64[Tensor, "B F"]
    tau: Float64[Tensor, "B F"]
    overlap: Float64[Tensor, "B F"]

    def mean(self, measure: Measure) -> Float64[Tensor, "F"]:
        """Mean over orders."""
        return self._of(measure).mean(0)

    def spread(self, measure: Measure) -> Float64[Tensor, "F"]:
        """Standard deviation over orders."""
        return self._of(measure).std(0)

    def _of(self, measure: Measure) -> Float64[Tensor, "B F"]:
        values: Tensor = getattr(self, measure)
        return values


@dataclass(frozen=True)
class LearningCurve:
    """Agreement with all the data, and of data sets that share nothing.

    `full` compares a subset with all the data. Its last points are too good: the subset is part of what it is compared
    with, and at the full size they are equal whatever the data. `disjoint` compares two subsets of the same size
    without a common chunk, and so shows what other text of that size would give; it ends at half the data, and is
    not extrapolated.
    """

    full: Curve
    disjoint: Curve


def learning_curves(
    criteria: Mapping[str, Score],
    corpora: Mapping[str, Statistics],
    keeps: Sequence[int],
    routing: Routing,
    *,
    fractions: Sequence[float] = FRACTIONS,
    repeats: int = 20,
    seed: int = 0,
    how: str = "pooled",
    weights: Sequence[float] | None = None,
    progress: Callable[[int], None] = lambda layers: None,
) -> dict[str, dict[int, LearningCurve]]:
    """Score the first chunks of the corpora in random orders, and compare what uniform selection keeps.

    Curves by criterion and number of experts kept. Of every corpus the same fraction of chunks is taken, rounded, at
    least one, and its sums are scaled to its whole size, so that the mixture stays. `disjoint` has the fractions up to
    1/2. `progress` is told of layers. Raises BadInput for a fraction that is not in (0, 1], if none is at most 1/2, for
    a corpus of one chunk, and as `resampling.prepare` does.
    """
    fractions = sorted(fractions)
    if not fractions or not 0 < fractions[0] <= 0.5 or fractions[-1] > 1:
        raise BadInput(f"audit: fractions of the calibration data {fractions}: give some in (0, 1], one at most 1/2")
    for keep in keeps:
        routing.check(keep)
    data = list(corpora.values())
    chunks = [len(corpus.tokens) for corpus in data]
    check(chunks)
    resampling = prepare(criteria, data, how, weights)
    small = sum(fraction <= 0.5 for fraction in fractions)
    first, following = _parts(chunks, fractions, random_orders(chunks, repeats, seed))
    replicates, _ = stacked({f"{number}": part for number, part in enumerate(first + following)})
    full: dict[str, list[Agreements]] = {name: [] for name in criteria}
    disjoint: dict[str, list[Agreements]] = {name: [] for name in criteria}
    for block in resampling.blocks(replicates):
        for name in criteria:
            every = resampling.block_scores(name, block).unflatten(0, (-1, repeats)).transpose(0, 1)
            one, other = every[:, : len(fractions)], every[:, len(fractions) :]
            whole = resampling.scores[name][block.layers].expand_as(one)
            full[name].append(_agreements(one, whole, keeps, routing))
            disjoint[name].append(_agreements(one[:, :small], other, keeps, routing))
        progress(block.chunks[0].count.shape[1])
    tokens = torch.stack([_tokens(part, data) for part in first])
    return {
        name: {
            keep: LearningCurve(_curve(tokens, full[name], keep), _curve(tokens[:small], disjoint[name], keep))
            for keep in keeps
        }
        for name in criteria
    }


def _parts(
    chunks: Sequence[int], fractions: Sequence[float], orders: Sequence[Tensor]
) -> tuple[list[Replicates], list[Replicates]]:
    """The first chunks of the orders for each fraction, and the equally many next ones where there are as many."""
    first, following = [], []
    for fraction in fractions:
        small = fraction <= 0.5  # half of an odd number of chunks must fit twice
        sizes = [max(1, min(round(fraction * size), size // 2 if small else size)) for size in chunks]
        first.append(subsets(orders, sizes, [0] * len(sizes)))
        if small:
            following.append(subsets(orders, sizes, sizes))
    return first, following


def _tokens(replicates: Replicates, corpora: Sequence[Statistics]) -> Float64[Tensor, ""]:
    """Mean over replicates of the tokens in the chunks that count."""
    each = [
        (weight > 0).double() @ corpus.tokens.double().cpu() for weight, corpus in zip(replicates, corpora, strict=True)
    ]
    return torch.stack(each).sum(0).mean()


def smallest_budget(curve: Curve, measure: Measure, target: float) -> int | None:
    """The smallest number of tokens from which on the mean agreement is at least `target`; None if there is none.

    One of the sizes that were measured: nothing is interpolated.
    """
    reached = (curve.mean(measure) >= target).flip(0).cumprod(0).flip(0).nonzero()
    return round(float(curve.tokens[reached[0, 0]])) if len(reached) else None


Agreements = dict[int, dict[str, Tensor]]
"""By number of experts kept and measure, [B, F, l]."""


def _agreements(
    one: Float64[Tensor, "B F l E"], other: Float64[Tensor, "B F l E"], keeps: Sequence[int], routing: Routing
) -> Agreements:
    order = places(one, routing), places(other, routing)
    whole = Routing(routing.experts, routing.top_k)  # one ranking of all experts, whatever the groups
    ranking = [places(scores, whole).long() for scores in (one, other)]
    # The square of the number of experts is held for every list of scores: layer by layer.
    tau = torch.stack([kendall_tau(*pair) for pair in zip(one.unbind(2), other.unbind(2), strict=True)], -1)
    found = {}
    for keep in keeps:
        first, second = (kept(place, keep, routing) for place in order)
        found[keep] = {
            "jaccard": jaccard(~first, ~second),
            "corrected": chance_corrected(first, second),
            "tau": tau,
            "overlap": rank_biased_overlap(ranking[0], ranking[1], 1 - 1 / max(routing.experts - keep, 2)),
        }
    return found


def _curve(tokens: Float64[Tensor, "F"], blocks: Sequence[Agreements], keep: int) -> Curve:
    """Means over the layers of all blocks."""
    measures = blocks[0][keep]
    return Curve(
        tokens, **{word: torch.cat([block[keep][word] for block in blocks], -1).nanmean(-1) for word in measures}
    )
