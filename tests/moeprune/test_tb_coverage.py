"""Generic TB-Coverage against its algorithm as published, worked examples and identities."""

import logging

import pytest
import torch
from observed import observed

from moeprune.combining import combine
from moeprune.criteria import reap
from moeprune.errors import BadInput
from moeprune.routing import Routing
from moeprune.selection import tb_coverage, uniform

# Two corpora that disagree: experts 0 and 1 are best in one, 2 and 3 in the other; all four have the same mean.
FIXTURE = torch.tensor([[[9.0, 8, 1, 2, 3, 4]], [[1.0, 2, 9, 8, 3, 5]]], dtype=torch.float64)


def algorithm(rows: list[list[float]], filled: list[int], keep: int, protected: int) -> list[int]:
    """Algorithm 1 step by step, with min(B, K) to protect; equal scores: the higher id is the better."""
    experts = range(len(rows[0]))
    kept_for_certain: list[int] = []
    turn = 0
    while len(kept_for_certain) < min(protected, keep):
        row = rows[turn % len(rows)]
        best = None
        for expert in experts:
            if expert not in kept_for_certain and (best is None or row[expert] >= row[best]):
                best = expert
        kept_for_certain.append(best)
        turn += 1
    mask = set(filled) | set(kept_for_certain)
    while len(mask) > keep:
        loose = [expert for expert in mask if expert not in kept_for_certain]
        mask.remove(min(loose, key=lambda expert: (sum(row[expert] for row in rows) / len(rows), expert)))
    return sorted(mask)


def highest(row: list[float], count: int) -> list[int]:
    return sorted(range(len(row)), key=lambda expert: (row[expert], expert))[len(row) - count :]


def test_tb_coverage_worked_example_trims_the_lowest_mean_of_the_unprotected():
    # 0 and 2 are protected; of the candidate 1, 3, 4, 5 and these, 4 and then 5 go
    candidate = torch.tensor([[1, 3, 4, 5]])
    found = tb_coverage.select(FIXTURE, candidate, 4, Routing(6, 2), protected=2, fill="reconstruction")
    assert found.tolist() == [[0, 1, 2, 3]]
    # with only one protected, 0, the unprotected expert 4 goes, and 5 stays
    found = tb_coverage.select(FIXTURE, candidate, 4, Routing(6, 2), protected=1, fill="reconstruction")
    assert found.tolist() == [[0, 1, 3, 5]]


def test_tb_coverage_more_to_protect_than_to_keep_takes_turns_to_the_end_and_warns(caplog):
    with caplog.at_level(logging.WARNING, "moeprune"):
        for keep, expected in ((1, [0]), (2, [0, 2]), (3, [0, 1, 2]), (4, [0, 1, 2, 3])):
            assert tb_coverage.select(FIXTURE, None, keep, Routing(6, 1), protected=20).tolist() == [expected]
    assert len(caplog.records) == 4 and "20 experts to protect, but only 4 are kept" in caplog.text
    caplog.clear()
    tb_coverage.select(FIXTURE, None, 4, Routing(6, 1), protected=4)
    assert not caplog.records


def test_tb_coverage_the_order_of_corpora_matters_where_both_want_the_same_expert():
    rows = torch.tensor([[[3.0, 2, 1]], [[3.0, 1, 2]]], dtype=torch.float64)
    assert tb_coverage.select(rows, None, 2, Routing(3, 1), protected=2).tolist() == [[0, 2]]
    assert tb_coverage.select(rows.flip(0), None, 2, Routing(3, 1), protected=2).tolist() == [[0, 1]]


@pytest.mark.parametrize("protected", [0, 1, 3, 5, 12])
@pytest.mark.parametrize("corpora", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_tb_coverage_equals_the_algorithm_on_scores_full_of_ties(groups, corpora, protected):
    generator = torch.Generator().manual_seed(corpora)
    size = 12 // groups
    for keep in range(4, 13, groups):
        scores = torch.randint(0, 6, (corpora, 4, 12), generator=generator).double()
        share, budget = keep // groups, -(-protected // groups)
        # any candidate with the same number in each group
        drawn = torch.rand(4, groups, size, generator=generator).argsort(-1)[..., :share]
        candidate = (drawn + size * torch.arange(groups)[:, None]).flatten(1).sort(-1).values
        for given, fill in ((candidate, "reconstruction"), (None, "mean-score")):
            expected = []
            for layer in range(4):
                row = []
                for group in range(groups):
                    start = group * size
                    rows = scores[:, layer, start : start + size].tolist()
                    mean = [sum(values) / corpora for values in zip(*rows, strict=True)]
                    filled = highest(mean, share)
                    if given is not None:
                        filled = [e - start for e in given[layer].tolist() if start <= e < start + size]
                    row += [e + start for e in algorithm(rows, filled, share, budget)]
                expected.append(row)
            found = tb_coverage.select(scores, given, keep, Routing(12, 2, groups), protected=protected, fill=fill)
            assert found.tolist() == expected


def test_tb_coverage_rankings_that_agree_keep_the_highest():
    row = torch.rand(3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = torch.stack([row, row * 7 + 1, row.exp()])
    for protected in (0, 4, 16):
        found = tb_coverage.select(scores, None, 9, Routing(16, 2), protected=protected)
        assert torch.equal(found, uniform.select(row, 9, Routing(16, 2)))


@pytest.mark.parametrize("family", ["olmoe", "mixtral", "deepseek_v3"])
def test_tb_coverage_that_protects_none_is_uniform_on_the_mean_of_scores(family):
    first = observed(family).statistics
    routing = Routing(8, 2, 2, 1) if family == "deepseek_v3" else Routing(8, 2)
    noise = torch.rand(first.moments.shape[:3], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    second = first.scaled(1.0)
    second.moments[..., 1, 1] *= noise
    mean, per_corpus = combine(reap.score, [first, second], "mean")
    found = tb_coverage.select(per_corpus, None, 4, routing, protected=0)
    assert torch.equal(found, uniform.select(mean, 4, routing))


def test_tb_coverage_protects_a_third_unless_told():
    scores = torch.rand(2, 3, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    default, paper = (
        tb_coverage.select(scores, None, 30, Routing(60, 4), **options) for options in ({}, {"protected": 20})
    )
    assert torch.equal(default, paper)
    assert not torch.equal(default, tb_coverage.select(scores, None, 30, Routing(60, 4), protected=0))


def test_tb_coverage_infinite_scores_stay_and_go_first():
    scores = FIXTURE.clone()
    scores[:, 0, 4], scores[:, 0, 0] = torch.inf, -torch.inf
    assert tb_coverage.select(scores, None, 3, Routing(6, 2), protected=1).tolist() == [[2, 3, 4]]
    assert 0 not in tb_coverage.select(scores, None, 5, Routing(6, 2), protected=5)[0]


def test_tb_coverage_options_that_mean_nothing_are_refused():
    with pytest.raises(BadInput, match="give 0 or more"):
        tb_coverage.select(FIXTURE, None, 4, Routing(6, 2), protected=-1)
    for option in ({"fill_corpus": "wiki"}, {"fill_tokens": 64}):
        with pytest.raises(BadInput, match="only the fill reconstruction uses fill_corpus and fill_tokens"):
            tb_coverage.select(FIXTURE, None, 4, Routing(6, 2), **option)
    with pytest.raises(ValueError, match="do not fit together"):
        tb_coverage.select(FIXTURE, None, 4, Routing(6, 2), fill="reconstruction")
