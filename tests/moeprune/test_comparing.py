"""Masks side by side, against counting by hand and scipy."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr
from synthetic import experts

from moeprune.combining import combine
from moeprune.comparing import (
    claimed,
    left_out,
    mask_agreement,
    masks_of,
    mean_of_pairs,
    rank_agreement,
    rank_test,
    text_in_common,
)
from moeprune.corpus import Corpus
from moeprune.criteria import reap
from moeprune.routing import Routing
from moeprune.selection import uniform

SCORES = torch.tensor([[[1.0, 2, 3, 4]], [[4.0, 3, 2, 1]], [[1.0, 2, 4, 3]]], dtype=torch.float64)
ROUTING = Routing(4, 2)


def test_masks_are_those_of_uniform_selection():
    masks = masks_of(SCORES, 2, ROUTING)
    expected = [uniform.select(scores, 2, ROUTING).tolist() for scores in SCORES]
    assert [[row.nonzero().flatten().tolist() for row in mask] for mask in masks] == expected


def test_masks_agree_as_counted_by_hand():
    # Kept: {2, 3}, {0, 1}, {2, 3}. Opposite masks share nothing, where chance is a half: 1 - 4 / 2 = -1.
    corrected, overlap = mask_agreement(masks_of(SCORES, 2, ROUTING))
    assert corrected[..., 0].tolist() == [[1, -1, 1], [-1, 1, -1], [1, -1, 1]]
    assert overlap[..., 0].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert mean_of_pairs(corrected) == pytest.approx(-1 / 3)


def test_overlap_is_of_the_experts_removed():
    masks = torch.tensor([[[True, True, True, False]], [[True, True, False, True]]])
    assert mask_agreement(masks)[1][0, 1].tolist() == [0.0]  # those kept have two of three in common


def test_ranks_agree_as_scipy_says():
    found = rank_agreement(SCORES)
    assert found[0, 2].item() == pytest.approx(spearmanr(SCORES[0, 0], SCORES[2, 0]).statistic)


def test_mean_of_pairs_leaves_out_layers_without_a_value():
    agreement = torch.tensor([[[1.0, 1.0], [0.5, math.nan]], [[0.5, math.nan], [1.0, 1.0]]], dtype=torch.float64)
    assert mean_of_pairs(agreement) == 0.5


def test_claimed_is_what_one_mask_alone_keeps():
    masks = torch.tensor([[[True, True, False]], [[True, False, True]], [[True, False, False]]])
    assert claimed(masks).tolist() == [[[False, True, False]], [[False, False, True]], [[False, False, False]]]


@pytest.mark.parametrize("how", ["pooled", "mean", "rank"])
def test_left_out_is_the_combination_of_the_others_with_their_weights(how):
    corpora = [experts(4, 2, 8, 0.5, 1.0, seed=seed) for seed in range(3)]
    found = left_out(reap.score, corpora, how, [1.0, 2.0, 4.0])
    expected = combine(reap.score, [corpora[0], corpora[2]], how, [1.0, 4.0])[0]
    assert torch.equal(found[1], expected) and len(found) == 3
    assert not torch.equal(found[0], found[1])


def corpus(documents: list[int], lengths: list[int]) -> Corpus:
    """Blocks of documents; what they say and the chunks they are in do not count."""
    blocks = len(documents)
    return Corpus(
        input_ids=torch.zeros(blocks, 8, dtype=torch.int32),
        length=torch.tensor(lengths, dtype=torch.int32),
        document=torch.tensor(documents, dtype=torch.int32),
        chunk=torch.zeros(blocks, dtype=torch.int32),
    )


def test_text_in_common_is_the_share_of_tokens_of_documents_in_both():
    # Document 3 has 8 + 2 tokens in one and 8 in the other, which was cut there; of 26 tokens 2 * 8 are common.
    one, other = corpus([1, 3, 3], [4, 8, 2]), corpus([3, 2], [8, 4])
    assert text_in_common(one, other) == pytest.approx(2 * 8 / 26)
    assert text_in_common(one, one) == 1 and text_in_common(one, corpus([7], [5])) == 0


def test_rank_test_of_one_stratum_is_spearmans_and_small_only_for_a_relation():
    x = [float(value) for value in range(12)]
    related = [value + (-1) ** int(value) * 2 for value in x]
    unrelated = [float(value) for value in (3, 9, 1, 7, 11, 0, 8, 2, 10, 5, 4, 6)]
    p = []
    for y in (related, unrelated):
        found = rank_test(x, y, [0] * 12)
        assert found.rho == pytest.approx(spearmanr(x, y).statistic) and (found.pairs, found.strata) == (12, 1)
        assert found.p == pytest.approx(spearmanr(x, y).pvalue, abs=0.03)
        p.append(found.p)
    assert p[0] < 0.01 < 0.3 < p[1]


def test_rank_test_within_strata_is_that_of_every_shuffle_within_them():
    # Strata of 3 and 4 pairs: 3! * 4! = 144 shuffles, each counted.
    x, y, strata = (
        [1.0, 5.0, 3.0, 10.0, 40.0, 20.0, 30.0],
        [2.0, 4.0, 3.0, 70.0, 60.0, 50.0, 80.0],
        [0, 0, 0, 1, 1, 1, 1],
    )

    def correlation(values: list[float]) -> float:
        one, other = ([(rankdata(part) - 1) / (len(part) - 1) - 0.5 for part in (of[:3], of[3:])] for of in (x, values))
        one, other = np.concatenate(one), np.concatenate(other)
        return float(one @ other / np.sqrt(one @ one * (other @ other)))

    every = [
        correlation([*first, *second])
        for first, second in itertools.product(itertools.permutations(y[:3]), itertools.permutations(y[3:]))
    ]
    found = rank_test(x, y, strata)
    assert found.rho == pytest.approx(correlation(y)) and (found.pairs, found.strata) == (7, 2)
    assert found.p == pytest.approx(np.mean([abs(one) >= abs(found.rho) - 1e-9 for one in every]), abs=0.02)


def test_rank_test_sees_no_relation_in_what_differs_between_strata_only():
    # Both values are larger in the second stratum, and go against each other or not at all within.
    x = [1.0, 2.0, 3.0, 4.0, 101.0, 102.0, 103.0, 104.0]
    y = [2.0, 4.0, 1.0, 3.0, 203.0, 201.0, 204.0, 202.0]
    found = rank_test(x, y, [0] * 4 + [1] * 4)
    assert spearmanr(x, y).pvalue < 0.05
    assert found.rho == pytest.approx(0) and found.p > 0.9


def test_rank_test_leaves_out_strata_of_one_pair_and_is_none_where_nothing_varies():
    found = rank_test([1.0, 2.0, 3.0, 9.0], [1.0, 2.0, 3.0, 0.0], ["a", "a", "a", "b"])
    assert (found.rho, found.pairs, found.strata) == (pytest.approx(1), 3, 1)
    assert rank_test([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [0] * 3) is None
    assert rank_test([1.0, 2.0], [1.0, 2.0], [0, 1]) is None and rank_test([], [], []) is None
