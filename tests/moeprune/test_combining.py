"""Several corpora, one ranking."""

import pytest
import torch

from moeprune.combining import COMBINATIONS, combine, ranks
from moeprune.criteria import frequency, reap
from moeprune.statistics import Statistics


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
    ],
)
def test_combine_worked_example(how, expected):
    scores, per_corpus = combine(reap.score, CORPORA, how)
    torch.testing.assert_close(scores, torch.tensor([expected], dtype=torch.float64))
    torch.testing.assert_close(per_corpus, torch.tensor([[[6.0, 2.0]], [[1.0, 3.0]]], dtype=torch.float64))


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
