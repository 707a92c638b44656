"""Super experts: few experts whose outputs hold extreme values, and without which a model breaks down.

They were found by Su et al. (arXiv:2507.23279). The rule that names them here is that of REAP's code
(arXiv:2510.13999), which takes it from there.
"""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from moeprune.statistics import Statistics

WHERE = ("early", "all")
"""Layers in which super experts are protected: the first 75%, or all."""


def protect(scores: Float64[Tensor, "L E"], statistics: Statistics, where: str) -> Float64[Tensor, "L E"]:
    """The scores with those of super experts set to plus infinity, so that any rule keeps them.

    `statistics` are those of all corpora together, `where` is one of `WHERE`.
    """
    return scores.masked_fill(super_experts(statistics, where).to(scores.device), torch.inf)


def super_experts(statistics: Statistics, where: str) -> Bool[Tensor, "L E"]:
    """Which experts are super experts.

        max |f| > max(P, M / 10)

        max |f| largest absolute element of any output of an expert; P the 99.5th percentile (interpolated linearly)
        and M the maximum of it over all experts of all layers

    REAP's code takes the largest element with its sign; outliers are as often negative, so the absolute one is taken
    here. "early" leaves out layers from int(0.75 L) on, where large outputs are ordinary. About one expert in 200 at
    most is above the percentile; of fewer than 200 in all, only the one with the largest element.
    """
    largest = statistics.sum_of("max_abs_activation").amax(0).clamp_min(0)  # -inf for an expert without tokens
    threshold = torch.maximum(largest.flatten().quantile(0.995), largest.max() / 10)
    found = largest > threshold
    layers = {"early": int(0.75 * len(found)), "all": len(found)}[where]
    return found & (torch.arange(len(found), device=found.device) < layers)[:, None]
