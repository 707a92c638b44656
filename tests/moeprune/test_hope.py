"""HOPE: pairs of contributions, every set compared or the relaxed problem."""

from itertools import combinations

import pytest
import tiny
import torch
from observed import Observed, observed, relative_error
from torch import Tensor

from moeprune.errors import BadInput
from moeprune.routing import Routing
from moeprune.selection import hope, uniform
from moeprune.statistics import Statistics

FAMILIES = {"olmoe": Routing(8, 2), "mixtral": Routing(8, 2), "deepseek_v3": Routing(8, 2, 2, 1)}


def joint(case: Observed) -> list[list[list[float]]]:
    """F of each layer, from what each token did."""
    layers = []
    for layer in case.truth.values():
        table = [[0.0] * tiny.EXPERTS for _ in range(tiny.EXPERTS)]
        tokens = [[v for v in layer.visits if v.token == token] for token in range(len(layer.residual))]
        for i in range(tiny.EXPERTS):
            for j in range(tiny.EXPERTS):
                products = [
                    one.gates["deployed"] * one.norm * other.gates["deployed"] * other.norm
                    for visits in tokens
                    for one in visits
                    for other in visits
                    if (one.expert, other.expert) == (i, j)
                ]
                table[i][j] = sum(products) / len(products) if products else 0.0
        layers.append(table)
    return layers


def brute(table: list[list[float]], n: int, groups: int) -> list[int]:
    """What is kept if the cheapest of all sets of n experts that take n / groups of each group is removed."""
    size = len(table) // groups
    allowed = [
        removed
        for removed in combinations(range(len(table)), n)
        if all(sum(e // size == group for e in removed) == n // groups for group in range(groups))
    ]
    best = min(allowed, key=lambda removed: sum(table[i][j] for i in removed for j in removed))
    return [e for e in range(len(table)) if e not in best]


def statistics_of(table: Tensor) -> Statistics:
    """An observation whose F is `table` [L, E, E], every pair having met twice."""
    layers, experts, _ = table.shape
    moments = torch.zeros(1, layers, experts, 3, 3, dtype=torch.float64)
    pairs = {"pair_count": torch.full_like(table, 2), "pair_contribution": table * 2}
    return Statistics(torch.arange(layers), torch.tensor([9]), moments[..., 0, 0].long(), moments, {}, pairs)


def random_table(layers: int, experts: int, rank: int) -> Tensor:
    """Tables of products of contributions that are not negative: positive semi-definite, as if all had always met."""
    generator = torch.Generator().manual_seed(rank)
    contributions = torch.rand(layers, experts, rank, generator=generator, dtype=torch.float64)
    return contributions @ contributions.mT / rank


def value(table: Tensor, removed: Tensor) -> Tensor:
    """p^T F p of sets [L, n]."""
    p = torch.zeros(table.shape[:2], dtype=torch.float64).scatter(1, removed, 1.0)
    return (p[:, None] @ table @ p[..., None]).flatten()


@pytest.mark.parametrize("family", FAMILIES)
def test_hope_removes_the_cheapest_set_of_all(family):
    case, routing = observed(family), FAMILIES[family]
    for keep in range(4, 9, routing.groups):
        found = hope.select([case.statistics], keep, routing)
        assert found.tolist() == [brute(table, 8 - keep, routing.groups) for table in joint(case)]


def test_hope_counts_pairs_otherwise_than_experts_alone():
    # Alone 0 and 1 are cheapest; but they are chosen together, and 2 never with another.
    table = torch.tensor([[[1.0, 3, 0], [3, 1, 0], [0, 0, 1.5]]], dtype=torch.float64)
    assert hope.select([statistics_of(table)], 1, Routing(3, 1)).tolist() == [[1]]
    assert hope.select([statistics_of(table)], 1, Routing(3, 1), exact_up_to=0).tolist() != [[2]]


@pytest.mark.parametrize("family", FAMILIES)
def test_hope_diagonal_is_the_mean_squared_contribution(family):
    statistics = observed(family).statistics
    own = (statistics.sum_of(f"pair_{name}").diagonal(dim1=1, dim2=2) for name in ("contribution", "count"))
    contribution, count = own
    assert torch.equal(count, statistics.count.sum(0).double())
    assert relative_error(contribution, statistics.moments[..., 2, 2].sum(0)) < 1e-12


def test_hope_pools_the_sums_of_all_corpora():
    one, other = observed("olmoe").statistics, observed("olmoe").statistics.scaled(1.0)
    other.sums["pair_contribution"] *= torch.rand(8, generator=torch.Generator().manual_seed(1)).double() * 9
    found = hope.select([one, other], 4, Routing(8, 2))
    assert torch.equal(found, hope.select([one + other], 4, Routing(8, 2)))
    assert not torch.equal(found, hope.select([one], 4, Routing(8, 2)))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rank", [2, 12, 100])
def test_hope_relaxed_bounds_the_exact_value_from_below_and_its_rounding_from_above(rank, groups):
    table = random_table(6, 12, rank)
    for n in range(groups, 12 - groups, groups):
        p = hope.relaxed(table, n, groups)
        assert p.min() >= 0 and p.max() <= 1
        shares = p.reshape(6, groups, -1).sum(-1)
        torch.testing.assert_close(shares, torch.full_like(shares, n // groups), rtol=1e-9, atol=0)
        below = (p[:, None] @ table @ p[..., None]).flatten()
        exact = value(table, hope.exact(table, n, groups))
        rounded = value(table, hope.largest(p, n, groups))
        assert torch.all(below <= exact * (1 + 1e-9)) and torch.all(exact <= rounded * (1 + 1e-9))


def test_hope_relaxed_is_a_minimum_no_shift_between_two_experts_improves():
    # For a positive semi-definite F: wherever p could give to j and take from i, the slope does not fall.
    table = random_table(4, 40, 200)
    p = hope.relaxed(table, 13, 1)
    slope = (table @ p[..., None])[..., 0]
    takes, gives = p < 1 - 1e-6, p > 1e-6
    assert torch.all(slope.where(takes, torch.inf).amin(1) >= slope.where(gives, -torch.inf).amax(1) - 1e-6)
    assert gives.logical_and(takes).any(), "a test where all p are 0 or 1 would show nothing"


@pytest.mark.parametrize("groups", [1, 4])
def test_hope_experts_never_chosen_together_are_kept_by_their_own_contribution(groups):
    own = torch.rand(3, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    routing = Routing(64, 4, groups, groups)
    for keep in (16, 32, 60):
        found = hope.select([statistics_of(torch.diag_embed(own))], keep, routing)
        assert torch.equal(found, uniform.select(own, keep, routing))


def test_hope_relaxed_permuting_experts_permutes_the_mask():
    table, order = random_table(3, 40, 60), torch.randperm(40, generator=torch.Generator().manual_seed(2))
    plain = hope.select([statistics_of(table)], 25, Routing(40, 4))
    moved = hope.select([statistics_of(table[:, order][:, :, order])], 25, Routing(40, 4))
    for row, other in zip(plain.tolist(), moved.tolist(), strict=True):
        assert sorted(order[other].tolist()) == row


@pytest.mark.parametrize("exact_up_to", [0, 16])
def test_hope_experts_without_tokens_go_first_and_equal_ones_by_id(exact_up_to):
    table = random_table(1, 8, 20)
    table[:, [2, 6]] = 0
    table[:, :, [2, 6]] = 0
    kept = hope.select([statistics_of(table)], 6, Routing(8, 2), exact_up_to=exact_up_to)
    assert kept.tolist() == [[0, 1, 3, 4, 5, 7]]
    alike = torch.ones(1, 8, 8, dtype=torch.float64)
    kept = hope.select([statistics_of(alike)], 5, Routing(8, 2), exact_up_to=exact_up_to)
    assert kept.tolist() == [[3, 4, 5, 6, 7]]


def test_hope_too_many_sets_and_sums_not_observed_are_refused():
    statistics = statistics_of(random_table(1, 32, 4))
    with pytest.raises(BadInput, match="in more than 1000000 ways"):
        hope.select([statistics], 16, Routing(32, 2), exact_up_to=32)
    statistics.sums.clear()
    with pytest.raises(BadInput, match="add 'pairs' to observe"):
        hope.select([statistics], 16, Routing(32, 2))
