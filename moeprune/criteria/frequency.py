"""Frequency: how many tokens are routed to an expert (arXiv:2606.15716, Table 6)."""

from jaxtyping import Float64
from torch import Tensor

from moeprune.criteria import unified
from moeprune.statistics import Statistics


def score(statistics: Statistics) -> Float64[Tensor, "L E"]:
    """Number of tokens routed to an expert; higher = keep.

        S[l, e] = N        g gate, n = ||f_e(x_t)||_2, N tokens routed to e

    The member (0, 0, 0) of the unified family. An expert that saw no token scores 0.

    Good for a baseline. Of its family, the criterion whose choice depends most on the calibration corpus
    (arXiv:2606.15716).
    """
    return unified.score(statistics, b=0, a=0, c=0)
