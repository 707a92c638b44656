"""Masks and scores of several texts, draws or criteria, set side by side."""

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from moeprune.agreement import chance_corrected, overlap, pairwise, spearman_rho
from moeprune.combining import combine
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


def rank_test(one: Sequence[float], other: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """(Spearman's rank correlation, how often shuffled values correlate as much or more).

    The second is the two-sided p-value of a permutation test with `PERMUTATIONS` shuffles, the values themselves
    counted as one of them. Both are NaN if all values of a list are equal.
    """
    x, y = torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
    rho = spearman_rho(x, y)
    if rho.isnan():
        return float("nan"), float("nan")
    shuffled = torch.rand(PERMUTATIONS, len(y), generator=torch.Generator().manual_seed(seed)).argsort(1)
    drawn = spearman_rho(x.expand(PERMUTATIONS, -1), y[shuffled])
    as_large = int((drawn.abs() >= rho.abs() - 1e-12).sum())
    return float(rho), (as_large + 1) / (PERMUTATIONS + 1)
