"""Magnitude: mean absolute weight (no paper: some name it as a baseline, none gives a formula)."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from moeprune.weights import power_sums


def score(experts: Iterable[Sequence[Tensor]]) -> Float64[Tensor, "E"]:
    """Mean absolute weight over all matrices of an expert together; higher = keep.

        S[e] = sum |w| / N

    An expert whose weights are all zero scores minus infinity.

    Good for a baseline without data.
    """
    return torch.stack([_score_of(matrices) for matrices in experts])


def _score_of(matrices: Sequence[Tensor]) -> Float64[Tensor, ""]:
    absolute = sum(power_sums(matrix)[0] for matrix in matrices)
    size = sum(matrix.numel() for matrix in matrices)
    return absolute / size if absolute else torch.tensor(-torch.inf, dtype=torch.float64)
