"""Sums over all elements of a matrix of weights, in float64."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

BLOCK = 2**17
"""Numbers converted at a time."""


def power_sums(matrix: Float[Tensor, "rows columns"]) -> tuple[Float64[Tensor, ""], Float64[Tensor, ""]]:
    """(the sum of |w|, the sum of w^2).

    A few rows are converted at a time, so that their float64 copy stays in the processor's cache: several times as fast
    as converting the matrix whole, and as exact.
    """
    absolute = square = torch.zeros((), dtype=torch.float64, device=matrix.device)
    for rows in matrix.split(max(1, BLOCK // matrix.shape[1])):
        values = rows.double().flatten()
        absolute = absolute + torch.linalg.vector_norm(values, ord=1)
        square = square + values @ values
    return absolute, square
