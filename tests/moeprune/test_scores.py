"""Every criterion of sums against lists of what each token did, on models that route in different ways."""

from functools import lru_cache, reduce
from operator import add

import pytest
import tiny
import torch
from observed import corpus_of, observe, observed, relative_error

from moeprune import criteria
from moeprune.criteria import ean_ca, easy_ep, frequency, man, mone, reap, unified
from moeprune.errors import BadInput
from moeprune.statistics import GATE_MODES, Statistics

FOUND = {word: criteria.find(word) for word in criteria.words()}
OF_SUMS = [word for word, found in FOUND.items() if found.reads == "statistics"]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


# From (gate, norm) of each token routed to the expert.
SLOW = {
    "frequency": lambda visits: len(visits),
    "seer": lambda visits: sum(g for g, n in visits),
    "ean": lambda visits: sum(n for g, n in visits),
    "gate_weighted_ean": lambda visits: sum(g * n for g, n in visits),
    "squared_gate_energy": lambda visits: sum((g * n) ** 2 for g, n in visits),
    "reap": lambda visits: mean([g * n for g, n in visits]),
    "unified": lambda visits: mean([g * n for g, n in visits]),
    "man": lambda visits: mean([n for g, n in visits]),
    "msan": lambda visits: mean([n**2 for g, n in visits]),
}


@pytest.mark.parametrize("mode", GATE_MODES)
@pytest.mark.parametrize("word", SLOW)
@pytest.mark.parametrize("family", tiny.EXPLAINED)
def test_score_equals_brute_force_over_tokens(family, word, mode):
    case = observed(family)
    found = FOUND[word].score(case.statistics.in_gate_mode(mode))
    expected = case.expected(lambda layer, e: SLOW[word]([(v.gates[mode], v.norm) for v in layer.of(e)]))
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("mode", GATE_MODES)
@pytest.mark.parametrize("how", ["mean", "sum"])
@pytest.mark.parametrize("family", tiny.EXPLAINED)
def test_mone_equals_the_standard_deviation_of_each_dimension(family, how, mode):
    case = observed(family)

    def slow(layer: tiny.LayerTruth, expert: int) -> float:
        visits = layer.of(expert)
        if len(visits) < 2:
            return 0.0
        gates = [v.gates[mode] for v in visits]
        deviation = torch.stack([v.output for v in visits]).std(0, correction=1)
        return float(deviation.norm()) * (mean(gates) if how == "mean" else sum(gates))

    found = mone.score(case.statistics.in_gate_mode(mode), frequency=how)
    assert relative_error(found, case.expected(slow)) < 1e-5


@pytest.mark.parametrize("family", tiny.EXPLAINED)
def test_ean_ca_equals_the_length_of_the_mean_output_and_is_at_most_man(family):
    case = observed(family)

    def slow(layer: tiny.LayerTruth, expert: int) -> float:
        outputs = [v.output for v in layer.of(expert)]
        return float(torch.stack(outputs).mean(0).norm()) if outputs else 0.0

    found = ean_ca.score(case.statistics)
    assert relative_error(found, case.expected(slow)) < 1e-5
    assert torch.all(found <= man.score(case.statistics) * (1 + 1e-6))


@pytest.mark.parametrize("family", tiny.EXPLAINED)
def test_easy_ep_equals_contributions_times_the_turn_of_their_token(family):
    case = observed(family)

    def turn(layer: tiny.LayerTruth, token: int) -> float:
        x = layer.residual[token]
        added = sum(v.gates["deployed"] * v.output for v in layer.visits if v.token == token)
        return max(1 - float(torch.cosine_similarity(x, x + added, dim=0)), 0)

    expected = case.expected(
        lambda layer, e: sum(v.gates["deployed"] * v.norm * turn(layer, v.token) for v in layer.of(e))
    )
    assert relative_error(easy_ep.score(case.statistics), expected) < 1e-5


@pytest.mark.parametrize("family", tiny.EXPLAINED)
def test_score_without_gates_is_equal_in_all_gate_modes_and_one_with_gates_is_not(family):
    modes = [observed(family).statistics.in_gate_mode(mode) for mode in GATE_MODES]
    for word in OF_SUMS:
        first, *others = (FOUND[word].score(statistics) for statistics in modes)
        gated = word in ("seer", "gate_weighted_ean", "squared_gate_energy", "reap", "unified", "mone")
        assert all(torch.equal(first, other) for other in others) != gated


@lru_cache
def observed_apart(family: str) -> tuple[Statistics, Statistics]:
    """The tokens of `observed` in chunks of one sequence, and the sum of passes over one sequence each."""
    model, sequences = tiny.shared_model(family), tiny.token_ids(14, 9, 20)
    chunked = observe(model, corpus_of(sequences, [0, 1, 2]))
    return chunked, reduce(add, (observe(model, corpus_of([one], [0])) for one in sequences))


@pytest.mark.parametrize("word", OF_SUMS)
@pytest.mark.parametrize("family", ["olmoe", "mixtral", "deepseek_v3"])
def test_score_of_chunks_summed_equals_that_of_one_pass(family, word):
    chunked, separate = observed_apart(family)
    whole = FOUND[word].score(observed(family).statistics)
    assert len(chunked.tokens) == 3 and len(separate.tokens) == 1
    for statistics in (chunked, chunked.total(), separate):
        torch.testing.assert_close(FOUND[word].score(statistics), whole, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("b", "a", "c"), [(b, a, c) for b in (0, 1) for a in range(3) for c in range(3) if (b, a, c) != (1, 0, 0)]
)
def test_unified_every_exponent_equals_brute_force(b, a, c):
    case = observed("deepseek_v3")

    def slow(layer: tiny.LayerTruth, expert: int) -> float:
        visits = layer.of(expert)
        return sum(v.gates["deployed"] ** a * v.norm**c for v in visits) / max(len(visits), 1) ** b

    assert relative_error(unified.score(case.statistics, b=b, a=a, c=c), case.expected(slow)) < 1e-5


def statistics_of(visits: list[tuple[int, float, float]], experts: int) -> Statistics:
    """One layer, one chunk, from (expert, gate, norm) of each visit."""
    moments = torch.zeros(1, 1, experts, 3, 3, dtype=torch.float64)
    for expert, g, n in visits:
        moments[0, 0, expert] += torch.tensor([[g**a * n**c for c in range(3)] for a in range(3)], dtype=torch.float64)
    return Statistics(torch.tensor([0]), torch.tensor([2]), moments[..., 0, 0].long(), moments)


def test_reap_worked_example():
    # Tokens go to experts 0 and 1 with gates .6 and .4, and to 0 and 2 with .5 and .5; norms 3, 2 and 1, 4.
    # Expert 0: (.6 * 3 + .5 * 1) / 2 = 1.15; expert 1: .4 * 2 = .8; expert 2: .5 * 4 = 2; expert 3 saw no token.
    statistics = statistics_of([(0, 0.6, 3), (1, 0.4, 2), (0, 0.5, 1), (2, 0.5, 4)], experts=4)
    torch.testing.assert_close(reap.score(statistics), torch.tensor([[1.15, 0.8, 2.0, 0.0]], dtype=torch.float64))


def test_unified_constant_member_and_other_exponents_are_refused():
    statistics = statistics_of([(0, 0.5, 1)], experts=2)
    with pytest.raises(BadInput, match="every expert alike"):
        unified.score(statistics, b=1, a=0, c=0)
    for exponents in ({"b": 2}, {"a": 3}, {"c": -1}):
        with pytest.raises(BadInput, match="exponents"):
            unified.score(statistics, **exponents)


def test_mone_worked_example_and_too_few_tokens():
    # Outputs (3, 4) and (0, 1) with gates .5 and .1: deviations sqrt(4.5) and sqrt(4.5), so 3 times the mean gate .3;
    # expert 1 saw one token, expert 2 none.
    statistics = statistics_of([(0, 0.5, 5), (0, 0.1, 1), (1, 0.9, 2)], experts=3)
    statistics.sums["output_sum"] = torch.tensor([[[3.0, 5.0], [2.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(mone.score(statistics), torch.tensor([[0.9, 0, 0]], dtype=torch.float64))
    summed = mone.score(statistics, frequency="sum")
    torch.testing.assert_close(summed, torch.tensor([[1.8, 0, 0]], dtype=torch.float64))


def test_mone_outputs_all_alike_score_zero_and_never_the_root_of_a_negative_number():
    statistics = statistics_of([(0, 0.5, 0.1)] * 7, experts=1)
    statistics.sums["output_sum"] = torch.tensor([[[0.7000000001]]], dtype=torch.float64)
    assert mone.score(statistics).item() == 0


def test_mean_criterion_weighted_sums_keep_their_mean():
    statistics = statistics_of([(0, 0.6, 3), (1, 0.4, 2)], experts=2)
    torch.testing.assert_close(reap.score(statistics.scaled(0.25)), reap.score(statistics))
    torch.testing.assert_close(frequency.score(statistics.scaled(0.25)), frequency.score(statistics) * 0.25)
