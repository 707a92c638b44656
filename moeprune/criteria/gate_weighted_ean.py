"""Gate-weighted EAN: an expert's summed contribution (arXiv:2606.15716, Table 6)."""

from jaxtyping import Float64
from torch import Tensor

from moeprune.criteria import unified
from moeprune.statistics import Statistics


def score(statistics: Statistics) -> Float64[Tensor, "L E"]:
    """Sum of gate times output norm over the tokens routed to an expert; higher = keep.

        S[l, e] = sum_t g_t n_t        g gate, n = ||f_e(x_t)||_2, N tokens routed to e

    The member (0, 1, 1) of the unified family. An expert that saw no token scores 0.

    Good for task-specific pruning with calibration data of the task: frequency and gate both count (the principle of
    arXiv:2606.15716).
    """
    return unified.score(statistics, b=0, a=1, c=1)
