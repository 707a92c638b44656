"""Many replicates at once against one at a time."""

from dataclasses import replace
from functools import lru_cache

import pytest
import synthetic
import tiny
import torch
from observed import corpus_of, observe

from moeprune import criteria, resampling
from moeprune.combining import COMBINATIONS, combine
from moeprune.errors import BadInput
from moeprune.replicates import bootstrap
from moeprune.resampling import prepare, resampled, resampled_scores
from moeprune.statistics import GATE_MODES, MAXIMA, PER_CHUNK, Statistics

FOUND = {word: criteria.find(word) for word in criteria.words()}
OF_CHUNKS = [word for word, found in FOUND.items() if found.reads == "statistics" and not found.sums]
OF_WHOLE = [word for word, found in FOUND.items() if found.reads == "statistics" and found.sums]


@lru_cache
def corpora() -> tuple[Statistics, Statistics]:
    """Two observed corpora of three and four chunks."""
    model, ids = tiny.shared_model("olmoe"), tiny.token_ids(14, 9, 20, 12, 7, 16, 11)
    return observe(model, corpus_of(ids[:3], [0, 1, 2])), observe(model, corpus_of(ids[3:], [0, 1, 2, 3]))


def one_replicate(statistics: Statistics, weight: list[float]) -> Statistics:
    """Chunk by chunk: what counts is added that often, the largest element is that of any chunk that counts."""
    chunks = [
        Statistics(
            statistics.layer,
            statistics.tokens[c : c + 1],
            statistics.count[c : c + 1],
            statistics.moments[c : c + 1],
            {mode: value[c : c + 1] for mode, value in statistics.other_gates.items()},
            {name: value[c : c + 1] for name, value in statistics.sums.items() if name in PER_CHUNK},
        ).scaled(times)
        for c, times in enumerate(weight)
        if times > 0
    ]
    return sum(chunks[1:], chunks[0])


@pytest.mark.parametrize("mode", GATE_MODES)
@pytest.mark.parametrize("word", OF_CHUNKS)
def test_resampled_layers_stand_for_replicates_for_every_criterion_of_chunk_sums(word, mode):
    (statistics, _), score = corpora(), FOUND[word].score
    (weights,) = bootstrap([3], 6, seed=0)
    together = score(resampled(statistics, weights).in_gate_mode(mode)).reshape(6, 2, tiny.EXPERTS)
    for row, weight in zip(together, weights.tolist(), strict=True):
        alone = score(one_replicate(statistics, weight).in_gate_mode(mode))
        torch.testing.assert_close(row, alone, rtol=1e-9, atol=1e-12)
    assert together.std(0).max() > 0.01


def test_resampled_maxima_are_those_of_the_chunks_that_count():
    statistics, _ = corpora()
    weights = torch.tensor([[3.0, 0, 0], [0, 1.5, 1.5], [1, 1, 1]], dtype=torch.float64)
    whole = resampled(statistics, weights)
    for name in MAXIMA:
        value = statistics.sum_of(name)
        expected = torch.cat([value[:1], value[1:].amax(0, keepdim=True), value.amax(0, keepdim=True)], 1)
        assert torch.equal(whole.sum_of(name), expected)


def test_resampled_counts_every_chunk_as_often_as_it_says():
    count = torch.tensor([[[1, 2]], [[10, 20]]])
    statistics = replace(synthetic.statistics_of(count.double(), count.double()), count=count)
    whole = resampled(statistics, torch.tensor([[2.0, 0], [0.5, 1.5]], dtype=torch.float64))
    assert whole.count.tolist() == [[[2, 4], [15.5, 31]]] and whole.count.dtype == torch.float64
    assert whole.layer.tolist() == [0, 0]


@pytest.mark.parametrize("blocks", [1, 2**40])
@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
@pytest.mark.parametrize("how", COMBINATIONS)
def test_resampled_scores_are_those_of_combine_one_replicate_at_a_time(how, weights, blocks, monkeypatch):
    if how == "max" and weights:
        pytest.skip("a maximum has no weights")
    monkeypatch.setattr(resampling, "BLOCK_BYTES", blocks)
    data, score = list(corpora()), FOUND["reap"].score
    replicates = bootstrap([3, 4], 5, seed=2)
    found = resampled_scores(score, data, replicates, how, weights)
    for number in range(5):
        drawn = [one_replicate(s, w[number].tolist()) for s, w in zip(data, replicates, strict=True)]
        torch.testing.assert_close(found[number], combine(score, drawn, how, weights)[0], rtol=1e-9, atol=1e-12)


def test_prepare_scores_all_the_data_and_keeps_only_what_is_read():
    data = list(corpora())
    made = prepare({word: FOUND[word].score for word in ("reap", "easy_ep")}, data)
    assert set(made.corpora[0].sums) == {"easy_ep"} and not made.corpora[0].other_gates
    assert made.chunks == (3, 4) and made.corpora[0].count.shape[0] == 7
    assert torch.equal(made.scores["reap"], combine(FOUND["reap"].score, data, "pooled")[0])
    gated = prepare({"": lambda given: FOUND["reap"].score(given.in_gate_mode("softmax_topk"))}, data)
    assert "softmax_topk" in gated.corpora[0].other_gates


@pytest.mark.parametrize("word", OF_WHOLE)
def test_criteria_of_sums_of_a_whole_corpus_are_refused_by_name(word):
    assert OF_WHOLE
    with pytest.raises(BadInput, match=f"criterion '{word}' reads 'output_sum', which is kept for a whole corpus"):
        prepare({"reap": FOUND["reap"].score, word: FOUND[word].score}, list(corpora()))


def test_criteria_that_depend_on_the_number_of_tokens_are_refused():
    with pytest.raises(BadInput, match=r"criterion 'share' .* number of tokens"):
        prepare({"share": lambda given: given.count.sum(0) / given.tokens.sum()}, list(corpora()))


def test_criteria_that_are_no_numbers_where_a_replicate_has_no_token_of_an_expert_are_refused_by_name():
    count = torch.tensor([[[1.0, 2]], [[0.0, 20]]])  # all tokens of the first expert are in one chunk
    data = [synthetic.statistics_of(count.double(), count.double())]
    criterion = {"mean": lambda given: given.moments[..., 0, 1].sum(0) / given.count.sum(0)}
    made = prepare(criterion, data)
    (block,) = made.blocks([torch.tensor([[1.0, 1.0], [0.0, 2.0]], dtype=torch.float64)])
    with pytest.raises(BadInput, match=r"criterion 'mean' gives scores that are not numbers for some parts"):
        made.block_scores("mean", block)


def test_a_group_that_was_not_observed_is_named():
    data = [replace(corpus, sums={}) for corpus in corpora()]
    with pytest.raises(BadInput, match=r"add 'core' to observe\.sums"):
        prepare({"easy_ep": FOUND["easy_ep"].score}, data)
