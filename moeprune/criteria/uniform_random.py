"""Uniform random scores (no paper)."""

import torch
from jaxtyping import Float64
from torch import Tensor


def score(shape: tuple[int, int], *, seed: int = 0) -> Float64[Tensor, "L E"]:
    """Independent uniform numbers in [0, 1); higher = keep.

        S[l, e] ~ U[0, 1)

    Each layer keeps a uniformly chosen set of experts.

    Good for the baseline every claim needs, with five seeds or more: a single lucky one has beaten published methods.
    """
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
