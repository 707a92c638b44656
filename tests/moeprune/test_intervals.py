"""Confidence intervals of scores cover what they promise."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import norm, t
from synthetic import experts, normal, statistics_of

from moeprune.criteria import frequency, reap
from moeprune.intervals import bca, studentised
from moeprune.linearised import linear, standard_errors
from moeprune.replicates import bootstrap, leave_one_out, once
from moeprune.resampling import prepare, resampled_scores
from moeprune.routing import Routing
from moeprune.sensitivity import sensitivity
from moeprune.statistics import Statistics


def slow_bca(replicates: list[float], score: float, left_out: list[list[float]], level: float) -> tuple[float, float]:
    """One interval after Efron 1987, the acceleration over strata, written out."""
    resamples = len(replicates)
    below = sum((value < score) + (value == score) / 2 for value in replicates)
    z0 = norm.ppf(below / resamples)
    cubes = squares = 0.0
    for values in left_out:
        size = len(values)
        for value in values:
            influence = (size - 1) * (sum(values) / size - value) / size
            cubes, squares = cubes + influence**3, squares + influence**2
    a = cubes / (6 * squares**1.5)
    quantile = t.ppf((1 + level) / 2, sum(map(len, left_out)) - len(left_out))
    ends = []
    for z in (z0 - quantile, z0 + quantile):
        place = norm.cdf(z0 + z / (1 - a * z)) * (resamples + 1)
        ordered = [-math.inf, *sorted(replicates), math.inf]
        low = math.floor(place)
        ends.append(ordered[low] + (place - low) * (ordered[low + 1] - ordered[low]))
    return ends[0], ends[1]


@pytest.mark.parametrize("chunks", [[12], [8, 6]])
def test_bca_is_efrons_interval(chunks):
    data = [
        statistics_of(normal(size, 2, 3, seed=size).exp(), normal(size, 2, 3, seed=size + 1).mul(0.3).exp())
        for size in chunks
    ]
    replicates = resampled_scores(reap.score, data, bootstrap(chunks, 500, 0))
    left_out = resampled_scores(reap.score, data, leave_one_out(chunks))
    (point,) = resampled_scores(reap.score, data, once(chunks))
    lower, upper = bca(replicates, point, left_out, chunks, 0.8)
    for layer in range(2):
        for expert in range(3):
            strata = [part[:, layer, expert].tolist() for part in left_out.split(chunks)]
            low, high = slow_bca(replicates[:, layer, expert].tolist(), float(point[layer, expert]), strata, 0.8)
            assert float(lower[layer, expert]) == pytest.approx(low, rel=2e-3)
            assert float(upper[layer, expert]) == pytest.approx(high, rel=2e-3)
            assert low < point[layer, expert] < high


def test_studentised_worked_example():
    # t* = (S* - S) / se*: -2, 0, 1 and 4; of 4 values the 20th and 80th percentile are the first and the last.
    replicates = torch.tensor([[8.0], [10.0], [12.0], [14.0]], dtype=torch.float64)
    errors = torch.tensor([[1.0], [0.0], [2.0], [1.0]], dtype=torch.float64)
    score, error = torch.tensor([10.0], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    lower, upper = studentised(replicates, errors, score, error, level=0.6)
    assert lower.tolist() == [pytest.approx(10 - 0.5 * 4)] and upper.tolist() == [pytest.approx(10 + 0.5 * 2)]


def test_intervals_of_a_score_that_never_varies_have_no_width():
    constant = torch.full((8, 1, 2), 3.0, dtype=torch.float64)
    found = sensitivity(
        {"a": statistics_of(constant, constant)}, {"reap": reap.score}, [1], Routing(2, 1), resamples=50
    )
    scores = found.criteria["reap"]
    torch.testing.assert_close(scores.lower, torch.ones(1, 2).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(scores.upper, torch.ones(1, 2).double(), rtol=1e-6, atol=0)


def lognormal_ratio(chunks: int, trials: int, sigma: float) -> tuple[Statistics, float]:
    """Skewed contributions and counts, correlated by a half; the ratio of their means is 1."""
    z = normal(2, chunks, trials, 1, seed=chunks)
    return statistics_of((sigma * (0.5 * z[0] + math.sqrt(0.75) * z[1])).exp(), (sigma * z[0]).exp()), 1.0


def normal_ratio(chunks: int, trials: int, _: float) -> tuple[Statistics, float]:
    z = normal(2, chunks, trials, 1, seed=chunks)
    count = 100 + 20 * z[0]
    return statistics_of(2 * count + 30 * z[1], count), 2.0


def lognormal_sum(chunks: int, trials: int, sigma: float) -> tuple[Statistics, float]:
    count = (sigma * normal(chunks, trials, 1, seed=chunks)).exp()
    return statistics_of(count, count), chunks * math.exp(sigma**2 / 2)


CASES: list[tuple[Callable, Callable, float]] = [
    (normal_ratio, reap.score, 0),
    (lognormal_ratio, reap.score, 0.5),
    (lognormal_ratio, reap.score, 1.0),
    (lognormal_sum, frequency.score, 0.5),
    (lognormal_sum, frequency.score, 1.0),
]
IDS = ["normal ratio", "lognormal ratio 0.5", "lognormal ratio 1", "lognormal sum 0.5", "lognormal sum 1"]


def coverage(chunks: int, make: Callable, score: Callable, sigma: float, how: str, trials: int = 500) -> float:
    """Share of trials, one in each layer, whose 90% interval holds the truth."""
    statistics, truth = make(chunks, trials, sigma)
    found = sensitivity({"a": statistics}, {"score": score}, [1], Routing(1, 1), resamples=2000, how=how).criteria[
        "score"
    ]
    return float(((found.lower <= truth) & (truth <= found.upper)).double().mean())


@pytest.mark.parametrize(("make", "score", "sigma"), CASES, ids=IDS)
def test_studentised_90_percent_intervals_cover_87_to_93_percent_at_64_chunks(make, score, sigma):
    assert 0.87 <= coverage(64, make, score, sigma, "pooled") <= 0.93


@pytest.mark.parametrize(("make", "score", "sigma"), [CASES[0], CASES[1], CASES[3]], ids=[IDS[0], IDS[1], IDS[3]])
def test_bca_90_percent_intervals_cover_87_to_93_percent_at_64_chunks_unless_sums_are_very_skewed(make, score, sigma):
    assert 0.87 <= coverage(64, make, score, sigma, "max") <= 0.93


def test_intervals_of_two_corpora_cover_the_truth_of_their_mixture():
    # Strata of unlike size and noise: 40 and 24 chunks, the second counting twice.
    one, other = (experts(chunks, 500, 1, 0, noise, seed=chunks) for chunks, noise in ((40, 1.0), (24, 3.0)))
    found = sensitivity(
        {"one": one, "other": other}, {"reap": reap.score}, [1], Routing(1, 1), resamples=2000, weights=[1.0, 2.0]
    ).criteria["reap"]
    assert 0.87 <= float(((found.lower <= 10) & (found.upper >= 10)).double().mean()) <= 0.93


def test_standard_errors_are_those_of_a_ratio_of_sums():
    statistics, _ = lognormal_ratio(20, 3, 0.7)
    made = prepare({"reap": reap.score}, [statistics])
    (block,) = made.blocks(bootstrap([20], 4, 0))
    criterion = linear(reap.score, statistics)
    assert criterion is not None
    errors = standard_errors(criterion, block, [20], [19])
    for number, weight in enumerate(block.replicates[0]):
        # The resample as a list of its 19 draws; Cochran 1977, Eq. 2.46.
        draws = torch.cat([torch.tensor([c] * round(float(w) * 19 / 20)) for c, w in enumerate(weight)]).long()
        total, size = statistics.moments[draws, ..., 1, 1], statistics.count[draws]
        residual = total - total.sum(0) / size.sum(0) * size
        expected = (19 / 18 * residual.square().sum(0)).sqrt() / size.sum(0)
        torch.testing.assert_close(errors[number], expected, rtol=1e-6, atol=0)


def test_standard_errors_of_a_sum_are_those_of_the_sum():
    statistics, _ = lognormal_sum(10, 3, 1.0)
    made = prepare({"frequency": frequency.score}, [statistics], "pooled", [5.0])
    (block,) = made.blocks(once([10]))
    criterion = linear(frequency.score, statistics)
    assert criterion is not None
    errors = standard_errors(criterion, block, [10], [10])[0]
    torch.testing.assert_close(errors, statistics.count.std(0) * math.sqrt(10))


def test_linear_tells_criteria_apart():
    statistics, _ = lognormal_ratio(6, 2, 0.5)
    statistics = statistics_of(
        *(torch.cat([value, 2 * value], -1) for value in (statistics.moments[..., 1, 1], statistics.count))
    )
    assert linear(reap.score, statistics) is not None

    def share(given: Statistics) -> torch.Tensor:
        scores = reap.score(given)
        return scores / scores.sum(-1, keepdim=True)

    assert linear(share, statistics) is None
    assert linear(lambda given: reap.score(given).argsort(-1).double(), statistics) is None
    largest = {"max_activation": statistics.count}
    with_largest = Statistics(statistics.layer, statistics.tokens, statistics.count, statistics.moments, {}, largest)
    assert linear(lambda given: given.sum_of("max_activation").amax(0), with_largest) is None
