"""Criteria that read weights alone."""

import math

import pytest
import tiny
import torch
from torch import Tensor

from moeprune import criteria
from moeprune.criteria import (
    aimer,
    expert_weight_norm,
    expert_weight_similarity,
    magnitude,
    router_weight_norm,
    weight_stable_rank,
)

FOUND = {word: criteria.find(word) for word in criteria.words()}
OF_WEIGHTS = [word for word, found in FOUND.items() if found.reads == "experts"]
ORDER = [3, 7, 0, 2, 6, 1, 5, 4]


def expert_weights(layer: int) -> list[list[Tensor]]:
    experts = tiny.moe_blocks(tiny.shared_model("qwen3_moe"))[layer].experts
    return [[experts.gate_up_proj[e].detach(), experts.down_proj[e].detach()] for e in range(tiny.EXPERTS)]


@pytest.mark.parametrize("word", OF_WEIGHTS)
def test_weight_criterion_permuting_experts_permutes_scores(word):
    weights = expert_weights(0)
    plain, moved = FOUND[word].score(weights), FOUND[word].score([weights[i] for i in ORDER])
    torch.testing.assert_close(moved, plain[ORDER], rtol=1e-12, atol=0)
    assert not torch.allclose(moved, plain)


@pytest.mark.parametrize("word", OF_WEIGHTS)
def test_weight_criterion_gives_a_finite_number_for_each_expert(word):
    scores = FOUND[word].score(expert_weights(1))
    assert scores.shape == (tiny.EXPERTS,) and scores.dtype == torch.float64
    assert scores.isfinite().all() and len(set(scores.tolist())) == tiny.EXPERTS


def gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("matrix", "ratio"),
    [
        (gaussian(1000, 1000), 0.79788),
        (torch.rand(1000, 1000, generator=torch.Generator().manual_seed(0)) * 2 - 1, 0.86603),
    ],
    ids=["gaussian", "uniform"],
)
def test_aimer_known_distributions_of_a_million_weights(matrix, ratio):
    assert aimer.score([[matrix]]).item() == pytest.approx(-ratio, abs=1e-3)


def test_aimer_constant_weights_score_minus_one_and_a_single_one_the_best_possible():
    one_hot = torch.zeros(10, 10)
    one_hot[3, 4] = -2.5
    scores = aimer.score([[torch.full((10, 10), -0.3)], [one_hot]])
    torch.testing.assert_close(scores, torch.tensor([-1, -1 / math.sqrt(100)], dtype=torch.float64))


def test_aimer_matrices_of_an_expert_are_one_vector_not_averaged():
    # |w|: 3, 4, 0, 0 -> (7/4) / sqrt(25/4) = 0.7; per matrix it would be the mean of 1, 1 and 0
    matrices = [torch.tensor([[3.0]]), torch.tensor([[-4.0]]), torch.tensor([[0.0, 0.0]])]
    assert aimer.score([matrices]).item() == pytest.approx(-0.7, rel=1e-12)


def test_aimer_does_not_change_with_scale_or_layout():
    up, down = gaussian(48, 32), gaussian(32, 24)
    plain, scaled, moved = aimer.score([[up, down], [up * 8, down * 8], [down.T, up[torch.randperm(48)]]])
    torch.testing.assert_close(scaled, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(moved, plain, rtol=1e-12, atol=0)
    (other,) = aimer.score([[up * 8, down]])
    assert abs(float(other - plain)) > 1e-2


@pytest.mark.parametrize("word", OF_WEIGHTS)
def test_weight_criterion_dead_expert_scores_minus_infinity_whatever_is_kept(word):
    experts = [[torch.zeros(4, 4), torch.zeros(4, 2)], [gaussian(4, 4), torch.zeros(4, 2)]]
    for keep in ({"keep": "high"}, {"keep": "low"}) if FOUND[word].defaults else ({},):
        dead, alive = FOUND[word].score(experts, **keep)
        assert dead == -torch.inf and alive.isfinite()


def test_magnitude_is_the_mean_over_all_matrices_together():
    # (1 + 2 + 3 + 10) / 4; the mean of the matrices' means would be 6
    assert magnitude.score([[torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[-10.0]])]]).item() == 4


def test_expert_weight_norm_is_that_of_all_matrices_as_one_vector():
    experts = [
        [torch.tensor([[3.0, 0.0]]), torch.tensor([[-4.0]])],
        [torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0]])],
    ]
    assert expert_weight_norm.score(experts).tolist() == pytest.approx([5, math.sqrt(3)])
    assert expert_weight_norm.score(experts, keep="low").tolist() == pytest.approx([-5, -math.sqrt(3)])


def test_weight_stable_rank_known_matrices_and_mean_over_them():
    up, down = torch.diag(torch.tensor([2.0, 1.0, 1.0])), torch.ones(3, 5)
    # (4 + 1 + 1) / 4 = 1.5 and one direction: 1
    assert weight_stable_rank.score([[up, down]]).item() == pytest.approx(1.25)
    assert weight_stable_rank.score([[torch.eye(7)], [-3 * torch.eye(7)]], keep="low").tolist() == pytest.approx(
        [-7, -7]
    )


def test_weight_stable_rank_equals_singular_values():
    expected = []
    for matrices in expert_weights(0):
        squares = [torch.linalg.svdvals(matrix.double()).square() for matrix in matrices]
        expected.append(sum(float(s.sum() / s.max()) for s in squares) / len(squares))
    assert weight_stable_rank.score(expert_weights(0)).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("keep", "sign"), [("high", 1), ("low", -1)])
def test_expert_weight_similarity_equals_the_sum_over_pairs(keep, sign):
    weights = [torch.cat([matrix.flatten() for matrix in matrices]).double() for matrices in expert_weights(0)]
    expected = [
        sign * sum(float(torch.cosine_similarity(one, other, dim=0)) for other in weights if other is not one)
        for one in weights
    ]
    found = expert_weight_similarity.score(expert_weights(0), keep=keep)
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_expert_weight_similarity_by_default_drops_one_of_two_copies():
    one, other = gaussian(6, 4), torch.flip(gaussian(6, 4), [0])
    scores = expert_weight_similarity.score([[one], [other], [one * 3]])
    assert scores.argmax() == 1 and scores[0] == pytest.approx(float(scores[2]))


def test_router_weight_norm_is_that_of_each_row():
    router = torch.tensor([[3.0, 4.0], [0.0, -1.0], [0.0, 0.0]]).bfloat16()
    assert router_weight_norm.score(router).tolist() == [5, 1, 0]
    assert router_weight_norm.score(router, keep="low").tolist() == [-5, -1, 0]
