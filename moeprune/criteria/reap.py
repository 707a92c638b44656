"""REAP: router-weighted expert activation pruning (Lasby et al. 2025, arXiv:2510.13999, Eq. 9)."""

from jaxtyping import Float64
from torch import Tensor

from moeprune.criteria import unified
from moeprune.statistics import Statistics


def score(statistics: Statistics) -> Float64[Tensor, "L E"]:
    """Mean contribution of an expert over the tokens routed to it; higher = keep.

        S[l, e] = sum_t g_t n_t / N        g gate, n = ||f_e(x_t)||_2, N tokens routed to e

    The member (1, 1, 1) of the unified family. An expert that saw no token scores 0.

    Good for a first try, with calibration data like the intended use: what most papers compare with. Calibrated on
    plain web text it has lost code generation.
    """
    return unified.score(statistics, b=1, a=1, c=1)
