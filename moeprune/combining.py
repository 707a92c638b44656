"""How the scores of several corpora become one ranking."""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add

import torch
from jaxtyping import Float64
from torch import Tensor

from moeprune.statistics import Statistics

COMBINATIONS = ("pooled", "mean", "max", "rank")


def combine(
    score: Callable[[Statistics], Tensor], corpora: Sequence[Statistics], how: str
) -> tuple[Float64[Tensor, "L E"], Float64[Tensor, "S L E"]]:
    """(the combined scores, the scores of each corpus).

    pooled  the criterion on the sums of all corpora together: corpora weigh as many tokens as they have
    mean    mean over corpora of each corpus' score: TB-Coverage's s-bar (arXiv:2607.01710)
    max     largest score over corpora
    rank    mean over corpora of the expert's rank within its layer, in [0, 1]; equal scores share a rank
    """
    per_corpus = torch.stack([score(corpus.total()) for corpus in corpora])
    if how == "pooled":
        return score(reduce(add, (corpus.total() for corpus in corpora))), per_corpus
    if how == "mean":
        return per_corpus.mean(0), per_corpus
    if how == "max":
        return per_corpus.amax(0), per_corpus
    if how == "rank":
        return ranks(per_corpus).mean(0), per_corpus
    raise ValueError(f"no way to combine corpora is called {how!r}")


def ranks(scores: Float64[Tensor, "*batch E"]) -> Float64[Tensor, "*batch E"]:
    """Rank within the last dimension from 0 (lowest) to 1 (highest); equal scores get the mean of their ranks."""
    lower = (scores[..., :, None] > scores[..., None, :]).sum(-1)
    equal = (scores[..., :, None] == scores[..., None, :]).sum(-1) - 1
    return (lower + equal / 2).double() / max(scores.shape[-1] - 1, 1)
