"""Several corpora, one ranking."""

import pytest
import torch
from observed import observed

from moeprune import criteria
from moeprune.combining import COMBINATIONS, combine, ranks, shares
from moeprune.criteria import frequency, reap
from moeprune.errors import BadInput
from moeprune.statistics import Statistics, pooled


def corpus(*chunks: list[tuple[int, float]]) -> Statistics:
    """One layer, two experts; each chunk lists for each expert (tokens, contribution of each token)."""
    moments = torch.zeros(len(chunks), 1, 2, 3, 3, dtype=torch.float64)
    for number, experts in enumerate(chunks):
        for expert, (tokens, contribution) in enumerate(experts):
            moments[number, 0, expert, 0, 0] = tokens
            moments[number, 0, expert, 1, 1] = tokens * contribution
    return Statistics(torch.tensor([0]), torch.tensor([10] * len(chunks)), moments[..., 0, 0].long(), moments)


# Expert 0: 2 tokens at 6 in one corpus, 8 at 1 in the other; expert 1: 5 at 2 and 5 at 3.
CORPORA = [corpus([(1, 6), (2, 2)], [(1, 6), (3, 2)]), corpus([(8, 1), (5, 3)])]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("pooled", [20 / 10, 25 / 10]),  # (2*6 + 8*1) / 10 and (5*2 + 5*3) / 10
        ("mean", [(6 + 1) / 2, (2 + 3) / 2]),
        ("max", [6, 3]),
        ("rank", [0.5, 0.5]),  # each is best once
        ("normalised", [(6 / 8 + 1 / 4) / 2, (2 / 8 + 3 / 4) / 2]),
    ],
)
def test_combine_worked_example(how, expected):
    scores, per_corpus = combine(reap.score, CORPORA, how)
    torch.testing.assert_close(scores, torch.tensor([expected], dtype=torch.float64))
    torch.testing.assert_close(per_corpus, torch.tensor([[[6.0, 2.0]], [[1.0, 3.0]]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("pooled", [(3 * 12 + 8) / (3 * 2 + 8), (3 * 10 + 15) / (3 * 5 + 5)]),
        ("mean", [(3 * 6 + 1) / 4, (3 * 2 + 3) / 4]),
        ("rank", [3 / 4, 1 / 4]),
        ("normalised", [(3 * 6 / 8 + 1 / 4) / 4, (3 * 2 / 8 + 3 / 4) / 4]),
    ],
)
def test_combine_weights_worked_example(how, expected):
    for weights in ([3.0, 1.0], [0.75, 0.25]):
        scores, per_corpus = combine(reap.score, CORPORA, how, weights)
        torch.testing.assert_close(scores, torch.tensor([expected], dtype=torch.float64))
        torch.testing.assert_close(per_corpus, torch.tensor([[[6.0, 2.0]], [[1.0, 3.0]]], dtype=torch.float64))


@pytest.mark.parametrize("how", [how for how in COMBINATIONS if how != "max"])
@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_combine_equal_weights_equal_none_for_every_criterion_of_sums(family, how):
    whole = observed(family).statistics
    corpora = [whole, whole.scaled(3.0) + whole.scaled(0.5)]
    for word in criteria.words():
        found = criteria.find(word)
        if found.reads == "statistics":
            plain, weighted = (combine(found.score, corpora, how, weights)[0] for weights in (None, [0.2, 0.2]))
            torch.testing.assert_close(weighted, plain, rtol=1e-9, atol=0)


def test_combine_pooled_a_corpus_of_weight_two_counts_like_the_same_corpus_twice():
    one, other = CORPORA
    doubled, _ = combine(reap.score, [one, other], "pooled", [2.0, 1.0])
    twice, _ = combine(reap.score, [one, one, other], "pooled")
    torch.testing.assert_close(doubled, twice)


def test_combine_weights_that_mean_nothing_are_refused():
    with pytest.raises(BadInput, match=r"score\.weights: the largest score"):
        combine(reap.score, CORPORA, "max", [1.0, 1.0])
    for weights in ([1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(BadInput, match="not all numbers above 0"):
            combine(reap.score, CORPORA, "mean", weights)


def test_shares_sum_to_one_in_each_layer_and_leave_zeros():
    scores = torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert shares(scores).tolist() == [[0.25, 0.75, 0], [0, 0, 0]]
    with pytest.raises(BadInput, match="scores below 0"):
        shares(-scores)


def test_pooled_leaves_maxima_and_scales_all_other_sums():
    statistics = observed("olmoe").statistics
    total = pooled([statistics, statistics], [3.0, 1.0])
    assert torch.equal(total.sum_of("max_abs_activation"), statistics.sum_of("max_abs_activation"))
    for name in ("output_sum", "pair_contribution", "probability", "input_energy.down"):
        torch.testing.assert_close(total.sum_of(name), statistics.sum_of(name) * 2, rtol=1e-12, atol=0)
    for mode in ("softmax_full", "softmax_topk"):
        torch.testing.assert_close(total.in_gate_mode(mode).moments, statistics.in_gate_mode(mode).moments * 2)
    assert torch.equal(total.tokens, statistics.tokens * 2.0) and torch.equal(total.count, statistics.count * 2.0)


@pytest.mark.parametrize("how", COMBINATIONS)
def test_combine_one_corpus_keeps_its_order(how):
    scores, _ = combine(reap.score, CORPORA[:1], how)
    assert scores[0, 0] > scores[0, 1]


def test_combine_pooled_corpora_of_unlike_chunks_add_up():
    scores, _ = combine(frequency.score, CORPORA, "pooled")
    assert scores.tolist() == [[10, 10]]


def test_combine_unknown_way_is_an_error():
    with pytest.raises(ValueError, match="median"):
        combine(reap.score, CORPORA, "median")


def test_ranks_equal_scores_share_the_mean_of_their_ranks():
    scores = torch.tensor([[3.0, 1.0, 3.0, 2.0, -torch.inf]], dtype=torch.float64)
    # ascending: -inf (0), 1 (1), 2 (2), 3 and 3 (3 and 4), divided by 4
    assert ranks(scores).tolist() == [[3.5 / 4, 1 / 4, 3.5 / 4, 2 / 4, 0]]


def test_ranks_do_not_change_under_a_monotone_map():
    scores = torch.rand(2, 3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(ranks(scores), ranks(scores.exp() * 7 - 3))
    assert ranks(torch.ones(1, 1, dtype=torch.float64)).tolist() == [[0]]
