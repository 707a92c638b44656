"""HOPE: the experts removed are those that contribute least together (arXiv:2609.18916)."""

from collections.abc import Sequence
from itertools import combinations, product
from math import comb
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from moeprune.errors import BadInput
from moeprune.routing import Routing
from moeprune.statistics import Statistics, pooled

SUMS = ("pairs",)

SUBSETS = 1_000_000
"""Most sets of experts that are compared one by one."""

STEPS = 2000
"""Most steps of the relaxed problem."""


def select(
    statistics: Sequence[Statistics], keep: int, routing: Routing, *, exact_up_to: int = 16
) -> Int64[Tensor, "L keep"]:
    """The experts each layer keeps, ascending: the others minimise a quadratic form of contributions.

        min p^T F p over p in {0, 1}^E with sum p = experts removed
        F_ij = sum_t a_i a_j / N_ij, t the N_ij tokens routed to both

    a = g n is an expert's contribution, F_jj the mean of a_j^2; pairs that no token chose count nothing.

    The sums are those of all corpora together. Up to `exact_up_to` experts every set is compared; beyond, p may lie
    between 0 and 1, and the experts with the largest p of the minimum found are removed. F need not be positive
    semi-definite, so that minimum may be a local one. Of equal sets, and equal p, lower ids are removed. With a
    group-limited router every group loses the same number.

    Raises BadInput if the router cannot work with `keep` experts or if `exact_up_to` asks for more than `SUBSETS`
    sets, ValueError for sums that are not numbers.

    Good for high ratios on models where experts are often chosen together: it counts what a pair contributes, which
    scores of single experts cannot.
    """
    check(keep, routing, [], {"exact_up_to": exact_up_to})
    whole = pooled(statistics)
    together = whole.sum_of("pair_count")
    joint = whole.sum_of("pair_contribution") / together.where(together > 0, 1)
    if joint.isnan().any():
        raise ValueError("contributions contain NaN: they cannot be ordered")
    n = routing.experts - keep
    if routing.experts <= exact_up_to:
        removed = exact(joint, n, routing.groups)
    else:
        removed = largest(relaxed(joint, n, routing.groups), n, routing.groups)
    kept = torch.ones(joint.shape[:2], dtype=torch.bool).scatter(1, removed.cpu(), False)
    return kept.nonzero()[:, 1].reshape(-1, keep)


def check(keep: int, routing: Routing, corpora: Sequence[str], options: dict[str, Any]) -> None:
    """Raise BadInput for what `select` cannot do, before any work."""
    routing.check(keep)
    sets = comb(routing.experts // routing.groups, keep // routing.groups) ** routing.groups
    if routing.experts <= options["exact_up_to"] and sets > SUBSETS:
        raise BadInput(
            f"mask.options.exact_up_to: {routing.experts - keep} of {routing.experts} experts can be removed in more "
            f"than {SUBSETS} ways: set it below the number of experts"
        )


def exact(joint: Float64[Tensor, "L E E"], n: int, groups: int) -> Int64[Tensor, "L n"]:
    """The n experts, n / groups of each group, with the smallest sum of F over all pairs of them, in each layer."""
    size = joint.shape[-1] // groups
    parts = [combinations(range(g * size, (g + 1) * size), n // groups) for g in range(groups)]
    sets = torch.tensor([sum(chosen, ()) for chosen in product(*parts)], dtype=torch.int64, device=joint.device)
    p = joint.new_zeros(len(sets), joint.shape[-1]).scatter_(1, sets, 1)
    best = [((p @ layer) * p).sum(-1).argmin() for layer in joint]  # the first of equal ones
    return sets[torch.stack(best)]


def relaxed(joint: Float64[Tensor, "L E E"], n: int, groups: int) -> Float64[Tensor, "L E"]:
    """A stationary point of p^T F p over 0 <= p <= 1 with a sum of n / groups in each group, in each layer.

    Projected gradient steps from equal p, each as long as the curvature allows for the value to fall, until none moves
    a p by more than 1e-9. As the sum of p is fixed, only the curvature of the centred F counts: without that the
    common part of contributions, none of which is negative, would make the steps tiny.
    """
    layers, experts, _ = joint.shape
    scaled = joint / joint.abs().amax((1, 2), keepdim=True).clamp_min(1e-300)
    rows, columns = scaled.mean(2, keepdim=True), scaled.mean(1, keepdim=True)
    curvature = torch.linalg.matrix_norm(scaled - rows - columns + rows.mean(1, keepdim=True), ord=2).clamp_min(1e-6)
    p = joint.new_full((layers, experts), n / experts)
    for _ in range(STEPS):
        slope = (scaled @ p[..., None])[..., 0]
        downhill = p - (slope - slope.mean(1, keepdim=True)) / curvature[:, None]
        new = _projected(downhill.reshape(layers, groups, -1), n // groups).flatten(1)
        if (new - p).abs().max() < 1e-9:
            return new
        p = new
    return p


def _projected(values: Float64[Tensor, "L G E"], total: int) -> Float64[Tensor, "L G E"]:
    """The nearest points with entries in [0, 1] that sum to `total`: all entries shifted alike, then cut off."""
    # As the shift grows, the sum falls along straight lines from E to 0; entry v bends it at v - 1 and at v.
    experts = values.shape[-1]
    bends, order = torch.cat([values - 1, values], -1).sort(dim=-1)
    moving = torch.ones_like(bends).where(order < experts, -1).cumsum(-1)[..., :-1]
    sums = experts - (moving * bends.diff(dim=-1)).cumsum(-1)
    passed = (sums > total).sum(-1, keepdim=True).clamp_max(sums.shape[-1] - 1)
    after = sums.gather(-1, passed)
    shift = bends.gather(-1, passed + 1) - (total - after) / moving.gather(-1, passed).clamp_min(1)
    return (values - shift).clamp(0, 1)


def largest(p: Float64[Tensor, "L E"], n: int, groups: int) -> Int64[Tensor, "L n"]:
    """The n experts, n / groups of each group, with the largest p; of equal ones those with the lower ids."""
    grouped = p.reshape(len(p), groups, -1)
    order = grouped.argsort(dim=-1, descending=True, stable=True)[..., : n // groups]
    return (order + grouped.shape[-1] * torch.arange(groups, device=p.device)[:, None]).flatten(1)
