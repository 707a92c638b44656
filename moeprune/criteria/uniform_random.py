"""Uniform random scores: the baseline every comparison needs, with several seeds."""

import torch
from jaxtyping import Float64
from torch import Tensor


def score(shape: tuple[int, int], *, seed: int = 0) -> Float64[Tensor, "L E"]:
    """Independent uniform numbers in [0, 1): each layer keeps a uniformly chosen set of experts."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
