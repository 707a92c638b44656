"""Dynamic expert skipping (NAEE, Lu et al. 2024, arXiv:2402.14800): weak second experts are not computed.

Of a token's two gates g_1 >= g_2, the second expert is skipped where g_2 < beta g_1. beta is a number for each layer,
the median of g_2 / g_1 over calibration tokens: about half of them then take one expert.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from moeprune.configs import read_routing
from moeprune.errors import BadInput
from moeprune.interface import Experts, ExpertsFunction, experts_of, in_place
from moeprune.statistics import RATIO_BINS, Statistics


def thresholds(statistics: Statistics) -> Float64[Tensor, "L"]:
    """The median of g_2 / g_1 in each layer (of two in the middle, the lower), between 0 and 1.

    Read from the histogram `gate_ratio` as if the tokens of a bin were spread over it evenly: it is in the bin of the
    true one, hence off by 0.001 at most. Raises BadInput if the group "ratios" was not observed, or a layer saw no
    token with two experts.
    """
    histogram = statistics.sum_of("gate_ratio")
    below = histogram.cumsum(1)
    if empty := statistics.layer[below[:, -1] == 0].tolist():
        raise BadInput(f"observe: in layers {empty} no token has two experts: there is none to skip")
    half = below[:, -1:] / 2
    middle = (below < half).sum(1, keepdim=True)
    beyond = (below.gather(1, middle) - half) / histogram.gather(1, middle)
    return ((middle + 1 - beyond) / RATIO_BINS).flatten()


@dataclass
class Skipped:
    """How many tokens each layer saw, and for how many of them it skipped an expert, so far.

    Padding counts like any other position: the experts see it too.
    """

    tokens: dict[int, int] = field(default_factory=dict)
    skipped: dict[int, int | Tensor] = field(default_factory=dict)  # kept where the model runs until asked for

    @property
    def experts_per_token(self) -> float:
        """Experts computed per token, from 1 to 2, over all layers; 2 before the first token."""
        return 2 - sum(map(int, self.skipped.values())) / max(sum(self.tokens.values()), 1)


@contextmanager
def skipping(model: nn.Module, beta: Mapping[int, float]) -> Iterator[Skipped]:
    """Within this block the model skips second experts with g_2 < beta[layer] g_1; what was skipped is counted.

    A skipped expert is not computed. The first takes over its gate, so that the sum of a token's gates stays what it
    was: with a router that renormalises this is the paper's renormalisation, for others it is our choice. With all
    thresholds at 0 the model is as before.

    Raises BadInput if the model does not choose two experts a token, for which alone the rule is defined, or `beta` is
    not of its layers.
    """
    layers, top_k = experts_of(model), read_routing(model.config).top_k
    if top_k != 2:
        raise BadInput(
            f"expert skipping is defined for two experts a token, but this model chooses {top_k}: leave it out"
        )
    if beta.keys() != layers.keys():
        raise BadInput(
            f"expert skipping: thresholds are given for layers {sorted(beta)}, but experts are in {sorted(layers)}: "
            "take them from statistics of this model"
        )
    counts = Skipped()
    with in_place({experts: _skip(experts, layer, beta[layer], counts) for layer, experts in layers.items()}):
        yield counts


def _skip(experts: Experts, layer: int, beta: float, counts: Skipped) -> ExpertsFunction:
    def function(hidden: Float[Tensor, "T D"], expert: Int[Tensor, "T 2"], gate: Float[Tensor, "T 2"]) -> Tensor:
        two = ((gate != 0) & (expert < experts.count)).all(1, keepdim=True)
        skipped = two & (gate.amin(1, keepdim=True) < beta * gate.amax(1, keepdim=True))
        first = torch.arange(2, device=gate.device) == gate.argmax(1, keepdim=True)
        gate = torch.where(skipped, gate.sum(1, keepdim=True) * first, gate)
        counts.tokens[layer] = counts.tokens.get(layer, 0) + len(gate)
        counts.skipped[layer] = counts.skipped.get(layer, 0) + skipped.sum()
        # Only the rows left are handed on: not every implementation skips numbers beyond the last expert.
        row = ((gate != 0) & (expert < experts.numbers)).reshape(-1).nonzero().flatten()
        weight = gate.reshape(-1)[row]
        output = experts.outputs(hidden[row // 2], expert.reshape(-1)[row], weight) * weight[:, None]
        total = output.new_zeros(gate.numel(), output.shape[1])
        total[row] = output
        return total.reshape(len(gate), 2, -1).sum(1).to(hidden.dtype)

    return function
