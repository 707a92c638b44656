"""The audit's numbers against one resample at a time, and against truly independent data."""

import pytest
import torch
from synthetic import experts, normal, statistics_of

from moeprune.agreement import chance_corrected
from moeprune.combining import combine
from moeprune.criteria import frequency, reap
from moeprune.errors import BadInput
from moeprune.replicates import bootstrap
from moeprune.resampling import resampled
from moeprune.routing import Routing
from moeprune.selection import uniform
from moeprune.sensitivity import sensitivity

CRITERIA = {"reap": reap.score, "frequency": frequency.score}


def skewed(chunks: int, seed: int):
    count = (normal(chunks, 3, 8, seed=seed) * 0.5 + 3).exp()
    return statistics_of(count * (normal(3, 8, seed=99) * 0.2 + normal(chunks, 3, 8, seed=seed + 1) * 0.3).exp(), count)


@pytest.mark.parametrize("routing", [Routing(8, 2), Routing(8, 2, groups=2)], ids=["one group", "two groups"])
@pytest.mark.parametrize("how", ["pooled", "mean", "rank"])
def test_sensitivity_is_what_one_resample_at_a_time_gives(how, routing):
    corpora = {"one": skewed(6, 1), "other": skewed(9, 11)}
    found = sensitivity(corpora, CRITERIA, [4, 6], routing, resamples=15, seed=5, how=how)
    assert found.chunks == (6, 9) and found.resamples == 15 and found.layer.tolist() == [0, 1, 2]
    weights = bootstrap([6, 9], 15, 5)
    for word, score in CRITERIA.items():
        assert torch.equal(found.criteria[word].scores, combine(score, list(corpora.values()), how)[0])
        for keep in (4, 6):
            kept = torch.zeros(3, 8, dtype=torch.float64)
            for number in range(15):
                one = [resampled(s, w[number : number + 1]) for s, w in zip(corpora.values(), weights, strict=True)]
                chosen = uniform.select(combine(score, one, how)[0], keep, routing)
                kept.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))
            mask = found.criteria[word].masks[keep]
            torch.testing.assert_close(mask.stability.probability, kept / 15)
            expected = uniform.select(found.criteria[word].scores, keep, routing)
            assert mask.kept.nonzero()[:, 1].reshape(3, keep).tolist() == expected.tolist()


def test_sensitivity_of_identical_chunks_is_none():
    (one,) = [skewed(1, 1)]
    same = statistics_of(one.moments[..., 1, 1].expand(10, -1, -1), one.count.expand(10, -1, -1))
    found = sensitivity({"same": same}, CRITERIA, [4], Routing(8, 2), resamples=100)
    for criterion in found.criteria.values():
        mask = criterion.masks[4]
        assert mask.stability.index.tolist() == [1, 1, 1] and mask.halves.tolist() == [1, 1, 1]
        torch.testing.assert_close(criterion.upper, criterion.lower, rtol=1e-6, atol=0)
    assert found.edge("reap", 4) == []


def independent(chunks: int, spread: float, keep: int, trials: int = 40) -> float:
    """Mean chance-corrected agreement of masks from data sets that share no chunk."""
    scores = [reap.score(experts(chunks, 40, 16, spread, 1.0, seed=100 + seed)) for seed in range(trials)]
    masks = torch.stack([row >= row.sort(-1).values[:, 16 - keep, None] for row in scores])
    return float(chance_corrected(masks[::2], masks[1::2]).mean())


def audited(chunks: int, spread: float, keep: int) -> tuple[float, float]:
    """What an audit of one data set says: the mean agreement of its halves, and of its resamples."""
    data = {"a": experts(chunks, 40, 16, spread, 1.0, seed=7)}
    mask = sensitivity(data, {"reap": reap.score}, [keep], Routing(16, 2), resamples=300).criteria["reap"].masks[keep]
    return float(mask.halves.mean()), mask.stability.overall().value


def test_pure_noise_halves_are_at_chance_and_resamples_a_third_above():
    halves, resamples = audited(32, 0.0, keep=8)
    assert abs(halves) < 0.05
    # Two resamples of data without a signal correlate by 1/2: 2 / pi asin(1/2) = 1/3 above chance at half the experts.
    assert resamples == pytest.approx(1 / 3, abs=0.05)
    assert abs(independent(32, 0.0, 8)) < 0.05


@pytest.mark.parametrize("spread", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("keep", [8, 12])
def test_masks_of_independent_data_agree_between_what_halves_and_resamples_say(spread, keep):
    halves, resamples = audited(32, spread, keep)
    truth = independent(32, spread, keep)
    assert halves < truth < resamples + 0.01
    assert resamples - halves < 0.5


def test_edge_experts_are_named_the_least_certain_first():
    found = sensitivity({"a": skewed(6, 1)}, CRITERIA, [4], Routing(8, 2), resamples=200)
    edge = found.edge("reap", 4, 0.1, 0.9)
    probability = found.criteria["reap"].masks[4].stability.probability
    assert edge
    for row in edge:
        assert row.probability == float(probability[row.layer, row.expert]) and 0.1 < row.probability < 0.9
    distances = [abs(row.probability - 0.5) for row in edge]
    assert distances == sorted(distances)
    assert len(edge) == int(((probability > 0.1) & (probability < 0.9)).sum())


def test_sensitivity_tells_progress_and_depends_on_the_seed_alone():
    layers = []
    runs = [
        sensitivity({"a": skewed(6, 1)}, CRITERIA, [4], Routing(8, 2), resamples=50, seed=seed, progress=layers.append)
        for seed in (1, 1, 2)
    ]
    assert sum(layers) == 9
    first, again, other = (run.criteria["reap"].masks[4].stability.probability for run in runs)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_expert_few_chunks_use_has_finite_ends():
    count = torch.ones(12, 1, 2, dtype=torch.float64)
    count[1:, 0, 0] = 0
    found = sensitivity({"a": statistics_of(3 * count, count)}, {"reap": reap.score}, [1], Routing(2, 1), resamples=200)
    scores = found.criteria["reap"]
    assert scores.lower[0, 0] == 0 and scores.upper[0, 0] == 3


def test_sensitivity_refuses_before_the_work():
    data = {"a": skewed(6, 1)}
    with pytest.raises(BadInput, match="top-k 2"):
        sensitivity(data, CRITERIA, [1], Routing(8, 2))
    with pytest.raises(BadInput, match=r"calibrate\.chunks"):
        sensitivity({"a": skewed(1, 1)}, CRITERIA, [4], Routing(8, 2))
