"""Which experts stay: one total order, equal losses of groups, never fewer than the router needs."""

from itertools import combinations

import pytest
import torch

from moeprune import selection
from moeprune.errors import BadInput
from moeprune.routing import Routing
from moeprune.selection import uniform
from moeprune.statistics import Statistics

every_rule = pytest.mark.parametrize(
    "word", [word for word in selection.words() if "model" not in selection.find(word).reads]
)


def scores_of(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def apply(word: str, scores: torch.Tensor, keep: int, routing: Routing) -> list[list[int]]:
    """What a rule keeps of one corpus in which no two experts are chosen together and contributions are the scores."""
    rule = selection.find(word)
    layers, experts = scores.shape
    moments = torch.zeros(1, layers, experts, 3, 3, dtype=torch.float64)
    pairs = {
        "pair_count": torch.eye(experts).double().expand(layers, -1, -1),
        "pair_contribution": torch.diag_embed(scores * scores.abs()),
    }
    statistics = Statistics(torch.arange(layers), torch.tensor([1]), moments[..., 0, 0].long(), moments, {}, pairs)
    given = {
        "scores": scores,
        "per_corpus": scores[None],
        "statistics": [statistics],
        "candidate": None,
        "keep": keep,
        "routing": routing,
    }
    return [row.tolist() for row in rule.select(**{name: given[name] for name in rule.reads})]


def slow(row: list[float], keep: int, groups: int) -> list[int]:
    """Of each group, remove one by one the lowest score, of equal ones the lowest id."""
    size, kept = len(row) // groups, []
    for group in range(groups):
        left = list(range(group * size, (group + 1) * size))
        while len(left) > keep // groups:
            left.remove(min(left, key=lambda expert: (row[expert], expert)))
        kept += left
    return kept


def test_uniform_keeps_the_highest_of_each_layer():
    scores = scores_of([0.1, 0.9, 0.5, 0.7], [4.0, 3.0, 2.0, 1.0])
    assert uniform.select(scores, 2, Routing(4, 2)).tolist() == [[1, 3], [0, 1]]


def test_uniform_ties_are_broken_by_expert_id_the_lower_goes():
    assert uniform.select(scores_of([1.0] * 6), 4, Routing(6, 2)).tolist() == [[2, 3, 4, 5]]
    assert uniform.select(scores_of([1.0] * 512), 500, Routing(512, 8)).tolist() == [list(range(12, 512))]
    assert uniform.select(scores_of([5.0, 1.0, 1.0, 1.0, 0.0, 1.0]), 3, Routing(6, 2)).tolist() == [[0, 3, 5]]


def test_uniform_groups_lose_equally_even_where_one_group_is_better():
    scores = scores_of([9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0])
    assert uniform.select(scores, 4, Routing(8, 2, groups=2)).tolist() == [[0, 1, 6, 7]]


def test_uniform_dead_experts_go_first_and_ties_among_them_by_id():
    row = [-torch.inf, 0.0, -torch.inf, -5.0]
    assert uniform.select(scores_of(row), 3, Routing(4, 1)).tolist() == [[1, 2, 3]]
    assert uniform.select(scores_of(row), 2, Routing(4, 1)).tolist() == [[1, 3]]


def test_uniform_protected_experts_stay_and_ties_among_them_go_by_id():
    row = [torch.inf, -torch.inf, torch.inf, 5.0, torch.inf]
    assert uniform.select(scores_of(row), 4, Routing(5, 1)).tolist() == [[0, 2, 3, 4]]
    assert uniform.select(scores_of(row), 2, Routing(5, 1)).tolist() == [[2, 4]]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_uniform_equals_removing_one_by_one_on_scores_full_of_ties(groups):
    generator = torch.Generator().manual_seed(groups)
    for keep in range(2 * groups, 17, groups):
        scores = torch.randint(0, 4, (5, 16), generator=generator).double()
        found = uniform.select(scores, keep, Routing(16, 2, groups, top_groups=1))
        assert found.tolist() == [slow(row, keep, groups) for row in scores.tolist()]


def test_uniform_kept_scores_have_the_largest_sum_of_any_choice():
    scores = torch.rand(1, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best = max(combinations(range(7), 3), key=lambda chosen: float(scores[0, list(chosen)].sum()))
    assert uniform.select(scores, 3, Routing(7, 2)).tolist() == [list(best)]


@every_rule
def test_rule_permuting_experts_permutes_the_mask(word):
    generator = torch.Generator().manual_seed(0)
    scores, order = torch.rand(3, 12, generator=generator, dtype=torch.float64), torch.randperm(12, generator=generator)
    plain, moved = (apply(word, values, 7, Routing(12, 2)) for values in (scores, scores[:, order]))
    for row, other in zip(plain, moved, strict=True):
        assert sorted(order[other].tolist()) == row


@every_rule
def test_rule_gives_ascending_distinct_experts_and_all_of_them_if_all_stay(word):
    scores = torch.rand(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for keep in range(2, 9):
        kept = apply(word, scores, keep, Routing(8, 2))
        assert all(row == sorted(set(row)) and set(row) <= set(range(8)) for row in kept)
        assert sum(map(len, kept)) == 3 * keep and all(len(row) >= 2 for row in kept)
        assert selection.find(word).uneven or {len(row) for row in kept} == {keep}
    assert apply(word, scores, 8, Routing(8, 2)) == [list(range(8))] * 3


@every_rule
def test_rule_refuses_scores_that_are_not_numbers(word):
    with pytest.raises(ValueError, match="NaN"):
        apply(word, scores_of([1.0, torch.nan, 2.0, 3.0]), 2, Routing(4, 2))


@every_rule
def test_rule_refuses_fewer_than_top_k_more_than_all_and_uneven_groups(word):
    scores = torch.rand(2, 8, dtype=torch.float64)
    with pytest.raises(BadInput, match="the nearest that works is 4"):
        apply(word, scores, 3, Routing(8, 4))
    with pytest.raises(BadInput, match="only 8"):
        apply(word, scores, 9, Routing(8, 4))
    with pytest.raises(BadInput, match="the nearest that work are 6 and 8"):
        apply(word, scores, 7, Routing(8, 2, groups=2))


def test_unknown_rule_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'uniform'"):
        selection.find("unifrom")


def test_rule_says_what_it_reads_and_which_options_it_takes():
    rule = selection.find("tb_coverage")
    assert rule.reads == ("per_corpus", "candidate", "keep", "routing") and rule.sums == ()
    assert rule.options({"protected": 3}) == {"protected": 3, "fill": "mean-score", "fill_corpus": "", "fill_tokens": 0}
    assert rule.options({"protected": None})["protected"] is None
    assert rule.module == "moeprune.selection.tb_coverage"
    assert selection.find("hope").sums == ("pairs",)
    with pytest.raises(BadInput, match="did you mean 'reconstruction'"):
        rule.options({"fill": "recontruction"})
    with pytest.raises(BadInput, match="not of type int or none"):
        rule.options({"protected": 0.5})
    with pytest.raises(BadInput, match=r"mask\.options\.b: selection 'uniform' takes no options"):
        selection.find("uniform").options({"b": 1})
