"""MSAN: mean squared activation norm over the tokens routed to an expert (arXiv:2606.15716, Table 6)."""

from jaxtyping import Float64
from torch import Tensor

from moeprune.criteria import unified
from moeprune.statistics import Statistics


def score(statistics: Statistics) -> Float64[Tensor, "L E"]:
    """Mean squared output norm of an expert over the tokens routed to it; higher = keep.

        S[l, e] = sum_t n_t^2 / N        g gate, n = ||f_e(x_t)||_2, N tokens routed to e

    The member (1, 0, 2) of the unified family. An expert that saw no token scores 0.

    Good for task-agnostic pruning, like MAN, with more weight on an expert's largest outputs.
    """
    return unified.score(statistics, b=1, a=0, c=2)
