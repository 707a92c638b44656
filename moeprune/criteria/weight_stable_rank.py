"""Stable rank of an expert's weights (WSR of MC-Suite, arXiv:2504.05586)."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor


def score(experts: Iterable[Sequence[Tensor]], *, keep: Literal["high", "low"] = "high") -> Float64[Tensor, "E"]:
    """Mean stable rank of an expert's matrices, negated if `keep` is low; higher = keep.

        S[e] = mean over matrices of sum_i sigma_i^2 / sigma_1^2        sigma singular values, descending

    Between 1 and the rank of a matrix; its scale does not count. The matrices are those of the file: where gate and up
    projection are stored as one, they are one. A matrix of zeros counts 0. The paper leaves open which end to drop;
    keeping the large ones is our choice. An expert whose weights are all zero scores minus infinity.

    Good for a look at how many directions experts use without any data. The dearest of the weight-only criteria: an
    eigenvalue problem for each matrix.
    """
    ranks = torch.stack([torch.stack([_stable_rank(matrix) for matrix in matrices]).mean() for matrices in experts])
    return {"high": ranks, "low": -ranks}[keep].where(ranks > 0, -torch.inf)


def _stable_rank(matrix: Tensor) -> Float64[Tensor, ""]:
    # The products of the shorter side have the squares of the singular values as eigenvalues: in float64 exact enough
    # for the largest, and several times as fast as a decomposition.
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    products = wide @ wide.T
    return products.trace() / torch.linalg.eigvalsh(products)[-1] if products.any() else products.new_zeros(())
