"""How much the kept experts vary between replicates of the calibration data, under uniform selection."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int16
from torch import Tensor

from moeprune.intervals import Interval
from moeprune.quantiles import normal_quantile
from moeprune.routing import Routing

SHIFTS = 4
"""Each mask is compared with this many others where all pairs would be too many."""


def places(scores: Float64[Tensor, "*batch E"], routing: Routing) -> Int16[Tensor, "*batch E"]:
    """The place of each expert in the order of removal within its router group, 0 first.

    The order of `moeprune.selection.uniform`: ascending (score, expert id). ValueError for a score that is no number.
    """
    if scores.isnan().any():
        raise ValueError("scores contain NaN: they cannot be ordered")
    grouped = scores.reshape(*scores.shape[:-1], routing.groups, -1)
    order = grouped.argsort(dim=-1, stable=True)
    numbers = torch.arange(grouped.shape[-1], device=scores.device, dtype=torch.int16).expand_as(order)
    return torch.empty_like(numbers).scatter_(-1, order, numbers).reshape(scores.shape)


def kept(places: Int16[Tensor, "*batch E"], keep: int, routing: Routing) -> Bool[Tensor, "*batch E"]:
    """Which experts stay when each layer keeps `keep`, from their `places`: one sort serves every number.

    Equal to `moeprune.selection.uniform.select`. Raises BadInput if the router cannot work with `keep` experts.
    """
    routing.check(keep)
    return places >= (routing.experts - keep) // routing.groups


@dataclass(frozen=True)
class Stability:
    """How alike the masks of replicates are.

    `probability` is the share of replicates that keep an expert, `index` the stability of each layer, `influence` what
    each replicate adds to it, up to a constant, and `jaccard` the mean Jaccard index of the sets REMOVED in two
    replicates, not corrected for chance.

        index = 1 - (R / (R - 1) mean_e p_e (1 - p_e)) / (k / E (1 - k / E))        p probability, k experts kept

    The index of Nogueira, Sechidis & Brown (2018, JMLR 18:174, Definition 4): 1 if all masks are equal, 0 if they agree
    as much as random sets of k experts would, and the same for kept and removed sets. With all experts kept nothing
    can differ: index and jaccard are 1.
    """

    probability: Float64[Tensor, "L E"]
    index: Float64[Tensor, "L"]
    influence: Float64[Tensor, "R L"]
    jaccard: Float64[Tensor, "L"]

    def intervals(self, level: float = 0.9) -> tuple[Float64[Tensor, "L"], Float64[Tensor, "L"]]:
        """Ends of confidence intervals of each layer's index: see `overall`."""
        half = _half_width(self.influence, level)
        return self.index - half, (self.index + half).clamp_max(1)

    def overall(self, level: float = 0.9) -> Interval:
        """The mean index over layers: as all keep the same number, the index of all layers' experts as one set.

        Its interval is that of the paper (Corollary 9): it tells how well R replicates determine the index, not what
        other calibration data would give.
        """
        value = float(self.index.mean())
        half = float(_half_width(self.influence.mean(1, keepdim=True), level))
        return Interval(value, value - half, min(value + half, 1.0))

    def edge(self, least: float = 0.05, most: float = 0.95) -> Bool[Tensor, "L E"]:
        """The experts on the edge: those kept in more than `least` and less than `most` of the replicates."""
        return (self.probability > least) & (self.probability < most)


def stability(masks: Bool[Tensor, "R L E"]) -> Stability:
    """The stability of R masks, each with the same number of experts kept in a layer."""
    replicates, _, experts = masks.shape
    chosen = masks.double()
    share = chosen[0].mean(-1)
    possible = share * (1 - share)
    scale = possible.where(possible > 0, 1)
    probability = chosen.mean(0)
    varies = (probability * (1 - probability)).mean(-1) * (replicates / (replicates - 1))
    index = 1 - varies / scale
    # The paper's phi_(i) up to what is the same for all i, as k is: only its spread matters.
    influence = torch.einsum("rle,le->rl", chosen, probability) / experts / scale
    return Stability(probability, index, influence, mean_jaccard(~masks))


def mean_jaccard(sets: Bool[Tensor, "R L E"]) -> Float64[Tensor, "L"]:
    """Mean Jaccard index |A and B| / |A or B| of two of R sets of equal size; two empty sets are equal.

    Set r is compared with r + 1 to r + `SHIFTS`, counted round: an incomplete U-statistic (Blom 1976, Biometrika
    63:573-580), as all R (R - 1) / 2 pairs of many replicates would take longer than everything else. Up to
    2 `SHIFTS` + 1 sets are compared each with each.
    """
    chosen = sets.float()  # whole numbers up to E: exact
    size = chosen[0].sum(-1)
    shifts = range(1, min(SHIFTS, len(sets) // 2) + 1)
    shared = torch.stack([torch.einsum("rle,rle->rl", chosen, chosen.roll(shift, 0)) for shift in shifts])
    index = (shared.double() / (2 * size - shared).clamp_min(1)).mean((0, 1))
    return index.where(size > 0, 1.0)


def joined(parts: Sequence[Stability]) -> Stability:
    """The stability of all layers from those of blocks of layers of the same replicates."""
    return Stability(
        probability=torch.cat([part.probability for part in parts]),
        index=torch.cat([part.index for part in parts]),
        influence=torch.cat([part.influence for part in parts], 1),
        jaccard=torch.cat([part.jaccard for part in parts]),
    )


def _half_width(influence: Float64[Tensor, "R *layers"], level: float) -> Float64[Tensor, "*layers"]:
    """Of the interval index +- z sqrt(v), v = 4 / R^2 sum_i (phi_(i) - mean phi)^2."""
    deviations = influence - influence.mean(0)
    return normal_quantile(level) * 2 / len(influence) * deviations.square().sum(0).sqrt()
