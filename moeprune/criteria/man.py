"""MAN: mean activation norm over the tokens routed to an expert (arXiv:2606.15716, Table 6)."""

from jaxtyping import Float64
from torch import Tensor

from moeprune.criteria import unified
from moeprune.statistics import Statistics


def score(statistics: Statistics) -> Float64[Tensor, "L E"]:
    """Mean output norm of an expert over the tokens routed to it; higher = keep.

        S[l, e] = sum_t n_t / N        g gate, n = ||f_e(x_t)||_2, N tokens routed to e

    The member (1, 0, 1) of the unified family. An expert that saw no token scores 0.

    Good for task-agnostic pruning: with MSAN, its choice depends least on the calibration corpus (arXiv:2606.15716).
    """
    return unified.score(statistics, b=1, a=0, c=1)
