"""One ranking over all layers, against removing one expert of each group at a time from whichever layer is lowest."""

import statistics

import pytest
import torch

from moeprune.errors import BadInput
from moeprune.routing import Routing
from moeprune.selection import across_layers, find, uniform


def normalised(row: list[float], how: str) -> list[float]:
    finite = [value for value in row if abs(value) != float("inf")]
    mean = statistics.fmean(finite) if finite else 0.0
    spread = 1.0 if how == "share" else (statistics.pstdev(finite) if finite else 0.0) or 1.0
    return [value / (mean or 1.0) if how == "share" else (value - mean) / spread for value in row]


def slow(scores: list[list[float]], keep: int, routing: Routing, how: str, least: int) -> list[list[int]]:
    """Layers lose the lowest of each of their groups, as long as they may, where the mean of those is lowest."""
    groups, experts = routing.groups, routing.experts
    size = experts // groups
    left = [[list(range(group * size, (group + 1) * size)) for group in range(groups)] for _ in scores]
    rows = [normalised(row, how) for row in scores]

    def lowest(layer: int) -> list[int]:
        return [min(group, key=lambda expert: (scores[layer][expert], expert)) for group in left[layer]]

    def value(layer: int) -> float:
        found = [rows[layer][expert] for expert in lowest(layer)]
        return float("inf") if float("inf") in found else sum(found) / groups

    while sum(len(group) for layer in left for group in layer) > keep * len(scores):
        may = [layer for layer in range(len(scores)) if (len(left[layer][0]) - 1) * groups >= max(least, routing.least)]
        # Protected experts go last, and among them the order of the layers is that of the ranking.
        layer = min(may, key=lambda layer: (round(value(layer), 9), layer))
        for group, expert in zip(left[layer], lowest(layer), strict=True):
            group.remove(expert)
    return [sorted(expert for group in layer for expert in group) for layer in left]


def rows(found: list[torch.Tensor]) -> list[list[int]]:
    return [row.tolist() for row in found]


@pytest.mark.parametrize("how", ["deviation", "share"])
@pytest.mark.parametrize("routing", [Routing(16, 2), Routing(16, 2, 2, 1, 2), Routing(16, 4, 4, 2, 1)], ids=str)
def test_across_layers_equals_removing_one_step_at_a_time(how, routing):
    generator = torch.Generator().manual_seed(routing.groups)
    for keep in range(routing.least, 17, routing.groups):
        scores = torch.rand(5, 16, generator=generator, dtype=torch.float64) ** torch.arange(1, 6)[:, None]
        for least in (0, (routing.least + keep) // 2):
            found = across_layers.select(scores, keep, routing, normalise=how, least=least)
            assert rows(found) == slow(scores.tolist(), keep, routing, how, least)


def test_across_layers_takes_more_from_a_layer_with_more_low_outliers_and_keeps_the_sum():
    even, skewed = torch.arange(16.0), torch.tensor([0.0] * 6 + [10.0] * 10)
    found = across_layers.select(torch.stack([even, skewed]).double(), 11, Routing(16, 2))
    assert [len(row) for row in found] == [12, 10] and found[1].tolist() == list(range(6, 16))


def test_across_layers_does_not_mind_the_scale_of_a_layer_or_for_deviation_its_origin():
    scores = torch.rand(4, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    scores[0] += 2  # experts that differ less beside their mean
    scale, shift = torch.tensor([[1.0], [100.0], [0.01], [7.0]]), torch.tensor([[0.0], [5.0], [-3.0], [1.0]])
    plain = rows(across_layers.select(scores, 9, Routing(12, 2)))
    assert rows(across_layers.select(scores * scale + shift, 9, Routing(12, 2))) == plain
    share = rows(across_layers.select(scores, 9, Routing(12, 2), normalise="share"))
    assert rows(across_layers.select(scores * scale, 9, Routing(12, 2), normalise="share")) == share != plain


def test_across_layers_on_one_layer_is_uniform():
    scores = torch.randint(0, 4, (1, 16), generator=torch.Generator().manual_seed(0)).double()
    for routing in (Routing(16, 2), Routing(16, 2, 4, 2, 2)):
        assert rows(across_layers.select(scores, 12, routing)) == uniform.select(scores, 12, routing).tolist()


def test_across_layers_never_leaves_a_layer_fewer_than_the_router_or_the_option_demands():
    scores = torch.cat([torch.zeros(1, 16), torch.rand(3, 16)]).double()
    scores[0, 0] = 1000.0  # all others of the layer are equally low
    for least, expected in ((0, 4), (7, 7)):
        found = across_layers.select(scores, 8, Routing(16, 4), normalise="share", least=least)
        assert len(found[0]) == expected and sum(map(len, found)) == 32


def test_across_layers_removes_experts_without_weights_first_and_protected_ones_last():
    scores = torch.rand(2, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    scores[0, 5], scores[1, :6] = -torch.inf, torch.inf
    found = rows(across_layers.select(scores, 5, Routing(8, 2)))
    assert 5 not in found[0] and found[1][:6] == list(range(6)) and len(found[0]) + len(found[1]) == 10
    everything = torch.full((2, 8), torch.inf, dtype=torch.float64)
    assert rows(across_layers.select(everything, 5, Routing(8, 2))) == [[6, 7], list(range(8))]
    mixed = torch.tensor([[torch.inf, 0, 1, 2, -torch.inf, -torch.inf, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7]]).double()
    kept = rows(across_layers.select(mixed, 6, Routing(8, 2, 2, 1, 2)))
    assert 0 in kept[0] and not {4, 5} & set(kept[0])


def test_across_layers_gives_equal_layers_equally_many():
    scores = torch.arange(8.0).double().repeat(3, 1)
    assert [len(row) for row in across_layers.select(scores, 5, Routing(8, 2))] == [5, 5, 5]


def test_across_layers_refuses_what_it_cannot_do():
    scores = -torch.rand(2, 8, dtype=torch.float64)
    with pytest.raises(BadInput, match="set deviation"):
        across_layers.select(scores, 5, Routing(8, 2), normalise="share")
    for least in (-1, 6):
        with pytest.raises(BadInput, match=f"least: {least} is not between 0 and the 5"):
            find("across_layers").check(5, Routing(8, 2), [], {"least": least})
    assert find("across_layers").uneven and not find("uniform").uneven
