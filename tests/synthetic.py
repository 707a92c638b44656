"""Statistics with sums drawn from known distributions."""

import torch
from torch import Tensor

from moeprune.statistics import Statistics


def statistics_of(contribution: Tensor, count: Tensor) -> Statistics:
    """Sums of gate times norm, and numbers of tokens, [C, L, E]; the other moments are zero."""
    moments = torch.zeros(*count.shape, 3, 3, dtype=torch.float64)
    moments[..., 0, 0], moments[..., 1, 1] = count, contribution
    chunks, layers, _ = count.shape
    return Statistics(torch.arange(layers), torch.full((chunks,), 100), count, moments)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Independent standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def experts(chunks: int, layers: int, number: int, spread: float, noise: float, seed: int = 0) -> Statistics:
    """Experts whose true scores have a standard deviation of `spread`, each chunk adding `noise` to them.

    Every chunk has ten tokens for each expert. The truth depends on the shape alone, the noise on the seed.
    """
    truth = 10 + spread * normal(layers, number, seed=1234)
    count = torch.full((chunks, layers, number), 10.0, dtype=torch.float64)
    return statistics_of(count * (truth + noise * normal(chunks, layers, number, seed=seed)), count)
