"""MoE-Pruner: weight sparsity inside experts by weight and gated input (arXiv:2410.12013)."""

from jaxtyping import Float, Float64
from torch import Tensor

SUMS = ("inputs",)
ENERGY = "gated"


def score(weight: Float[Tensor, "out in"], energy: Float64[Tensor, "in"]) -> Float64[Tensor, "out in"]:
    """Size of a weight times the length of its gated input over the tokens routed to the expert; higher = keep.

        S[i, j] = |W[i, j]| sqrt(energy[j]),    energy[j] = sum_t g_t^2 x_tj^2        (Eq. 9, 10)

    g is the gate the model multiplies the expert's output by; the paper's, a softmax over the chosen logits, is that of
    a router that renormalises. x is the input of the matrix: the hidden state for gate and up projections, act(gate) *
    up for the down projection. Weights compete within their output row, so a factor common to all gates changes
    nothing; with g = 1 it is `wanda`. For an expert that saw no token give an energy of ones: |W| then ranks alone.

    Good for halving the weights of every expert (50 %, 2:4) when routing must stay as it is: on Mixtral-8x7B the
    paper reports a lower perplexity than Wanda and SparseGPT.
    """
    return weight.abs().double() * energy.sqrt()
