"""Standard errors of scores by the delta method, for each replicate of the calibration data.

A score is a function of sums over chunks. To first order a chunk x moves it by grad S . x, so its variance follows from
the gradient, which is taken by automatic differentiation, and the second moments of the chunks' sums: nothing is
resampled within a replicate.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement

import torch
from jaxtyping import Float64
from torch import Tensor

from moeprune.resampling import Block, Score
from moeprune.statistics import MAXIMA, Statistics


@dataclass(frozen=True)
class Linear:
    """A criterion to which the delta method applies, and the sums it depends on: names, and for moments a cell."""

    score: Score
    terms: tuple[tuple[str, tuple], ...]


def linear(score: Score, statistics: Statistics) -> Linear | None:
    """The criterion if the delta method applies to it, judged by its derivatives at the statistics given.

    Each score must be a differentiable function of the sums of its own expert, and of no maximum.
    """
    leaf, leaves = _leaf(statistics.total(), _named(statistics))
    scores = score(leaf)
    if not scores.requires_grad:
        return None
    gradients = dict(zip(leaves, _gradients(scores, leaves), strict=True))
    of_first = _gradients(scores[:, :1], leaves)
    if any(gradient[:, :, 1:].any() for gradient in of_first) or any(
        gradients[name].any() for name in MAXIMA & leaves.keys()
    ):
        return None
    cells: dict[int, list[tuple]] = {5: [(..., a, c) for a in range(3) for c in range(3)], 3: [(...,)]}
    return Linear(
        score,
        tuple(
            (name, cell)
            for name, gradient in gradients.items()
            for cell in cells[gradient.dim()]
            if gradient[cell].any()
        ),
    )


def standard_errors(
    criterion: Linear, block: Block, chunks: Sequence[int], draws: Sequence[int]
) -> Float64[Tensor, "R l E"]:
    """The standard error of every score of every replicate of pooled corpora.

        se^2 = sum_s m_s / (m_s - 1) sum over draws c in s of (y_c - mean_s y)^2,    y_c = u_c grad S . x_c

    x_c are the sums of chunk c, u_c its weight in one draw, m_s = `draws` how many of them corpus s, of `chunks`, has
    in a replicate: C_s - 1 in `replicates.bootstrap`, C_s in the data themselves. For a ratio of sums it is the
    linearised standard error (Cochran 1977, Eq. 2.46). NaN where a corpus has one draw.
    """
    (statistics,), (weight,), (whole,) = block.chunks, block.replicates, block.whole
    weight = weight.to(statistics.count.device)
    shape = (len(weight), *statistics.count.shape[1:])
    leaf, leaves = _leaf(whole, {name for name, _ in criterion.terms})
    gradients = dict(zip(leaves, _gradients(criterion.score(leaf), leaves), strict=True))
    by_chunk = _named(statistics)
    terms = [(gradients[name][cell].reshape(shape), by_chunk[name][cell].double()) for name, cell in criterion.terms]
    variance = torch.zeros(shape, dtype=torch.float64, device=weight.device)
    first = 0
    for size, number in zip(chunks, draws, strict=True):
        part, where = weight[:, first : first + size], slice(first, first + size)
        total, squares = torch.zeros_like(variance), torch.zeros_like(variance)
        for gradient, values in terms:
            total += gradient * _weighted(part, values[where])
        for (one, x), (other, y) in combinations_with_replacement(terms, 2):
            squares += (1 if x is y else 2) * one * other * _weighted(part, x[where] * y[where])
        unit = part.sum(1)[:, None, None] / number
        variance += (unit * squares - total.square() / number) * (number / (number - 1) if number > 1 else torch.nan)
        first += size
    return variance.clamp_min(0).sqrt()


def _gradients(scores: Tensor, leaves: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        scores.sum(), list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )


def _named(statistics: Statistics) -> dict[str, Tensor]:
    return {
        "count": statistics.count,
        "moments": statistics.moments,
        **{f"gate {mode}": value for mode, value in statistics.other_gates.items()},
        **statistics.sums,
    }


def _leaf(statistics: Statistics, names: Collection[str]) -> tuple[Statistics, dict[str, Tensor]]:
    """The same statistics, and by name those of its sums that a derivative is to be taken by."""
    every = {name: value.detach().double() for name, value in _named(statistics).items()}
    leaf = replace(
        statistics,
        count=every["count"],
        moments=every["moments"],
        other_gates={mode: every[f"gate {mode}"] for mode in statistics.other_gates},
        sums={name: every[name] for name in statistics.sums},
    )
    return leaf, {name: every[name].requires_grad_() for name in names}


def _weighted(weight: Float64[Tensor, "R C"], values: Float64[Tensor, "C l E"]) -> Float64[Tensor, "R l E"]:
    return (weight @ values.flatten(1)).reshape(len(weight), *values.shape[1:])
