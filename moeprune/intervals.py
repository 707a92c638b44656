"""Confidence intervals of scores from replicates of the calibration data (`moeprune.replicates`).

Replicates of the bootstrap there have the right variance; that a variance is itself estimated from few chunks is met
by a quantile of Student's t in place of the normal one (Hesterberg 2015, The American Statistician 69:371-386).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from moeprune.quantiles import t_quantile


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval."""

    value: float
    lower: float
    upper: float


Ends = tuple[Tensor, Tensor]
"""Lower and upper ends of intervals."""


def bca(
    replicates: Float64[Tensor, "R *scores"],
    scores: Float64[Tensor, "*scores"],
    left_out: Float64[Tensor, "J *scores"],
    chunks: Sequence[int],
    level: float = 0.9,
) -> Ends:
    """Bias-corrected and accelerated intervals (Efron 1987, JASA 82:171-185).

        quantiles of the replicates at Phi(z0 + (z0 +- t) / (1 - a (z0 +- t)))

    z0 is the normal quantile of the share of replicates below the score, equal ones counting half; t Student's
    quantile; a the acceleration from `left_out`, the scores without each chunk in turn (`replicates.leave_one_out`),
    `chunks` of each corpus:

        a = 1/6 sum_s C_s^-3 sum_j l_sj^3 / (sum_s C_s^-2 sum_j l_sj^2)^(3/2),    l_sj = (C_s - 1) (mean_s - S_(sj))

    (Davison & Hinkley 1997, section 5.3, for corpora s as strata). Ends lie within the range of the replicates.
    """
    resamples = len(replicates)
    ordered = replicates.movedim(0, -1).contiguous().sort(-1).values
    point = scores[..., None].contiguous()
    # Smaller ones count whole, equal ones half.
    below = (torch.searchsorted(ordered, point) + torch.searchsorted(ordered, point, right=True))[..., 0] / 2
    z0 = torch.special.ndtri((below.double() / resamples).clamp(0.5 / resamples, 1 - 0.5 / resamples))
    acceleration = _acceleration(left_out, chunks)
    t = t_quantile(level, sum(chunks) - len(chunks))

    def end(quantile: float) -> Tensor:
        shifted = z0 + quantile
        return _quantile(ordered, torch.special.ndtr(z0 + shifted / (1 - acceleration * shifted)))

    return end(-t), end(t)


def studentised(
    replicates: Float64[Tensor, "R *scores"],
    errors: Float64[Tensor, "R *scores"],
    scores: Float64[Tensor, "*scores"],
    error: Float64[Tensor, "*scores"],
    level: float = 0.9,
) -> Ends:
    """Studentised intervals, "bootstrap t" (Davison & Hinkley 1997, section 5.2.1).

        S - error * quantiles of (S* - S) / error*

    `error` and `errors` are standard errors of the scores and of those of each replicate (`moeprune.linearised`). Wider
    than BCa where sums are skewed, and nearer to what they promise. Not finite where many replicates have no
    spread, as for an expert that few chunks use.
    """
    spread = (replicates - scores) / errors
    # Without any difference there is nothing to scale; 0 / 0 is none.
    spread = spread.where(replicates != scores, 0.0).movedim(0, -1).contiguous().sort(-1).values
    tail = torch.full_like(scores, (1 - level) / 2)
    return scores - error * _quantile(spread, 1 - tail), scores - error * _quantile(spread, tail)


def _acceleration(left_out: Float64[Tensor, "J *scores"], chunks: Sequence[int]) -> Float64[Tensor, "*scores"]:
    cubes, squares = torch.zeros_like(left_out[0]), torch.zeros_like(left_out[0])
    for size, part in zip(chunks, left_out.split(list(chunks)), strict=True):
        influence = (size - 1) * (part.mean(0) - part) / size
        squares += influence.square().sum(0)
        cubes += influence.pow(3).sum(0)
    return cubes / (6 * squares.pow(1.5)).where(squares > 0, 1)


def _quantile(ordered: Float64[Tensor, "*scores R"], at: Float64[Tensor, "*scores"]) -> Float64[Tensor, "*scores"]:
    """The value with a share `at` of a sorted sample below it, the i-th of R standing for i / (R + 1)."""
    last = ordered.shape[-1] - 1
    position = (at * (last + 2) - 1).clamp(0, last)
    first = position.floor().long()
    pair = [ordered.gather(-1, index[..., None])[..., 0] for index in (first, (first + 1).clamp_max(last))]
    return torch.where(pair[0] == pair[1], pair[0], pair[0].lerp(pair[1], position - first))
