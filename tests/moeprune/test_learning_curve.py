"""Agreement against the number of calibration tokens."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import kendalltau
from synthetic import experts

from moeprune.agreement import chance_corrected, jaccard, rank_biased_overlap
from moeprune.criteria import gate_weighted_ean, reap
from moeprune.errors import BadInput
from moeprune.learning_curve import Curve, LearningCurve, learning_curves, smallest_budget
from moeprune.replicates import random_orders
from moeprune.resampling import resampled
from moeprune.routing import Routing
from moeprune.selection import uniform
from moeprune.stability import places
from moeprune.statistics import Statistics

ROUTING = Routing(12, 2)


def curve_of(corpora: dict[str, Statistics], keep: int, **how) -> LearningCurve:
    return learning_curves({"reap": reap.score}, corpora, [keep], ROUTING, **how)["reap"][keep]


def mask_of(scores: torch.Tensor, keep: int) -> torch.Tensor:
    return torch.zeros(scores.shape, dtype=torch.bool).scatter(1, uniform.select(scores, keep, ROUTING), True)


def test_learning_curve_is_what_one_subset_at_a_time_gives():
    one, other = experts(8, 3, 12, 0.5, 1.0, seed=1), experts(5, 3, 12, 0.5, 1.0, seed=2)
    one = replace(one, tokens=torch.arange(8) + 10)
    found = curve_of({"one": one, "other": other}, 9, fractions=[0.25, 1.0, 0.5], repeats=6, seed=3)
    orders = random_orders([8, 5], 6, 3)
    whole = reap.score(joint([one, other], [torch.ones(8), torch.ones(5)]))

    def scores_of(number: int, sizes: tuple[int, int], skip: tuple[int, int]) -> torch.Tensor:
        weights = [
            ((order[number] >= start) & (order[number] < start + size)).double() * (len(order[number]) / size)
            for order, size, start in zip(orders, sizes, skip, strict=True)
        ]
        return reap.score(joint([one, other], weights))

    # Of 8 and 5 chunks: a quarter is 2 and 1, half is 4 and 2.
    for place, sizes in enumerate([(2, 1), (4, 2), (8, 5)]):
        for number in range(6):
            part = scores_of(number, sizes, (0, 0))
            masks = mask_of(part, 9), mask_of(whole, 9)
            assert float(found.full.jaccard[number, place]) == pytest.approx(
                float(jaccard(~masks[0], ~masks[1]).mean())
            )
            tau = sum(kendalltau(a, b).statistic for a, b in zip(part, whole, strict=True)) / 3
            assert float(found.full.tau[number, place]) == pytest.approx(tau)
            # Three experts go, so that a depth counts 2/3 of the one before.
            order = [places(scores, ROUTING).long() for scores in (part, whole)]
            shared = float(rank_biased_overlap(*order, 2 / 3).mean())
            assert float(found.full.overlap[number, place]) == pytest.approx(shared)
            if sizes != (8, 5):
                after = mask_of(scores_of(number, sizes, sizes), 9)
                expected = float(chance_corrected(masks[0], after).mean())
                assert float(found.disjoint.corrected[number, place]) == pytest.approx(expected)
    tokens = [
        float((one.tokens * (orders[0] < size)).sum(1).double().mean()) + 100 * more
        for size, more in [(2, 1), (4, 2), (8, 5)]
    ]
    assert found.full.tokens.tolist() == pytest.approx(tokens) and len(found.disjoint.tokens) == 2
    for measure in ("jaccard", "corrected", "tau", "overlap"):
        assert found.full.mean(measure)[-1] == pytest.approx(1) and found.full.spread(measure)[-1] == pytest.approx(0)


def joint(corpora, weights):
    parts = [resampled(corpus, weight.double()[None]) for corpus, weight in zip(corpora, weights, strict=True)]
    return parts[0] + parts[1]


def test_learning_curve_of_noise_rises_with_all_the_data_and_stays_at_chance_between_disjoint_sets():
    found = curve_of({"a": experts(32, 30, 12, 0.0, 1.0, seed=1)}, 6, repeats=20)
    full, disjoint = found.full.mean("corrected"), found.disjoint.mean("corrected")
    assert (full.diff() > 0).all() and full[-1] > 0.6  # the bias: a subset is part of the whole
    assert disjoint.abs().max() < 0.06
    assert found.disjoint.mean("tau").abs().max() < 0.06


def test_learning_curve_of_a_strong_signal_is_high_from_the_start():
    found = curve_of({"a": experts(32, 10, 12, 5.0, 0.1, seed=1)}, 6)
    assert float(found.disjoint.mean("corrected").min()) > 0.95
    assert smallest_budget(found.disjoint, "corrected", 0.95) == 400  # four of 32 chunks of 100 tokens


def test_learning_curves_of_several_criteria_and_sizes_are_those_of_each_by_itself():
    corpora = {"a": experts(9, 4, 12, 0.5, 1.0, seed=1), "b": experts(6, 4, 12, 0.5, 1.0, seed=2)}
    criteria = {"reap": reap.score, "gate_weighted_ean": gate_weighted_ean.score}
    layers: list[int] = []
    together = learning_curves(criteria, corpora, [6, 9], ROUTING, repeats=4, how="rank", progress=layers.append)
    assert sum(layers) == 4
    for name, score in criteria.items():
        for keep in (6, 9):
            alone = learning_curves({name: score}, corpora, [keep], ROUTING, repeats=4, how="rank")[name][keep]
            for which in ("full", "disjoint"):
                found, expected = vars(getattr(together[name][keep], which)), vars(getattr(alone, which))
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_smallest_budget_is_where_the_curve_stays_above_the_target():
    values = torch.tensor([[0.9, 0.7, 0.85, 0.95], [0.9, 0.7, 0.75, 0.95]], dtype=torch.float64)
    curve = Curve(torch.tensor([10.0, 20, 30, 40]).double(), values, values, values, values)
    assert smallest_budget(curve, "jaccard", 0.8) == 30
    assert smallest_budget(curve, "tau", 0.6) == 10
    assert smallest_budget(curve, "jaccard", 0.9) == 40
    assert smallest_budget(curve, "jaccard", 0.99) is None
    assert curve.spread("tau").tolist() == pytest.approx([0, 0, 0.1 / 2**0.5, 0])


@pytest.mark.parametrize("fractions", [[], [0.0, 0.5], [0.6, 0.9], [0.5, 1.5]])
def test_fractions_that_mean_nothing_are_refused(fractions):
    with pytest.raises(BadInput, match="audit: fractions"):
        curve_of({"a": experts(8, 1, 12, 1.0, 1.0)}, 6, fractions=fractions)
