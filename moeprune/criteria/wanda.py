"""Wanda inside each expert: weight sparsity by weight and input (Sun et al. 2023, arXiv:2306.11695)."""

from jaxtyping import Float, Float64
from torch import Tensor

SUMS = ("inputs",)
ENERGY = "ungated"


def score(weight: Float[Tensor, "out in"], energy: Float64[Tensor, "in"]) -> Float64[Tensor, "out in"]:
    """Size of a weight times the length of its input over the tokens routed to the expert; higher = keep.

        S[i, j] = |W[i, j]| sqrt(energy[j]),    energy[j] = sum_t x_tj^2

    An expert's matrices are linear layers whose calibration inputs are the tokens routed to it. The authors' code
    divides by the number of tokens, which changes no ranking within a row. It is `moe_pruner` with every gate 1.

    Good for the baseline MoE-Pruner is measured against: what the gates add shows as the difference.
    """
    return weight.abs().double() * energy.sqrt()
