"""Similarity of an expert's weights to those of the others (EWS of MC-Suite, arXiv:2504.05586)."""

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor


def score(experts: Iterable[Sequence[Tensor]], *, keep: Literal["high", "low"] = "low") -> Float64[Tensor, "E"]:
    """Sum of cosine similarities to the other experts of the layer, negated if `keep` is low; higher = keep.

        S[e] = -sum_{i != e} cos(w_e, w_i)        w all weights of an expert as one vector

    Cosines compare weights place by place: to them two experts that differ in the order of their hidden units are
    unlike. The paper leaves open which end to drop; keeping the unlike ones (`low`) is our choice, hence the sign. An
    expert whose weights are all zero scores minus infinity. `experts` is iterated twice.

    Good for models whose experts grew from copies of one network: there the redundant ones go first. Experts trained
    from scratch are nearly orthogonal, and their order is close to chance.
    """
    # sum_i cos(w_e, w_i) = <u_e, sum_i u_i> of unit vectors u, so no two experts need be in memory together.
    whole = sum(map(_direction, experts), torch.zeros((), dtype=torch.float64))
    own, others = torch.stack([_lengths(_direction(matrices), whole) for matrices in experts]).unbind(-1)
    return {"high": others, "low": -others}[keep].where(own > 0, -torch.inf)


def _direction(matrices: Sequence[Tensor]) -> Float64[Tensor, "N"]:
    weights = torch.cat([matrix.double().flatten() for matrix in matrices])
    return weights / weights.norm().clamp_min(1e-300)


def _lengths(direction: Float64[Tensor, "N"], whole: Float64[Tensor, "N"]) -> Float64[Tensor, "2"]:
    own = direction @ direction
    return torch.stack([own, direction @ whole - own])
