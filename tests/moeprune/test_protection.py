"""Super experts: which they are, and that they stay."""

from dataclasses import replace

import pytest
import torch

from moeprune.errors import BadInput
from moeprune.protection import protect, super_experts
from moeprune.routing import Routing
from moeprune.selection import uniform
from moeprune.statistics import Statistics


def observation(largest: torch.Tensor) -> Statistics:
    """Two chunks in which outputs reach at most `largest` [L, E]; in one of them half as much."""
    layers, experts = largest.shape
    moments = torch.zeros(2, layers, experts, 3, 3, dtype=torch.float64)
    by_chunk = torch.stack([largest / 2, largest])
    return Statistics(
        torch.arange(layers),
        torch.tensor([5, 5]),
        moments[..., 0, 0].long(),
        moments,
        sums={"max_abs_activation": by_chunk},
    )


def slow(rows: list[list[float]], where: str) -> set[tuple[int, int]]:
    """Pairs (layer, expert) above both thresholds; the percentile by the definition of linear interpolation."""
    values = sorted(value for row in rows for value in row)
    position = 0.995 * (len(values) - 1)
    low = int(position)
    percentile = values[low] + (position - low) * (values[min(low + 1, len(values) - 1)] - values[low])
    threshold = max(percentile, values[-1] / 10)
    layers = range(int(len(rows) * 0.75)) if where == "early" else range(len(rows))
    return {(layer, e) for layer in layers for e, value in enumerate(rows[layer]) if value > threshold}


@pytest.mark.parametrize("where", ["early", "all"])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("outliers", [0, 3, 40])
def test_super_experts_equal_the_published_rule(outliers, seed, where):
    generator = torch.Generator().manual_seed(seed)
    largest = torch.rand(12, 64, generator=generator, dtype=torch.float64)
    places = torch.randperm(largest.numel(), generator=generator)[:outliers]
    largest.view(-1)[places] *= 100
    found = super_experts(observation(largest), where).nonzero().tolist()
    assert {tuple(place) for place in found} == slow(largest.tolist(), where)
    assert found or where == "early"


def test_super_experts_a_tenth_of_the_maximum_is_too_little_in_a_large_model():
    largest = torch.ones(8, 100, dtype=torch.float64)
    largest[0, 3], largest[1, 5], largest[7, 7] = 1000, 60, 900
    # five of 800 are above the 99.5th percentile, or on it, so that is 1 and the tenth, 100, decides
    assert super_experts(observation(largest), "all").nonzero().tolist() == [[0, 3], [7, 7]]
    assert super_experts(observation(largest), "early").nonzero().tolist() == [[0, 3]]


def test_super_experts_are_found_beside_experts_without_tokens():
    largest = torch.full((1, 102), -torch.inf, dtype=torch.float64)
    largest[0, 40] = 5  # the percentile lies between this and an expert without tokens
    assert super_experts(observation(largest), "all").nonzero().tolist() == [[0, 40]]


def test_protect_keeps_a_super_expert_of_the_lowest_score_and_no_other():
    scores = torch.arange(8, dtype=torch.float64).reshape(1, 8).repeat(4, 1)
    scores[1, 2] = -torch.inf
    largest = torch.ones(4, 8, dtype=torch.float64)
    largest[1, 0] = 50
    largest[2, 5] = -torch.inf  # saw no token
    found = protect(scores, observation(largest), "early")
    changed = found != scores
    assert changed.nonzero().tolist() == [[1, 0]] and found[1, 0] == torch.inf
    assert uniform.select(found, 2, Routing(8, 2)).tolist() == [[6, 7], [0, 7], [6, 7], [6, 7]]
    # infinities at both ends are one order: the protected first of all to stay, the dead first of all to go
    assert uniform.select(found, 7, Routing(8, 2))[1].tolist() == [0, 1, 3, 4, 5, 6, 7]


def test_protect_without_maxima_or_in_an_unknown_place_is_an_error():
    given = observation(torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(BadInput, match="add 'core' to observe"):
        protect(torch.zeros(2, 4, dtype=torch.float64), replace(given, sums={}), "all")
    with pytest.raises(KeyError):
        protect(torch.zeros(2, 4, dtype=torch.float64), given, "late")
