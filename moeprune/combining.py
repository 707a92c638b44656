"""How the scores of several corpora become one ranking."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from moeprune.errors import BadInput
from moeprune.statistics import Statistics, pooled

COMBINATIONS = ("pooled", "mean", "max", "rank", "normalised")


def combine(
    score: Callable[[Statistics], Tensor],
    corpora: Sequence[Statistics],
    how: str,
    weights: Sequence[float] | None = None,
) -> tuple[Float64[Tensor, "L E"], Float64[Tensor, "S L E"]]:
    """(the combined scores, the scores of each corpus).

    pooled      the criterion on the sums of all corpora together: corpora weigh as many tokens as they have
    mean        mean over corpora of each corpus' score: TB-Coverage's s-bar (arXiv:2607.01710)
    max         largest score over corpora
    rank        mean over corpora of the expert's rank within its layer, in [0, 1]; equal scores share a rank
    normalised  mean over corpora of each corpus' score divided by the layer's sum: EASY-EP's mixing (arXiv:2504.06792)

    `weights`, one for each corpus, make the means weighted, and multiply a corpus' sums before they are pooled; equal
    weights are the same as none. The scores of each corpus are as the criterion gives them. Raises BadInput for
    weights with max or weights that are not above 0, and for scores below 0 to be normalised.
    """
    per_corpus = torch.stack([score(corpus.total()) for corpus in corpora])
    if weights is not None:
        _check(weights, how)
    if how == "pooled":
        return score(pooled(corpora, weights)), per_corpus
    if how == "max":
        return per_corpus.amax(0), per_corpus
    scaled = {"mean": lambda scores: scores, "rank": ranks, "normalised": shares}
    if how not in scaled:
        raise ValueError(f"no way to combine corpora is called {how!r}")
    weight = torch.ones(len(corpora)) if weights is None else torch.tensor(weights)
    weight = (weight.double() / weight.double().sum()).to(per_corpus.device)
    return (scaled[how](per_corpus) * weight[:, None, None]).sum(0), per_corpus


def _check(weights: Sequence[float], how: str) -> None:
    if how == "max":
        raise BadInput(
            "score.weights: the largest score over corpora has no weights: leave them out or combine by mean"
        )
    if not all(0 < weight < float("inf") for weight in weights):
        raise BadInput(f"score.weights: {list(weights)} are not all numbers above 0: leave out what is not to count")


def ranks(scores: Float64[Tensor, "*batch E"]) -> Float64[Tensor, "*batch E"]:
    """Rank within the last dimension from 0 (lowest) to 1 (highest); equal scores get the mean of their ranks."""
    lower = (scores[..., :, None] > scores[..., None, :]).sum(-1)
    equal = (scores[..., :, None] == scores[..., None, :]).sum(-1) - 1
    return (lower + equal / 2).double() / max(scores.shape[-1] - 1, 1)


def shares(scores: Float64[Tensor, "*batch E"]) -> Float64[Tensor, "*batch E"]:
    """Scores divided by their sum over the last dimension; zeros stay zeros. BadInput for scores below 0."""
    if (scores < 0).any():
        raise BadInput("score.combine: scores below 0 cannot be normalised to a sum of one: combine by rank or mean")
    total = scores.sum(-1, keepdim=True)
    return scores / total.where(total > 0, 1)
