"""One ranking over all layers: how many each keeps follows from it (our own rule, from no paper).

That layers should be given different budgets is argued in GRAPE (arXiv:2604.06542), which goes by redundancy, DiEP
(arXiv:2509.16105), which learns them, and EvoESAP (arXiv:2603.06003), which searches them.
"""

from typing import Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from moeprune.errors import BadInput
from moeprune.routing import Routing

UNEVEN = True


def select(
    scores: Float64[Tensor, "L E"],
    keep: int,
    routing: Routing,
    *,
    normalise: Literal["deviation", "share"] = "deviation",
    least: int = 0,
) -> list[Int64[Tensor, " kept"]]:
    """The experts each layer keeps, ascending; `keep` of them on average, never fewer than the router needs.

        remove the L (E - keep) experts with the lowest z[l, e] of all layers
        z = (S - mean_e S[l]) / std_e S[l]  if normalise is deviation
        z = S / mean_e S[l]  if it is share, for scores that are not negative

    A layer keeps at least `least` experts, and never fewer than the router needs (`Routing.least`): what the others
    must lose more for it is taken from next in the ranking. With a group-limited router a layer loses one expert of
    each of its groups at a time, those with the lowest scores left, ranked by the mean of their z.

    Equal z are ordered by layer, and equal scores of a layer as in `uniform`. Scores that are infinite stand outside
    mean and deviation: experts without weights go first, protected ones last. Raises BadInput if the router cannot
    work with `keep` experts, if `least` is more than that, or for `share` if a score is negative; ValueError for a
    score that is not a number.

    Good for quality at a given size where the checkpoint's own loader may be used: transformers needs
    trust_remote_code for it, and vLLM and llama.cpp cannot read it. That it beats `uniform` is not established:
    report both.
    """
    if scores.isnan().any():
        raise ValueError("scores contain NaN: they cannot be ordered")
    check(keep, routing, [], {"least": least})
    if normalise == "share" and (scores[scores.isfinite()] < 0).any():
        raise BadInput("mask.options.normalise: share is for scores that are not negative: set deviation")
    groups, layers = routing.groups, len(scores)
    # [L, groups, E / groups]; a stable sort keeps equal scores in the order of their ids.
    z, order = _normalised(scores, normalise).reshape(layers, groups, -1).sort(dim=-1, stable=True)
    # [L, E / groups], ascending: a step takes the next expert of every group. One that would take a protected expert
    # comes last, and what a layer must keep comes after all.
    steps = z.mean(1).where((z < torch.inf).all(1), torch.inf)
    floor = -(-max(least, routing.least) // groups)
    ranking = steps.flatten().argsort(stable=True)
    kept_anyway = ranking % steps.shape[1] >= steps.shape[1] - floor
    ranking = ranking[kept_anyway.int().argsort(stable=True)]
    gone = ranking[: layers * (routing.experts - keep) // groups]
    lost = torch.bincount(gone // steps.shape[1], minlength=layers)
    first = torch.arange(groups, device=order.device)[:, None] * order.shape[-1]
    return [(order[layer, :, lost[layer] :] + first).flatten().sort().values for layer in range(layers)]


def check(keep: int, routing: Routing, corpora: object, options: dict[str, object]) -> None:
    """Raise BadInput for what `select` cannot do, before any work."""
    routing.check(keep)
    least = options["least"]
    assert isinstance(least, int)
    if not 0 <= least <= keep:
        raise BadInput(f"mask.options.least: {least} is not between 0 and the {keep} experts kept on average")


def _normalised(scores: Float64[Tensor, "L E"], how: str) -> Float64[Tensor, "L E"]:
    finite = scores.isfinite()
    count = finite.sum(1, keepdim=True).clamp_min(1)
    mean = scores.where(finite, 0).sum(1, keepdim=True) / count
    if how == "share":
        return scores / mean.where(mean > 0, 1)
    deviation = ((scores - mean).where(finite, 0).square().sum(1, keepdim=True) / count).sqrt()
    return (scores - mean) / deviation.where(deviation > 0, 1)
