"""Agreement of masks and rankings against scipy and the definitions."""

import pytest
import torch
from scipy.stats import kendalltau, spearmanr
from synthetic import normal

from moeprune.agreement import (
    chance_corrected,
    jaccard,
    kendall_tau,
    overlap,
    pairwise,
    rank_biased_overlap,
    spearman_rho,
)
from moeprune.routing import Routing
from moeprune.stability import places


def sets(*rows: str) -> torch.Tensor:
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


def with_ties() -> tuple[torch.Tensor, torch.Tensor]:
    one, other = normal(5, 4, 30, seed=1), normal(5, 4, 30, seed=2)
    one, other = (one + other).mul(2).round(), other.mul(2).round()
    one[0, 0, :3] = -torch.inf
    return one, other


@pytest.mark.parametrize(("ours", "theirs"), [(kendall_tau, kendalltau), (spearman_rho, spearmanr)])
def test_rank_correlations_agree_with_scipy_ties_and_infinities_included(ours, theirs):
    one, other = with_ties()
    expected = [[theirs(a, b).statistic for a, b in zip(*rows, strict=True)] for rows in zip(one, other, strict=True)]
    torch.testing.assert_close(ours(one, other), torch.tensor(expected).double(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("measure", [kendall_tau, spearman_rho])
def test_rank_correlations_of_equal_scores_are_undefined(measure):
    assert measure(torch.ones(1, 4).double(), normal(1, 4)).isnan().all()


def test_jaccard_and_overlap_worked_examples():
    one, other = sets("xxx...", "xx....", "......", "......"), sets(".xxx..", "....xx", "......", "x.....")
    assert jaccard(one, other).tolist() == [2 / 4, 0, 1, 0]
    assert overlap(one, other).tolist() == [2 / 3, 0, 1, 1]
    # Of the removed ones: 3 and 3, two in common; 4 and 4, two in common.
    assert jaccard(~one, ~other)[:2].tolist() == [2 / 4, 2 / 6]


def test_chance_corrected_is_kunchevas_index_for_sets_of_equal_size():
    one, other = sets("xxx.....", "xx......", "xxxxxx.."), sets("xx.x....", ".....xx.", "..xxxxxx")
    for a, b, value in zip(one, other, chance_corrected(one, other).tolist(), strict=True):
        shared, k, d = int((a & b).sum()), int(a.sum()), 8
        assert value == pytest.approx((shared * d - k * k) / (k * (d - k)))
    torch.testing.assert_close(chance_corrected(~one, ~other), chance_corrected(one, other))
    assert chance_corrected(sets("....", "xxxx"), sets("....", "xxxx")).tolist() == [1, 1]


def test_chance_corrected_is_zero_on_average_for_random_sets():
    masks = normal(2, 20_000, 12).argsort(-1) < 3
    assert abs(float(chance_corrected(masks[0], masks[1]).mean())) < 0.005
    assert float(jaccard(masks[0], masks[1]).mean()) > 0.1  # which is why it is corrected


def slow_rbo(one: list[int], other: list[int], p: float) -> float:
    """Equation 30 of the paper, depth by depth, for two lists of the same items."""
    shared = [len(set(one[:d]) & set(other[:d])) for d in range(1, len(one) + 1)]
    tail = shared[-1] / len(one) * p ** len(one)
    return tail + (1 - p) / p * sum(x / d * p**d for d, x in enumerate(shared, 1))


@pytest.mark.parametrize("p", [0.5, 0.9, 0.98])
def test_rank_biased_overlap_is_the_papers_sum(p):
    one, other = normal(6, 20, seed=1), normal(6, 20, seed=2)
    found = rank_biased_overlap(*(places(scores, Routing(20, 1)).long() for scores in (one, other)), p)
    expected = [slow_rbo(a.argsort().tolist(), b.argsort().tolist(), p) for a, b in zip(one, other, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected).double())


def test_rank_biased_overlap_worked_example():
    # 1 2 3 4 5 and 2 3 4 1 5 at p = 0.9: 0/1, 1/2, 2/3, 4/4 and 5/5 in common.
    one, other = torch.tensor([[0, 1, 2, 3, 4]]), torch.tensor([[3, 0, 1, 2, 4]])
    expected = 0.9**5 + 0.1 / 0.9 * (0.9**2 / 2 + 0.9**3 * 2 / 3 + 0.9**4 + 0.9**5)
    assert float(rank_biased_overlap(one, other, 0.9)) == pytest.approx(expected)
    assert round(expected, 3) == 0.828
    assert float(rank_biased_overlap(one, one, 0.9)) == pytest.approx(1)
    # Changes at the front weigh more than the same changes at the end.
    front, end = torch.tensor([[1, 0, 2, 3, 4]]), torch.tensor([[0, 1, 2, 4, 3]])
    assert rank_biased_overlap(one, front, 0.5) < rank_biased_overlap(one, end, 0.5)


def test_pairwise_matrix_is_every_pair():
    items = normal(3, 2, 7)
    matrix = pairwise(kendall_tau, items)
    assert matrix.shape == (3, 3, 2)
    torch.testing.assert_close(matrix, matrix.transpose(0, 1))
    torch.testing.assert_close(matrix.diagonal(), torch.ones(2, 3).double())
    assert torch.equal(matrix[0, 2], kendall_tau(items[0], items[2]))
    assert pairwise(jaccard, items > 0).shape == (3, 3, 2)
