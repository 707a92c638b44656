"""MoNE: how much an expert's outputs vary, times the gate it gets (arXiv:2507.00390; as in 2606.15716, Table 6)."""

from typing import Literal

from jaxtyping import Float64
from torch import Tensor

from moeprune.statistics import Statistics

SUMS = ("vectors",)


def score(statistics: Statistics, *, frequency: Literal["mean", "sum"] = "mean") -> Float64[Tensor, "L E"]:
    """Length of the standard deviation of an expert's outputs times its gate; higher = keep.

        S[l, e] = sqrt((sum_t n_t^2 - ||sum_t f_t||^2 / N) / (N - 1)) * sum_t g_t / N

        f = f_e(x_t), n = ||f||_2, g gate, N tokens routed to e

    The root is the length of the element-wise unbiased standard deviation of f. The paper's frequency is the mean gate
    (`frequency: mean`); its code's is the sum over tokens up to a factor per layer (`sum`). An expert that saw fewer
    than two tokens scores 0. Only the score is taken over: experts removed are not replaced by their mean output.

    Good for experts that could be replaced by a constant: one that always answers alike goes first. Task-agnostic
    pruning; behind MAN and MSAN on average in arXiv:2606.15716.
    """
    count, moments = statistics.count.sum(0), statistics.moments.sum(0)
    gate = {"mean": moments[..., 1, 0] / count.clamp_min(1), "sum": moments[..., 1, 0]}[frequency]
    common = statistics.sum_of("output_sum").square().sum(-1) / count.clamp_min(1)
    variance = (moments[..., 0, 2] - common).clamp_min(0) / (count - 1).clamp_min(1)
    return (variance.sqrt() * gate).where(count >= 2, 0.0)
