"""Generic TB-Coverage: every corpus protects its best experts in turn (arXiv:2607.01710, Algorithm 1)."""

import logging
from collections.abc import Sequence
from itertools import cycle
from typing import Any, Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from moeprune.errors import BadInput
from moeprune.routing import Routing


def select(
    per_corpus: Float64[Tensor, "S L E"],
    candidate: Int64[Tensor, "L keep"] | None,
    keep: int,
    routing: Routing,
    *,
    protected: int | None = None,
    fill: Literal["mean-score", "reconstruction"] = "mean-score",
    fill_corpus: str = "",
    fill_tokens: int = 0,
) -> Int64[Tensor, "L keep"]:
    """The experts each layer keeps, ascending: those protected by round-robin, then the best of the candidate.

        P = the best experts of corpus 1, 2, ..., S, 1, 2, ... in turn, each not yet in P, until |P| = min(B, K)
        m = P + candidate, less the lowest by mean score of those not in P, until |m| = K

    K is `keep` and B `protected`: by default a third of the experts, the paper's 20 of 60 (it takes 24 of 64 too, and
    the same at every ratio). Where B exceeds K the paper's algorithm cannot end: min(B, K) is our reading, and is
    logged. The order of the corpora matters. The paper's score is REAP.

    The candidate holds K experts: the best by the mean score over corpora (`fill: mean-score`, `candidate` None), or
    those another rule found (`fill: reconstruction`, on the corpus `fill_corpus` or on all, on `fill_tokens` tokens of
    each or on all). The paper has the latter without saying how it searches. With B = 0 and mean-score this is
    `uniform` on the mean of the corpora's scores: the ablation to report beside it.

    With a group-limited router the algorithm runs in each group, with K / groups and B / groups (rounded up). Equal
    scores are ordered as in `uniform`. Raises BadInput if the router cannot work with `keep` experts or for options
    that mean nothing, ValueError for a score that is not a number.

    Good for keeping one model useful on several unlike corpora: no corpus can take all places. The gain over the mean
    of the scores is not established: report both.
    """
    if per_corpus.isnan().any():
        raise ValueError("scores contain NaN: they cannot be ordered")
    if (candidate is None) != (fill == "mean-score"):
        raise ValueError(f"fill '{fill}' and its candidate do not fit together")
    options = {"protected": protected, "fill": fill, "fill_corpus": fill_corpus, "fill_tokens": fill_tokens}
    check(keep, routing, [], options)
    share, size = keep // routing.groups, routing.experts // routing.groups
    wanted = routing.experts // 3 if protected is None else protected
    budget = min(-(-wanted // routing.groups), share)
    if wanted > keep:
        logging.getLogger("moeprune").warning(
            "tb_coverage: %d experts to protect, but only %d are kept: all are chosen in turn", wanted, keep
        )
    kept = []
    for layer, scores in enumerate(per_corpus.unbind(1)):
        rows, mean = scores.tolist(), scores.mean(0).tolist()
        filled = range(routing.experts) if candidate is None else candidate[layer].tolist()
        for start in range(0, routing.experts, size):
            group = range(start, start + size)
            turns = _in_turn([_descending(row, group) for row in rows], budget)
            kept += sorted(sorted(group, key=lambda e: (e in turns, e in filled, mean[e], e))[-share:])
    return torch.tensor(kept).reshape(-1, keep)


def check(keep: int, routing: Routing, corpora: Sequence[str], options: dict[str, Any]) -> None:
    """Raise BadInput for what `select` cannot do, before any work."""
    routing.check(keep)
    if options["protected"] is not None and options["protected"] < 0:
        raise BadInput(f"mask.options.protected: {options['protected']} experts to protect: give 0 or more")
    if (options["fill_corpus"] or options["fill_tokens"]) and options["fill"] == "mean-score":
        raise BadInput("mask.options: only the fill reconstruction uses fill_corpus and fill_tokens: set fill")


def _descending(scores: Sequence[float], group: range) -> list[int]:
    return sorted(group, key=lambda expert: (scores[expert], expert), reverse=True)


def _in_turn(rankings: list[list[int]], budget: int) -> list[int]:
    taken: list[int] = []
    for ranking in cycle(rankings):
        if len(taken) == budget:
            break
        taken.append(next(expert for expert in ranking if expert not in taken))
    return taken
