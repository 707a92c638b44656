"""Characteristic activation: the length of an expert's mean output (`ean_ca` in the code of REAP, arXiv:2510.13999)."""

from jaxtyping import Float64
from torch import Tensor

from moeprune.statistics import Statistics

SUMS = ("vectors",)


def score(statistics: Statistics) -> Float64[Tensor, "L E"]:
    """Length of the mean output of an expert over the tokens routed to it; higher = keep.

        S[l, e] = ||sum_t f_e(x_t)||_2 / N        N tokens routed to e

    At most MAN, which is the mean of the lengths; equal if all outputs point the same way. An expert that saw no token
    scores 0.

    Good for finding experts that push every token the same way. An ablation in REAP's code: no published result
    recommends it.
    """
    count = statistics.count.sum(0)
    return statistics.sum_of("output_sum").double().norm(dim=-1) / count.where(count > 0, 1)
