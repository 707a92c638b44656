"""Masks and scores of several texts, draws or criteria, set side by side."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from moeprune.agreement import chance_corrected, overlap, pairwise, spearman_rho
from moeprune.combining import combine, ranks
from moeprune.corpus import Corpus
from moeprune.resampling import Score
from moeprune.routing import Routing
from moeprune.stability import kept, places
from moeprune.statistics import Statistics

PERMUTATIONS = 10_000


def masks_of(scores: Float64[Tensor, "*batch E"], keep: int, routing: Routing) -> Bool[Tensor, "*batch E"]:
    """Which experts uniform selection keeps. Raises BadInput if the router cannot work with that many."""
    return kept(places(scores, routing), keep, routing)


def mask_agreement(masks: Bool[Tensor, "N L E"]) -> tuple[Float64[Tensor, "N N L"], Float64[Tensor, "N N L"]]:
    """Of every two masks, in each layer: the agreement above chance, and the share of removed experts in common.

    The first is `agreement.chance_corrected`. The second is what papers print: it is large by chance alone where many
    experts go, as two random sets have that share in common which is removed.
    """
    return pairwise(chance_corrected, masks), pairwise(overlap, ~masks)


def rank_agreement(scores: Float64[Tensor, "N L E"]) -> Float64[Tensor, "N N L"]:
    """Spearman's rank correlation of every two lists of scores; NaN for a layer whose scores are all equal."""
    return pairwise(spearman_rho, scores)


def mean_of_pairs(agreement: Float64[Tensor, "N N L"]) -> float:
    """Mean over every two different ones and over layers, without NaN; NaN if there is nothing else."""
    number = len(agreement)
    return float(agreement[~torch.eye(number, dtype=torch.bool, device=agreement.device)].nanmean())


def claimed(masks: Bool[Tensor, "N L E"]) -> Bool[Tensor, "N L E"]:
    """Which experts one mask keeps and no other."""
    return masks & (masks.sum(0) == 1)


def left_out(
    score: Score, corpora: Sequence[Statistics], how: str, weights: Sequence[float] | None
) -> Float64[Tensor, "S L E"]:
    """Combined scores without each of two or more corpora in turn."""
    found = []
    for number in range(len(corpora)):
        others = [*corpora[:number], *corpora[number + 1 :]]
        weight = None if weights is None else [*weights[:number], *weights[number + 1 :]]
        found.append(combine(score, others, how, weight)[0])
    return torch.stack(found)


def text_in_common(one: Corpus, other: Corpus) -> float:
    """Share of the tokens of two draws from the same source that are of documents which are in both."""
    first, second = (_tokens_by_document(corpus) for corpus in (one, other))
    common = sum(min(first[document], second[document]) for document in first.keys() & second.keys())
    return 2 * common / (first.total() + second.total())


def _tokens_by_document(corpus: Corpus) -> Counter[int]:
    found: Counter[int] = Counter()
    for document, length in zip(corpus.document.tolist(), corpus.length.tolist(), strict=True):
        found[document] += length
    return found


@dataclass(frozen=True)
class RankTest:
    """A rank correlation, its two-sided p-value, and of how many pairs in how many strata it is."""

    rho: float
    p: float
    pairs: int
    strata: int


def rank_test(
    one: Sequence[float], other: Sequence[float], strata: Sequence[Hashable], seed: int = 0
) -> RankTest | None:
    """Whether values go together within strata, whatever differs between those.

        rho = sum_s Sxy_s / sqrt(sum_s Sxx_s sum_s Syy_s)        S: of ranks within stratum s, around their mean

    Of a single stratum that is Spearman's correlation. Ranks are in [0, 1], so that a stratum counts as many times as
    it has pairs. The p-value is that of a permutation test: how often values shuffled within their strata correlate
    as much or more, in `PERMUTATIONS` shuffles, the values themselves counted as one of them. A stratum of one pair
    says nothing and is left out. None if there is no other, or if nothing varies within strata.
    """
    groups: dict[Hashable, list[int]] = {}
    for place, stratum in enumerate(strata):
        groups.setdefault(stratum, []).append(place)
    generator = torch.Generator().manual_seed(seed)
    both, var_x, var_y = torch.zeros(PERMUTATIONS + 1, dtype=torch.float64), 0.0, 0.0
    places = [own for own in groups.values() if len(own) > 1]
    for own in places:
        x, y = (ranks(torch.tensor(values, dtype=torch.float64)[own]) - 0.5 for values in (one, other))
        shuffled = torch.rand(PERMUTATIONS, len(own), generator=generator).argsort(1)
        both = both + (torch.cat([y[None], y[shuffled]]) * x).sum(1)
        var_x, var_y = var_x + float(x.square().sum()), var_y + float(y.square().sum())
    if var_x * var_y == 0:
        return None
    found = both / sqrt(var_x * var_y)
    as_large = int((found.abs() >= found[0].abs() - 1e-12).sum())
    return RankTest(float(found[0]), as_large / len(found), sum(map(len, places)), len(places))
