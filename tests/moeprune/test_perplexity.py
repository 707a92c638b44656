"""Negative log-likelihood token by token, and standard errors against resampling."""

import math

import pytest
import tiny
import torch

from moeprune.perplexity import Estimate, bits_per_byte, document_nll, mean, perplexity, ratio

PREFIX = 1
DOCUMENTS = [ids.tolist() for ids in tiny.token_ids(5, 23, 1, 8, 16, 9)]


def naive(model, ids: list[int], window: int) -> float:
    """Each token alone: the log-probability given what stands before it in its window."""
    text, total = [PREFIX, *ids], 0.0
    for position in range(1, len(text)):
        start = (position - 1) // window * window
        logits = tiny.logits(model, torch.tensor([text[start:position]]))[0, -1].double()
        total -= float(logits[text[position]] - logits.logsumexp(0))
    return total


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("window", [8, 64], ids=["longer than the window", "within the window"])
@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_document_nll_equals_a_loop_over_tokens(family, window, batch_size):
    model = tiny.shared_model(family)
    found = document_nll(model, DOCUMENTS, PREFIX, window, batch_size)
    expected = torch.tensor([naive(model, ids, window) for ids in DOCUMENTS], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_document_nll_every_token_is_predicted_once():
    told: list[int] = []
    document_nll(tiny.shared_model("olmoe"), DOCUMENTS, PREFIX, 8, 3, told.append)
    assert sum(told) == sum(map(len, DOCUMENTS)) and len(told) == math.ceil((1 + 3 + 1 + 1 + 2 + 2) / 3)


def test_document_nll_depends_on_the_prefix_and_an_empty_document_has_none():
    model = tiny.shared_model("olmoe")
    one, other = (document_nll(model, [*DOCUMENTS, []], prefix, 8, 4) for prefix in (1, 2))
    assert torch.all(one[:-1] != other[:-1]) and one[-1] == 0


TOKENS = torch.tensor([5.0, 23, 1, 8, 16, 9, 40, 12], dtype=torch.float64)
NLL = torch.tensor([11.0, 60, 4, 15, 41, 17, 99, 37], dtype=torch.float64)


def test_ratio_is_that_of_the_sums_not_the_mean_of_ratios():
    estimate = ratio(NLL, TOKENS)
    assert estimate.value == pytest.approx(284 / 114) and estimate.n == 8
    assert abs(estimate.value - float((NLL / TOKENS).mean())) > 0.05


def test_ratio_stderr_is_that_of_a_bootstrap_over_documents():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(20, 200, (300,), generator=generator).double()
    nll = tokens * (3 + torch.randn(300, generator=generator, dtype=torch.float64) * 0.5)
    draws = torch.randint(0, 300, (4000, 300), generator=generator)
    resampled = nll[draws].sum(1) / tokens[draws].sum(1)
    # 4000 replicates give the standard error within 1/sqrt(8000) = 1.1%; 4% is three and a half of those
    assert ratio(nll, tokens).stderr == pytest.approx(float(resampled.std()), rel=0.04)


def test_ratio_of_equal_weights_is_the_mean_and_its_stderr_the_textbook_one():
    values = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    # mean 7/3; sample variance 7/3; sqrt(7/3 / 3) = 0.8819
    assert ratio(values, torch.ones(3, dtype=torch.float64)).stderr == pytest.approx(math.sqrt(7) / 3)
    assert mean(values).value == pytest.approx(7 / 3) and mean(values).n == 3
    assert mean(values).stderr == pytest.approx(math.sqrt(7) / 3)


def test_one_document_has_no_stderr():
    one = torch.ones(1, dtype=torch.float64)
    assert ratio(one, one) == Estimate(1.0, None, 1) == mean(one)
    assert perplexity(one, one).stderr is None


def test_perplexity_and_bits_per_byte_are_the_same_likelihood():
    text_bytes = TOKENS * 3.5
    nats, bits = math.log(perplexity(NLL, TOKENS).value), bits_per_byte(NLL, text_bytes).value
    assert nats * float(TOKENS.sum()) == pytest.approx(bits * math.log(2) * float(text_bytes.sum()), rel=1e-12)
    tens = torch.full((4,), 6.0, dtype=torch.float64)  # 6 tokens each, of probability 1/10
    assert perplexity(tens * math.log(10), tens).value == pytest.approx(10)


def test_perplexity_stderr_is_that_of_a_small_change_of_the_mean():
    inner, outer = ratio(NLL, TOKENS), perplexity(NLL, TOKENS)
    step = 1e-6 * inner.stderr
    slope = (math.exp(inner.value + step) - math.exp(inner.value - step)) / (2e-6)
    assert outer.stderr == pytest.approx(slope, rel=1e-6)


def test_paired_difference_is_the_log_of_the_ratio_of_perplexities():
    after = NLL * 1.1 + 1
    found = ratio(after - NLL, TOKENS)
    expected = math.log(perplexity(after, TOKENS).value / perplexity(NLL, TOKENS).value)
    assert found.value == pytest.approx(expected, rel=1e-12) and found.n == 8
    assert ratio(NLL - NLL, TOKENS) == Estimate(0.0, 0.0, 8)


def test_paired_stderr_is_far_smaller_than_that_of_either_model():
    after = NLL + 0.01 * TOKENS
    assert ratio(after - NLL, TOKENS).stderr < 1e-6 < ratio(NLL, TOKENS).stderr
