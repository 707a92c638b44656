"""SEER: soft count, the gate mass an expert receives (SEER-MoE, arXiv:2404.05089; as given in 2606.15716, Table 6)."""

from jaxtyping import Float64
from torch import Tensor

from moeprune.criteria import unified
from moeprune.statistics import Statistics


def score(statistics: Statistics) -> Float64[Tensor, "L E"]:
    """Sum of the gates of the tokens routed to an expert; higher = keep.

        S[l, e] = sum_t g_t        g gate, n = ||f_e(x_t)||_2, N tokens routed to e

    The member (0, 1, 0) of the unified family. An expert that saw no token scores 0.

    Good for a baseline between frequency and gate-weighted norms.
    """
    return unified.score(statistics, b=0, a=1, c=0)
