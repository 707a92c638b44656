"""EASY-EP: contributions weighted by how far they turn the residual stream (arXiv:2504.06792)."""

from jaxtyping import Float64
from torch import Tensor

from moeprune.statistics import Statistics


def score(statistics: Statistics) -> Float64[Tensor, "L E"]:
    """Sum of an expert's contributions, each times the turn the routed experts give its token; higher = keep.

        S[l, e] = sum_t g_t n_t max(1 - cos(x_t, x_t + r_t), 0)

        g gate, n = ||f_e(x_t)||_2, x residual stream before the block, r output of all routed experts together

    The gate is the deployed one whatever `score.gate_mode` says: the turn is what the model itself does. Its paper
    mixes domains by `score.combine: normalised`. An expert that saw no token scores 0.

    Good for a narrow domain with matching data: a few long demonstrations (the paper takes 25) are enough to find the
    experts it uses.
    """
    return statistics.sum_of("easy_ep").sum(0)
