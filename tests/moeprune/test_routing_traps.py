"""What goes wrong where nobody checks what a router demands, mostly without a word, and that it is refused."""

import families
import pytest
import tiny
import torch

from moeprune.configs import read_routing
from moeprune.errors import BadInput
from moeprune.routing import FIXED_TOP_K, Routing
from moeprune.schema import read_plan
from moeprune.slicing import sliced


def shrunk(model, keep: int) -> sliced:
    """The model with its first experts, as a checkpoint that kept these would be loaded."""
    plan = read_plan(model.config)
    return sliced(model, plan, dict.fromkeys(plan.layers, tuple(range(keep))))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


IDS = torch.stack(tiny.token_ids(24, 24))
UNEQUAL = (0, 1, 2, 3, 4, 5)  # of the groups 0..3 and 4..7


def test_groups_cut_unequally_run_as_another_model_and_are_refused():
    model = tiny.new_model("deepseek_v3")
    plan, routing = read_plan(model.config), read_routing(model.config)
    for kept, same in ((UNEQUAL, False), ((0, 1, 2, 4, 5, 6), True)):
        masked = tiny.masked_logits(model, IDS, dict.fromkeys(plan.layers, kept))
        with sliced(model, plan, dict.fromkeys(plan.layers, kept)):
            assert (distance(tiny.logits(model, IDS), masked) < 1e-5) is same
    routing.check(len(UNEQUAL))
    with pytest.raises(BadInput, match=r"layer 2 keeps \[4, 2\] experts of its 2 router groups.*keeps 3 of each"):
        routing.check_kept({1: (0, 1, 2, 4, 5, 6), 2: UNEQUAL})


def test_experts_that_groups_cannot_share_run_and_are_refused():
    model = tiny.new_model("deepseek_v3")
    with shrunk(model, 7):
        assert tiny.logits(model, IDS).isfinite().all()  # 48 tokens; 47 would be an error
    with pytest.raises(BadInput, match="nearest that work are 6 and 8"):
        read_routing(model.config).check(7)


def test_too_few_experts_in_the_groups_that_may_be_chosen_leave_the_groups_and_are_refused():
    model = tiny.new_model("deepseek_v3", num_experts_per_tok=4)
    routing, chosen = read_routing(model.config), []
    assert routing == Routing(8, 4, 2, 1, 2)
    block = tiny.moe_blocks(model)[1]
    block.gate.register_forward_hook(lambda module, inputs, output: chosen.append(output[2]))
    with shrunk(model, 4):  # two in each group, of which one may be chosen
        assert tiny.logits(model, IDS).isfinite().all()
    assert all(len(set((row // 2).tolist())) == 2 for row in chosen[0])
    with pytest.raises(BadInput, match=r"needs 8 \(top-k 4 in 1 of 2 groups\)"):
        routing.check(4)


def test_groups_of_one_fail_where_two_rank_them_and_run_where_one_does():
    model = tiny.new_model("deepseek_v3", num_experts_per_tok=1)
    with shrunk(model, 2), pytest.raises(RuntimeError):
        tiny.logits(model, IDS)
    with pytest.raises(BadInput, match="each group ranked by its best 2"):
        read_routing(model.config).check(2)
    with pytest.raises(BadInput, match="each group ranked by its best 2"):
        read_routing(with_groups(model.config, 1)).check(1)
    assert Routing(8, 2, 4, 2, 1).works(4)


def with_groups(config, groups: int):
    config.n_group = config.topk_group = groups
    return config


def test_fewer_experts_than_top_k_fail_when_run_and_are_refused():
    model = tiny.new_model("mixtral")
    with shrunk(model, 1), pytest.raises(RuntimeError):
        tiny.logits(model, IDS)
    with pytest.raises(BadInput, match="top-k 2"):
        read_routing(model.config).check(1)


def test_fixed_top_k_is_two_whatever_the_config_says():
    model = families.tiny_model("phimoe")
    model.config.num_experts_per_tok = 1
    assert FIXED_TOP_K == {"phimoe": 2} and read_routing(model.config).top_k == 2
    with shrunk(model, 1):
        assert tiny.logits(model, IDS).isnan().any()
    with pytest.raises(BadInput, match="top-k 2"):
        read_routing(model.config).check(1)
