"""What one dense pass over a corpus leaves behind: float64 sums per layer and routed expert.

Every criterion defined by sums is a pure function of a `Statistics`. Sums are additive: those of two disjoint sets
of tokens are added, maxima are merged by the larger, and nothing is ever divided here.

    g  gate: the coefficient the model multiplies the expert's output by
    n  ||f_e(x)||_2, the norm of the expert's output before the gate
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from moeprune.errors import BadInput, known_word

DEPLOYED = "deployed"
"""The gate mode every observation has: the coefficient the model itself uses."""

GATE_MODES = (DEPLOYED, "softmax_full", "softmax_topk")

GROUPS: dict[str, tuple[str, ...]] = {
    "core": ("probability", "easy_ep", "max_activation", "max_abs_activation"),
    "vectors": ("output_sum",),
    "pairs": ("pair_count", "pair_contribution"),
    "ratios": ("gate_ratio",),
    "inputs": ("input_energy.up", "input_energy.down", "input_energy.up.ungated", "input_energy.down.ungated"),
}
"""Words of `observe.sums`, and the tensors each adds to `count` and `moments`."""

RATIO_BINS = 1000
"""Bins of `gate_ratio` between 0 and 1."""

MAXIMA = frozenset({"max_activation", "max_abs_activation"})
PER_CHUNK = frozenset(GROUPS["core"])


@dataclass(frozen=True)
class Statistics:
    """Sums over the tokens of one corpus, per chunk where they are small.

    `moments[..., a, c]` is the sum over the tokens routed to an expert of g^a n^c, so `moments[..., 0, 0] == count`
    and the nine cells hold the whole unified family of arXiv:2606.15716, Eq. 9.

    `sums` holds what `GROUPS` names, if it was asked for:
      probability         [C, L, E]  sum over ALL tokens of the router's probability (softmax or sigmoid)
      easy_ep             [C, L, E]  sum of g n max(1 - cos(x, x + routed(x)), 0), x the residual stream (2504.06792)
      max_activation      [C, L, E]  largest element of any output f; max_abs_activation: largest absolute one
      output_sum          [L, E, D]  sum of f
      pair_count          [L, E, E]  tokens for which both experts were chosen
      pair_contribution   [L, E, E]  sum of (g_i n_i)(g_j n_j) over those tokens
      gate_ratio          [L, 1000]  tokens by the ratio of their second largest deployed gate to their largest, in
                                     bins of equal width from 0 to 1; tokens with fewer than two gates are left out
      input_energy.up     [L, E, D]  sum of g^2 h^2, h the input of the expert; `.ungated` with g = 1
      input_energy.down   [L, E, I]  sum of g^2 u^2, u the input of its down projection; `.ungated` with g = 1
    """

    layer: Int64[Tensor, "L"]
    tokens: Int64[Tensor, "C"] | Float64[Tensor, "C"]
    count: Int64[Tensor, "C L E"] | Float64[Tensor, "C L E"]
    moments: Float64[Tensor, "C L E 3 3"]
    other_gates: dict[str, Float64[Tensor, "C L E 3 3"]] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: "Statistics") -> "Statistics":
        """The statistics of both sets of tokens; chunks are matched by their number."""
        if not torch.equal(self.layer, other.layer) or self.count.shape != other.count.shape:
            raise ValueError(f"statistics of unlike shape: {tuple(self.count.shape)} and {tuple(other.count.shape)}")
        if self.sums.keys() != other.sums.keys() or self.other_gates.keys() != other.other_gates.keys():
            raise ValueError("statistics with unlike sums cannot be added: observe both with the same observe.sums")
        return Statistics(
            layer=self.layer,
            tokens=self.tokens + other.tokens,
            count=self.count + other.count,
            moments=self.moments + other.moments,
            other_gates={mode: moments + other.other_gates[mode] for mode, moments in self.other_gates.items()},
            sums={name: merge(name)(value, other.sums[name]) for name, value in self.sums.items()},
        )

    def total(self) -> "Statistics":
        """The whole corpus as a single chunk."""

        def over_chunks(name: str, value: Tensor) -> Tensor:
            if name not in PER_CHUNK:
                return value
            return value.amax(0, keepdim=True) if name in MAXIMA else value.sum(0, keepdim=True)

        return Statistics(
            layer=self.layer,
            tokens=self.tokens.sum(0, keepdim=True),
            count=self.count.sum(0, keepdim=True),
            moments=self.moments.sum(0, keepdim=True),
            other_gates={mode: moments.sum(0, keepdim=True) for mode, moments in self.other_gates.items()},
            sums={name: over_chunks(name, value) for name, value in self.sums.items()},
        )

    def scaled(self, weight: float) -> "Statistics":
        """The sums of a corpus that counts `weight` times, in float64; maxima stay what they are."""
        return replace(
            self,
            tokens=self.tokens.double() * weight,
            count=self.count.double() * weight,
            moments=self.moments * weight,
            other_gates={mode: moments * weight for mode, moments in self.other_gates.items()},
            sums={name: value if name in MAXIMA else value * weight for name, value in self.sums.items()},
        )

    def in_gate_mode(self, mode: str) -> "Statistics":
        """The same statistics with `moments` those of another gate; BadInput if it was not observed."""
        if mode == DEPLOYED:
            return self
        known_word(mode, GATE_MODES, "gate mode")
        if mode not in self.other_gates:
            raise BadInput(f"gate mode '{mode}' was not observed: add it to observe.gate_modes")
        return replace(self, moments=self.other_gates[mode])

    def sum_of(self, name: str) -> Tensor:
        """One of the sums of `GROUPS`; BadInput naming the key to set if its group was not observed."""
        if name not in self.sums:
            if name == "easy_ep" and "probability" in self.sums:  # core was observed
                raise BadInput(
                    "score.criterion: the experts of this family are not given a norm of the residual stream, so that "
                    "EASY-EP's sum is not defined for it: choose another criterion"
                )
            group = next(group for group, names in GROUPS.items() if name in names)
            raise BadInput(f"the sums '{name}' were not observed: add '{group}' to observe.sums")
        return self.sums[name]


def pooled(corpora: Sequence[Statistics], weights: Sequence[float] | None = None) -> Statistics:
    """The statistics of several corpora together, as a single chunk.

    Weights, one for each corpus, are scaled to a mean of one: equal weights are the same as none.
    """
    totals = [corpus.total() for corpus in corpora]
    if weights is not None:
        mean = sum(weights) / len(weights)
        totals = [total.scaled(weight / mean) for total, weight in zip(totals, weights, strict=True)]
    return reduce(add, totals)


def merge(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """How two values of a sum are joined."""
    return torch.maximum if name in MAXIMA else torch.add
