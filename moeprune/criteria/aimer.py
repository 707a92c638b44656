"""AIMER: calibration-free expert pruning by weight concentration (arXiv:2603.18492)."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from moeprune.weights import power_sums


def score(experts: Iterable[Sequence[Tensor]]) -> Float64[Tensor, "E"]:
    """Negated ratio of mean absolute to root mean square weight of an expert; higher = keep.

        S[e] = -(sum |w| / N) / sqrt(sum w^2 / N)        over the N elements of all matrices of the expert together

    The paper prunes the LARGEST ratio, hence the sign. The ratio lies in [1/sqrt(N), 1]: 0.798 for Gaussian weights,
    0.866 for uniform ones, 1 where all weights have the same size. It does not change with the scale or the order of
    the weights. An expert whose weights are all zero scores minus infinity: it contributes nothing.

    Good for pruning without any data, and where no calibration corpus is like the intended use: there it has kept
    abilities that criteria calibrated on web text lost.
    """
    return torch.stack([_score_of(matrices) for matrices in experts])


def _score_of(matrices: Sequence[Tensor]) -> Float64[Tensor, ""]:
    absolute, square = torch.stack([torch.stack(power_sums(matrix)) for matrix in matrices]).sum(0)
    size = sum(matrix.numel() for matrix in matrices)
    if not square:
        return torch.tensor(-torch.inf, dtype=torch.float64)
    return -(absolute / size) / (square / size).sqrt()
