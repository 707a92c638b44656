"""Sums are additive, over chunks, batches and corpora."""

import pytest
import tiny
import torch
from observed import corpus_of, observe

from moeprune.errors import BadInput
from moeprune.files import load_statistics, save_statistics
from moeprune.observation import observe_chunk
from moeprune.observer import Observer
from moeprune.statistics import GROUPS, MAXIMA, Statistics

SEQUENCES = tiny.token_ids(14, 9, 20, 7, 16, 11)
families = pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])


def all_sums(statistics: Statistics) -> dict[str, torch.Tensor]:
    own = {"tokens": statistics.tokens, "count": statistics.count, "moments": statistics.moments}
    return own | statistics.other_gates | statistics.sums


def assert_same(found: Statistics, expected: Statistics) -> None:
    """Equal but for the order of float32 and float64 additions."""
    assert torch.equal(found.count, expected.count) and torch.equal(found.tokens, expected.tokens)
    assert all_sums(found).keys() == all_sums(expected).keys()
    for name, value in all_sums(expected).items():
        torch.testing.assert_close(all_sums(found)[name], value, rtol=1e-5, atol=1e-5, msg=name)


@families
def test_statistics_of_two_corpora_together_are_the_sum_of_both(family):
    model = tiny.shared_model(family)
    a = observe(model, corpus_of(SEQUENCES[:3], [0, 0, 0]))
    b = observe(model, corpus_of(SEQUENCES[3:], [0, 0, 0]))
    both = observe(model, corpus_of(SEQUENCES, [0] * 6), batch_size=6)
    assert_same(a + b, both)
    assert_same(b + a, both)
    for name in MAXIMA:
        larger = torch.maximum(a.sums[name], b.sums[name])
        assert torch.equal((a + b).sums[name], larger) and not torch.equal(larger, a.sums[name])


@families
def test_total_over_chunks_equals_one_chunk(family):
    model = tiny.shared_model(family)
    chunked = observe(model, corpus_of(SEQUENCES, [0, 0, 1, 1, 2, 2]))
    assert chunked.tokens.tolist() == [23, 27, 27]
    assert_same(chunked.total(), observe(model, corpus_of(SEQUENCES, [0] * 6)))


@families
def test_chunk_holds_the_sums_of_its_own_blocks_alone(family):
    model = tiny.shared_model(family)
    chunked = observe(model, corpus_of(SEQUENCES, [0, 0, 1, 1, 2, 2]))
    for chunk in range(3):
        alone = observe(model, corpus_of(SEQUENCES[2 * chunk : 2 * chunk + 2], [0, 0]))
        torch.testing.assert_close(chunked.moments[chunk], alone.moments[0], rtol=1e-5, atol=0)
        assert torch.equal(chunked.count[chunk], alone.count[0])


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@families
def test_batch_size_does_not_change_the_sums(family, batch_size):
    model, corpus = tiny.shared_model(family), corpus_of(SEQUENCES, [0] * 6)
    assert_same(observe(model, corpus, batch_size), observe(model, corpus, batch_size=6))


def test_same_run_twice_is_bit_equal():
    model, corpus = tiny.shared_model("qwen2_moe"), corpus_of(SEQUENCES, [0, 0, 1, 1, 2, 2])
    first, second = all_sums(observe(model, corpus)), all_sums(observe(model, corpus))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_chunks_not_yet_observed_are_zero_and_their_maxima_minus_infinity():
    corpus = corpus_of(SEQUENCES, [0, 0, 1, 1, 2, 2])
    with Observer(tiny.shared_model("olmoe"), ("core",), ("deployed",)) as observer:
        part = observe_chunk(tiny.shared_model("olmoe"), observer, corpus, chunk=1, batch_size=2)
    assert part.tokens.tolist() == [0, 27, 0]
    for chunk in (0, 2):
        assert not part.count[chunk].any() and not part.moments[chunk].any()
        assert not part.sums["probability"][chunk].any() and not part.sums["easy_ep"][chunk].any()
        assert torch.all(part.sums["max_activation"][chunk] == -torch.inf)
    assert part.count[1].sum() == 2 * tiny.TOP_K * 27


def test_batches_are_cut_to_the_longest_block_and_stay_in_their_chunk():
    corpus = corpus_of(SEQUENCES, [0, 0, 1, 1, 2, 2])
    batches = [(ids.shape, mask.sum(1).tolist()) for ids, mask in corpus.batches(2, size=8)]
    assert batches == [((2, 16), [16, 11])]
    assert [mask.sum(1).tolist() for _, mask in corpus.batches(0, size=1)] == [[14], [9]]


def test_progress_is_told_every_token_once():
    told = []
    with Observer(tiny.shared_model("olmoe"), ("core",), ("deployed",)) as observer:
        observe_chunk(tiny.shared_model("olmoe"), observer, corpus_of(SEQUENCES, [0] * 6), 0, 4, told.append)
    assert told == [14 + 9 + 20 + 7, 16 + 11]


def test_adding_statistics_with_unlike_sums_or_layers_is_refused():
    corpus = corpus_of(SEQUENCES, [0] * 6)
    full = observe(tiny.shared_model("olmoe"), corpus)
    with pytest.raises(ValueError, match="unlike"):
        full + observe(tiny.shared_model("deepseek_v3"), corpus)  # layers 0, 1 and 1, 2
    with Observer(tiny.shared_model("olmoe"), ("core",), ("deployed",)) as observer:
        core = observe_chunk(tiny.shared_model("olmoe"), observer, corpus, 0, 4)
    with pytest.raises(ValueError, match="unlike"):
        full + core


def test_sums_not_observed_are_refused_with_the_key_to_set():
    corpus = corpus_of(SEQUENCES, [0] * 6)
    with Observer(tiny.shared_model("olmoe"), ("core",), ("deployed",)) as observer:
        core = observe_chunk(tiny.shared_model("olmoe"), observer, corpus, 0, 4)
    for group, names in GROUPS.items():
        for name in names:
            if group == "core":
                core.sum_of(name)
            else:
                with pytest.raises(BadInput, match=f"add '{group}' to observe.sums"):
                    core.sum_of(name)
    with pytest.raises(BadInput, match=r"observe\.gate_modes"):
        core.in_gate_mode("softmax_topk")
    with pytest.raises(BadInput, match="did you mean 'softmax_topk'"):
        core.in_gate_mode("softmax_top")


def test_statistics_file_holds_what_was_observed_and_equal_content_is_equal_bytes(tmp_path):
    statistics = observe(tiny.shared_model("olmoe"), corpus_of(SEQUENCES, [0, 0, 1, 1, 2, 2]))
    save_statistics(tmp_path / "a", statistics)
    loaded = load_statistics(tmp_path / "a")
    assert all_sums(loaded).keys() == all_sums(statistics).keys()
    assert all(torch.equal(all_sums(loaded)[name], value) for name, value in all_sums(statistics).items())
    save_statistics(tmp_path / "b", loaded)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
