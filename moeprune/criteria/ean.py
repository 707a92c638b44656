"""EAN: expert activation norm, summed (REAP, arXiv:2510.13999, App. D)."""

from jaxtyping import Float64
from torch import Tensor

from moeprune.criteria import unified
from moeprune.statistics import Statistics


def score(statistics: Statistics) -> Float64[Tensor, "L E"]:
    """Sum of the output norms of an expert over the tokens routed to it; higher = keep.

        S[l, e] = sum_t n_t        g gate, n = ||f_e(x_t)||_2, N tokens routed to e

    Not MC-Suite's literal Eq. 13 (arXiv:2504.05586), which sums per-dimension norms and is another number.

    The member (0, 0, 1) of the unified family. An expert that saw no token scores 0.

    Good for keeping multiple-choice accuracy, where it is close to the best; on generation it can be far behind its
    mean over tokens, MAN (arXiv:2606.15716).
    """
    return unified.score(statistics, b=0, a=0, c=1)
