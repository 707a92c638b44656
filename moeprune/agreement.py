"""How far two masks, or two rankings of the same experts, agree. All work on the last dimension, E experts.

The field's papers compare the sets that are REMOVED, which overlap less than those kept where few experts go: give
`~kept` for that. What is corrected for chance is the same for both.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float32, Float64, Int64, Shaped
from torch import Tensor

from moeprune.combining import ranks


def jaccard(a: Bool[Tensor, "*batch E"], b: Bool[Tensor, "*batch E"]) -> Float64[Tensor, "*batch"]:
    """|A and B| / |A or B| of two sets; two empty sets are equal, 1."""
    union = (a | b).sum(-1)
    return ((a & b).sum(-1).double() / union.clamp_min(1)).where(union > 0, 1.0)


def overlap(a: Bool[Tensor, "*batch E"], b: Bool[Tensor, "*batch E"]) -> Float64[Tensor, "*batch"]:
    """|A and B| / min(|A|, |B|), the share of the smaller set that is also in the other; 1 if that is empty."""
    smaller = torch.minimum(a.sum(-1), b.sum(-1))
    return ((a & b).sum(-1).double() / smaller.clamp_min(1)).where(smaller > 0, 1.0)


def chance_corrected(a: Bool[Tensor, "*batch E"], b: Bool[Tensor, "*batch E"]) -> Float64[Tensor, "*batch"]:
    """Agreement of two sets above what random sets of their sizes have: 1 if equal, 0 as by chance.

        1 - |A xor B| / (2 E q (1 - q))        q = (|A| + |B|) / (2 E)

    The stability index of `moeprune.stability` for two sets; with k = |A| = |B| Kuncheva's (|A and B| E - k^2) /
    (k (E - k)) (2007, IASTED AIA:421-427). Two empty or two full sets are equal, 1.
    """
    experts = a.shape[-1]
    share = (a.sum(-1) + b.sum(-1)).double() / (2 * experts)
    possible = 2 * experts * share * (1 - share)
    return (1 - (a ^ b).sum(-1) / possible.where(possible > 0, 1)).where(possible > 0, 1.0)


def kendall_tau(a: Float64[Tensor, "*batch E"], b: Float64[Tensor, "*batch E"]) -> Float64[Tensor, "*batch"]:
    """Kendall's tau-b of two lists of scores (Kendall 1945, Biometrika 33:239-251).

        (concordant - discordant) / sqrt(pairs untied in a * pairs untied in b)

    NaN if all scores of a list are equal. Every two experts are compared: E^2 numbers for each list at a time.
    """
    first, second = _signs(a), _signs(b)
    return _dot(first, second) / (_dot(first, first) * _dot(second, second)).sqrt()


def _signs(scores: Tensor) -> Float32[Tensor, "*batch pairs"]:
    """Of every two scores, 1 if the first is the larger, -1 if the second; infinite ones may be equal."""
    order = scores.argsort(-1)
    steps = scores.gather(-1, order).diff(dim=-1, prepend=scores.amin(-1, keepdim=True))
    level = torch.empty_like(scores, dtype=torch.float32)
    level.scatter_(-1, order, (steps > 0).cumsum(-1).float())
    return (level[..., :, None] - level[..., None, :]).clamp_(-1, 1).flatten(-2)


def _dot(a: Tensor, b: Tensor) -> Float64[Tensor, "*batch"]:
    """Sums of signs: exact in float32 up to 4,096 experts."""
    return torch.linalg.vecdot(a, b).double()


def spearman_rho(a: Float64[Tensor, "*batch E"], b: Float64[Tensor, "*batch E"]) -> Float64[Tensor, "*batch"]:
    """Spearman's rank correlation: Pearson's of the ranks, equal scores sharing the mean of theirs.

    NaN if all scores of a list are equal.
    """
    first, second = (ranks(scores) - 0.5 for scores in (a, b))  # the mean rank is 1/2 whatever is tied
    return (first * second).sum(-1) / (first.square().sum(-1) * second.square().sum(-1)).sqrt()


def rank_biased_overlap(
    a: Int64[Tensor, "*batch E"], b: Int64[Tensor, "*batch E"], p: float
) -> Float64[Tensor, "*batch"]:
    """Extrapolated rank-biased overlap of two rankings of the same experts (Webber, Moffat & Zobel 2010, Eq. 30).

        X_E / E p^E + (1 - p) / p sum_{d=1..E} X_d / d p^d        X_d experts among the first d of both

    `a` and `b` give each expert's place, 0 first; `moeprune.stability.places` begins with what is removed first. The
    weight of a depth falls by p from one to the next: 1 / (1 - p) places are looked at on average (ACM TOIS 28:20).
    """
    experts = a.shape[-1]
    later = torch.maximum(a, b)
    depth = torch.arange(1, experts + 1, device=a.device, dtype=torch.float64)
    entered = torch.zeros(later.shape, dtype=torch.float64, device=a.device)
    shared = entered.scatter_add_(-1, later, torch.ones_like(entered)).cumsum(-1) / depth
    return shared[..., -1] * p**experts + (1 - p) / p * (shared * p**depth).sum(-1)


def pairwise(
    measure: Callable[[Tensor, Tensor], Tensor], items: Shaped[Tensor, "N *batch E"]
) -> Float64[Tensor, "N N *batch"]:
    """A symmetric measure of every two of N masks or lists of scores."""
    return torch.stack([torch.stack([measure(one, other) for other in items]) for one in items])
