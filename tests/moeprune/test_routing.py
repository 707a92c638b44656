"""What a router demands of the experts that are left: found by trying, told with the nearest number, never silent."""

import pytest
from transformers import (
    AXK2Config,
    BailingHybridConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    KimiLinearConfig,
    OlmoeConfig,
    PhimoeConfig,
    ZayaConfig,
)

from moeprune.configs import read_routing
from moeprune.errors import BadInput
from moeprune.masks import number_kept, ratio_kept
from moeprune.routing import Routing


def works(routing: Routing, keep: int) -> bool:
    """Whether groups are equal, each has the experts it is ranked by, and the allowed ones hold top-k experts."""
    if keep % routing.groups or keep > routing.experts:
        return False
    size = keep // routing.groups
    return size * routing.top_groups >= routing.top_k and size >= routing.ranked_by


ROUTINGS = [
    Routing(8, 2),
    Routing(64, 8),
    Routing(4, 1, 1, 1, 2),
    Routing(8, 2, 2, 1, 2),
    Routing(8, 3, 2, 1, 2),
    Routing(8, 2, 4, 2, 1),
    Routing(64, 8, 8, 4, 2),
    Routing(256, 8, 8, 4, 2),
    Routing(64, 6, 8, 3, 1),
    Routing(16, 1, 4, 4, 2),
]
every_routing = pytest.mark.parametrize("routing", ROUTINGS, ids=str)


def accepted(routing: Routing, keep: int) -> bool:
    try:
        routing.check(keep)
    except BadInput:
        return False
    return True


@every_routing
def test_check_accepts_exactly_the_numbers_that_work(routing):
    for keep in range(0, routing.experts + 3):
        assert accepted(routing, keep) == routing.works(keep) == works(routing, keep), keep


@every_routing
def test_least_is_the_smallest_number_that_works(routing):
    assert routing.least == min(keep for keep in range(1, routing.experts + 1) if works(routing, keep))


@every_routing
def test_nearest_are_the_next_numbers_that_work_on_either_side(routing):
    for keep in range(0, routing.experts + 3):
        below = next((number for number in range(keep, 0, -1) if works(routing, number)), None)
        above = next((number for number in range(keep + 1, routing.experts + 1) if works(routing, number)), None)
        assert routing.nearest(keep) == [number for number in (below, above) if number is not None]


@pytest.mark.parametrize(
    ("routing", "keep", "words"),
    [
        (Routing(64, 8), 7, "7 of 64 experts to keep, but the router needs 8 (top-k 8): the nearest that works is 8"),
        (Routing(64, 8), 65, "65 of 64 experts to keep, but a layer has only 64: the nearest that works is 64"),
        (
            Routing(64, 8, 8, 4, 2),
            50,
            "its 8 router groups must keep equally many: the nearest that work are 48 and 56",
        ),
        (Routing(256, 8, 8, 4, 2), 8, "needs 16 (top-k 8 in 4 of 8 groups): the nearest that works is 16"),
        (Routing(16, 1, 4, 4, 2), 4, "needs 8 (top-k 1 in 4 of 4 groups, each group ranked by its best 2)"),
        (Routing(8, 6, 2, 1, 2), 8, "needs 12 (top-k 6 in 1 of 2 groups): no number of experts can be kept"),
    ],
    ids=str,
)
def test_refusal_says_why_and_what_works(routing, keep, words):
    with pytest.raises(BadInput) as refusal:
        routing.check(keep, "mask.keep")
    assert str(refusal.value).startswith("mask.keep: ") and words in str(refusal.value)


def test_refusal_speaks_in_the_unit_of_the_request():
    routing = Routing(256, 8, 8, 4, 2)
    with pytest.raises(BadInput) as refusal:
        routing.check(number_kept(0.3, 256), "mask.ratio: 0.3", lambda number: f"{ratio_kept(number, 256)} ({number})")
    assert str(refusal.value).endswith("the nearest that work are 0.3125 (176) and 0.2813 (184)")
    assert number_kept(0.3125, 256) == 176 and number_kept(0.2813, 256) == 184


def deepseek_v2(method: str) -> DeepseekV2Config:
    return DeepseekV2Config(n_routed_experts=160, num_experts_per_tok=6, topk_method=method, n_group=8, topk_group=3)


@pytest.mark.parametrize(
    ("config", "routing"),
    [
        (OlmoeConfig(num_experts=64, num_experts_per_tok=8), Routing(64, 8)),
        (DeepseekV3Config(), Routing(256, 8, 8, 4, 2)),
        (DeepseekV3Config(n_group=1, topk_group=1), Routing(256, 8, 1, 1, 2)),
        (
            DeepseekV2Config(
                n_routed_experts=160, num_experts_per_tok=6, topk_method="greedy", n_group=8, topk_group=3
            ),
            Routing(160, 6),
        ),
        (
            DeepseekV2Config(
                n_routed_experts=160, num_experts_per_tok=6, topk_method="group_limited_greedy", n_group=8, topk_group=3
            ),
            Routing(160, 6, 8, 3, 1),
        ),
        (AXK2Config(n_routed_experts=16, n_group=None, topk_group=None), Routing(16, 8)),
        (AXK2Config(n_routed_experts=16, n_group=4, topk_group=2), Routing(16, 8, 4, 2, 2)),
        (BailingHybridConfig(num_experts=32, num_expert_group=4, topk_group=2), Routing(32, 8, 4, 2, 2)),
        (KimiLinearConfig(num_experts=32, num_expert_group=2, topk_group=1), Routing(32, 8, 2, 1, 2)),
        (ZayaConfig(num_experts=16, num_experts_per_tok=1), Routing(16, 1)),  # the skip class is none of the experts
        (PhimoeConfig(num_local_experts=16, num_experts_per_tok=1), Routing(16, 2)),
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_routing_is_read_from_what_the_family_does(config, routing):
    assert read_routing(config) == routing


def test_every_layer_of_a_mask_is_checked():
    routing = Routing(8, 2)
    routing.check_kept({0: (0, 1), 1: (5, 6, 7)})
    with pytest.raises(BadInput, match="mask: layer 3: 1 of 8 experts to keep, but the router needs 2"):
        routing.check_kept({0: (0, 1), 3: (5,)})
