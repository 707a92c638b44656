"""Within each layer the highest scores stay (the rule of most papers, among them REAP, arXiv:2510.13999)."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from moeprune.routing import Routing


def select(scores: Float64[Tensor, "L E"], keep: int, routing: Routing) -> Int64[Tensor, "L keep"]:
    """The experts each layer keeps, ascending; every layer keeps the same number.

        kept[l] = the experts with the highest S[l, e]

    Experts are removed from the front of one total order: ascending (score, expert id), so that of two equal scores
    the lower id goes. With a group-limited router every group loses the same number, or its rows would be regrouped.
    Infinite scores are fine: experts without weights score minus infinity, protected ones plus infinity.
    Raises BadInput if the router cannot work with `keep` experts, ValueError for a score that is not a number.

    Good for any criterion: one number of experts for all layers is what stock loaders can express.
    """
    if scores.isnan().any():
        raise ValueError("scores contain NaN: they cannot be ordered")
    routing.check(keep)
    groups = routing.groups
    # [L, groups, E / groups]; a stable sort keeps equal scores in the order of their ids.
    grouped = scores.reshape(len(scores), groups, -1)
    order = grouped.argsort(dim=-1, stable=True)[..., grouped.shape[-1] - keep // groups :]
    first = torch.arange(groups, device=order.device)[:, None] * grouped.shape[-1]
    return (order + first).flatten(1).sort(dim=-1).values
