"""Squared-gate activation energy (arXiv:2606.15716, Table 6)."""

from jaxtyping import Float64
from torch import Tensor

from moeprune.criteria import unified
from moeprune.statistics import Statistics


def score(statistics: Statistics) -> Float64[Tensor, "L E"]:
    """Sum of squared gate times squared output norm over the tokens routed to an expert; higher = keep.

        S[l, e] = sum_t g_t^2 n_t^2        g gate, n = ||f_e(x_t)||_2, N tokens routed to e

    The member (0, 2, 2) of the unified family. An expert that saw no token scores 0.

    Good for task-specific pruning with calibration data of the task, like gate-weighted EAN, with more weight on large
    contributions.
    """
    return unified.score(statistics, b=0, a=2, c=2)
