"""Masks of many scores from one sort, and how alike they are."""

import math
from itertools import combinations

import pytest
import torch
from synthetic import normal

from moeprune.errors import BadInput
from moeprune.routing import Routing
from moeprune.selection import uniform
from moeprune.stability import SHIFTS, joined, kept, mean_jaccard, places, stability

ROUTINGS = [Routing(12, 2), Routing(12, 2, groups=3)]


def random_masks(replicates: int, layers: int, experts: int, keep: int, seed: int = 0) -> torch.Tensor:
    return kept(places(normal(replicates, layers, experts, seed=seed), Routing(experts, 1)), keep, Routing(experts, 1))


@pytest.mark.parametrize("routing", ROUTINGS, ids=["one group", "three groups"])
def test_kept_is_what_uniform_selects_row_by_row(routing):
    scores = normal(40, 3, 12).mul(1.5).round()  # many ties
    scores[0, 0, :5], scores[1, 1, 2:4] = -torch.inf, torch.inf
    place = places(scores, routing)
    for keep in (6, 9, 12):
        masks = kept(place, keep, routing)
        for mask, row in zip(masks, scores, strict=True):
            assert mask.nonzero()[:, 1].reshape(3, keep).tolist() == uniform.select(row, keep, routing).tolist()


def test_kept_breaks_the_ties_of_many_experts_by_id_the_lower_goes():
    routing = Routing(512, 8)
    mask = kept(places(torch.ones(2, 1, 512).double(), routing), 500, routing)
    assert mask[0, 0].nonzero().flatten().tolist() == list(range(12, 512))


def test_kept_refuses_what_uniform_refuses():
    scores = normal(1, 2, 12)
    with pytest.raises(BadInput, match="top-k 2"):
        kept(places(scores, ROUTINGS[0]), 1, ROUTINGS[0])
    with pytest.raises(ValueError, match="NaN"):
        places(scores.where(scores > 0, torch.nan), ROUTINGS[0])


def slow_index(sets: list[list[bool]]) -> tuple[float, float]:
    """Nogueira, Sechidis & Brown 2018: the index (Definition 4) and its variance (Corollary 9), written out."""
    m, d = len(sets), len(sets[0])
    p = [sum(row[f] for row in sets) / m for f in range(d)]
    sizes = [sum(row) for row in sets]
    mean = sum(sizes) / m
    possible = mean / d * (1 - mean / d)
    index = 1 - sum(m / (m - 1) * share * (1 - share) for share in p) / d / possible
    phi = [
        (
            sum(z * share for z, share in zip(row, p, strict=True)) / d
            - k * mean / d**2
            + index / 2 * (2 * k * mean / d**2 - k / d - mean / d + 1)
        )
        / possible
        for row, k in zip(sets, sizes, strict=True)
    ]
    return index, 4 / m**2 * sum((value - sum(phi) / m) ** 2 for value in phi)


def test_stability_is_the_published_index_with_its_interval():
    masks = random_masks(30, 4, 10, 7) | (torch.arange(10) < 0)
    masks[:20, 1] = masks[0, 1]  # one layer more stable than the others
    found = stability(masks)
    lower, upper = found.intervals(0.9)
    for layer in range(4):
        index, variance = slow_index(masks[:, layer].tolist())
        assert float(found.index[layer]) == pytest.approx(index)
        assert float(lower[layer]) == pytest.approx(index - 1.6448536 * math.sqrt(variance))
        assert float(upper[layer]) == pytest.approx(min(1, index + 1.6448536 * math.sqrt(variance)))
    torch.testing.assert_close(found.probability, masks.double().mean(0))
    # Of all layers together: one set of 40 experts of which each replicate keeps 28.
    index, variance = slow_index(masks.flatten(1).tolist())
    overall = found.overall(0.9)
    assert overall.value == pytest.approx(index)
    assert overall.value - overall.lower == pytest.approx(1.6448536 * math.sqrt(variance))


def test_stability_is_one_for_equal_masks_and_at_chance_for_random_ones():
    same = stability(random_masks(1, 3, 16, 4).expand(50, -1, -1))
    assert same.index.tolist() == [1, 1, 1] and same.jaccard.tolist() == [1, 1, 1] and not same.edge().any()
    assert same.overall().lower == pytest.approx(1)
    noise = stability(random_masks(400, 50, 16, 4))
    assert abs(noise.overall().value) < 0.005
    assert noise.edge().all()


def test_stability_interval_covers_the_true_index():
    # 500 sets of 100 masks of experts with a known signal; the truth is that of 100,000 masks.
    routing, signal = Routing(24, 1), normal(24, seed=5)
    scores = signal + normal(100, 1000, 24, seed=6)
    truth = float(stability(kept(places(scores.reshape(-1, 1, 24), routing), 6, routing)).index)
    found = stability(kept(places(scores[:, :500], routing), 6, routing))
    lower, upper = found.intervals(0.9)
    assert 0.2 < truth < 0.8
    assert 0.86 <= float(((lower <= truth) & (upper >= truth)).double().mean()) <= 0.94


def test_stability_does_not_depend_on_naming_kept_or_removed():
    masks = random_masks(20, 2, 9, 3)
    torch.testing.assert_close(stability(masks).index, stability(~masks).index)


def test_stability_with_every_expert_kept_is_one():
    found = stability(torch.ones(10, 2, 6, dtype=torch.bool))
    assert found.index.tolist() == [1, 1] and found.jaccard.tolist() == [1, 1]
    assert found.overall().lower == 1


def test_edge_experts_are_those_between_the_thresholds():
    masks = torch.zeros(100, 1, 4, dtype=torch.bool)
    masks[:, 0, 0], masks[:96, 0, 1], masks[:60, 0, 2], masks[:4, 0, 3] = True, True, True, True
    masks[96:, 0, 3] = True
    assert stability(masks).edge(0.05, 0.95)[0].tolist() == [False, False, True, True]
    assert stability(masks).edge(0.2, 0.8)[0].tolist() == [False, False, True, False]


@pytest.mark.parametrize("replicates", [2, 5, 2 * SHIFTS + 1])
def test_mean_jaccard_of_few_sets_is_exact(replicates):
    sets = random_masks(replicates, 3, 10, 4)
    expected = [
        [int((a & b).sum()) / int((a | b).sum()) for a, b in combinations(sets[:, layer], 2)] for layer in range(3)
    ]
    torch.testing.assert_close(mean_jaccard(sets), torch.tensor(expected).double().mean(1))


def test_mean_jaccard_of_many_sets_is_near_that_of_all_pairs():
    sets = random_masks(300, 2, 16, 5)
    pairs = torch.combinations(torch.arange(300))
    shared = (sets[pairs[:, 0]] & sets[pairs[:, 1]]).sum(-1).double()
    torch.testing.assert_close(mean_jaccard(sets), (shared / (10 - shared)).mean(0), atol=0.01, rtol=0)


def test_joined_blocks_are_the_whole():
    masks = random_masks(25, 5, 8, 3)
    parts, whole = joined([stability(masks[:, :2]), stability(masks[:, 2:])]), stability(masks)
    for name in ("probability", "index", "influence", "jaccard"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    assert parts.overall().lower == pytest.approx(whole.overall().lower)
