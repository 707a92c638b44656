"""A model sliced in memory against the checkpoint written by surgery, and against the masked whole model."""

import families
import pytest
import tiny
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moeprune.checkpoint import open_checkpoint
from moeprune.errors import BadInput
from moeprune.file_plan import read_file_plan
from moeprune.masks import Mask
from moeprune.schema import Axis, Plan, read_plan
from moeprune.slicing import routed_without, sliced, whole_numbers
from moeprune.surgery import prune_checkpoint

TOLERANCE = 1e-5
IDS = torch.stack(tiny.token_ids(24, 24))
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
SOME = ((0, 1, 3, 4, 6, 7), (1, 2, 3, 4, 5, 6))
"""Six of eight experts, three of each half as two router groups demand."""


def kept_of(plan: Plan) -> dict[int, tuple[int, ...]]:
    """Other experts in each layer."""
    return dict(zip(plan.layers, SOME, strict=True))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def state_of(model: nn.Module) -> tuple[dict[str, int], dict[str, dict[str, object]]]:
    """Which tensors a model holds, and every plain attribute of its modules."""
    tensors = {name: id(tensor) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    attributes = {
        name: {key: value for key, value in vars(module).items() if not key.startswith("_")}
        for name, module in model.named_modules()
    }
    return tensors, attributes


@every_family
def test_sliced_model_equals_the_pruned_checkpoint_and_the_masked_model(family, tmp_path):
    model = tiny.new_model(family)
    plan = read_plan(model.config)
    kept, before = kept_of(plan), tiny.logits(model, IDS)
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "pruned").mkdir()
    mask = Mask("0" * 64, plan.experts, kept)
    prune_checkpoint(open_checkpoint(tmp_path / "whole"), plan, mask, tmp_path / "pruned", 10**9)
    with sliced(model, plan, kept):
        found = tiny.logits(model, IDS)
    assert distance(found, tiny.logits(tiny.load(tmp_path / "pruned"), IDS)) < TOLERANCE
    assert distance(found, tiny.masked_logits(model, IDS, kept)) < TOLERANCE
    assert distance(found, before) > 1e-2, "slicing changed nothing: the comparison shows nothing"


@every_family
@pytest.mark.parametrize("experts", [True, False])
def test_sliced_model_is_whole_again_afterwards(family, experts):
    model = tiny.new_model(family)
    plan = read_plan(model.config)
    logits, before = tiny.logits(model, IDS), state_of(model)
    with sliced(model, plan, kept_of(plan), experts):
        assert state_of(model) != before
    assert state_of(model) == before
    assert torch.equal(tiny.logits(model, IDS), logits)


@every_family
def test_sliced_block_that_raises_leaves_the_model_whole(family):
    model = tiny.new_model(family)
    plan, before = read_plan(model.config), state_of(model)
    with pytest.raises(IndexError), sliced(model, plan, kept_of(plan)):
        tiny.logits(model, IDS + tiny.VOCABULARY)
    assert state_of(model) == before


def test_sliced_plan_of_another_model_is_refused_and_nothing_stays_changed():
    model, other = tiny.new_model("olmoe"), read_plan(tiny.shared_model("deepseek_v3").config)
    before = state_of(model)
    with (
        pytest.raises(BadInput, match="layer 2 of OlmoeForCausalLM"),
        sliced(model, read_plan(model.config), {0: SOME[0]} | kept_of(other)),
    ):
        pass
    assert state_of(model) == before


@every_family
def test_sliced_layers_not_named_stay_whole(family):
    model = tiny.new_model(family)
    plan = read_plan(model.config)
    first, last = plan.layers
    with sliced(model, plan, {last: SOME[1]}):
        found = tiny.logits(model, IDS)
    kept = {first: tuple(range(tiny.EXPERTS)), last: SOME[1]}
    assert distance(found, tiny.masked_logits(model, IDS, kept)) < TOLERANCE


@every_family
def test_sliced_without_experts_routes_alike_and_copies_no_expert(family):
    model = tiny.new_model(family)
    plan = read_plan(model.config)
    first = plan.layers[0]  # what comes before it is the same either way
    module = tiny.moe_blocks(model)[first].experts
    weights = [id(weight) for weight in module.parameters()]
    seen = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    with sliced(model, plan, {first: SOME[0]}):
        tiny.logits(model, IDS)
    with sliced(model, plan, {first: SOME[0]}, experts=False):
        assert [id(weight) for weight in module.parameters()] == weights
        assert module.num_experts == tiny.EXPERTS
        tiny.logits(model, IDS)
    handle.remove()
    (_, expert, gate), (_, same_expert, same_gate) = seen
    assert torch.equal(expert, same_expert) and torch.equal(gate, same_gate)
    assert expert.max() == len(SOME[0]) - 1


@pytest.mark.parametrize("family", ["jetmoe", "deepseek_v4"])
def test_sliced_attention_experts_and_token_tables_equal_the_pruned_checkpoint(family, tmp_path):
    # jetmoe: the same experts leave its attention; deepseek_v4: tokens bound to experts that left get others.
    model = families.tiny_model(family)
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "pruned").mkdir()
    source = open_checkpoint(tmp_path / "whole")
    plan, before = read_file_plan(source), state_of(model)
    kept = {layer: SOME[layer % 2] for layer in plan.layers}
    prune_checkpoint(source, plan, Mask("0" * 64, plan.experts, kept), tmp_path / "pruned", 10**9)
    expected = tiny.logits(tiny.load(tmp_path / "pruned"), IDS)
    assert distance(expected, tiny.logits(model, IDS)) > 1e-3
    for block in (sliced, routed_without):
        with block(model, plan, kept):
            assert distance(tiny.logits(model, IDS), expected) < TOLERANCE
        assert state_of(model) == before


def test_positions_follow_blocks_of_rows_and_keep_the_rows_of_no_expert():
    assert Axis(0, 1, 0).positions((1, 3), 4).tolist() == [1, 3]
    assert Axis(0, 3, 0).positions((0, 2), 4).tolist() == [0, 1, 2, 6, 7, 8]
    assert Axis(0, 1, 2).positions((1, 2), 4).tolist() == [1, 2, 4, 5]  # two shared experts come last


@pytest.mark.parametrize("axis", [Axis(0, 1, 0), Axis(0, 3, 0), Axis(1, 1, 2), Axis(2, 3, 2)])
def test_resized_shape_is_that_of_the_tensor_cut(axis):
    shape = [5, 5, 5]
    shape[axis.dimension] = 4 * axis.rows + axis.rest
    cut = torch.zeros(shape).index_select(axis.dimension, axis.positions((1, 3), 4))
    assert axis.resized(tuple(shape), 2) == tuple(cut.shape)


@every_family
def test_routed_without_equals_the_masked_model_and_copies_no_expert(family):
    model = tiny.new_model(family)
    plan = read_plan(model.config)
    before = state_of(model)
    weights = [id(weight) for block in tiny.moe_blocks(model).values() for weight in block.experts.parameters()]
    with routed_without(model, plan, kept_of(plan)):
        found = tiny.logits(model, IDS)
        assert weights == [id(w) for block in tiny.moe_blocks(model).values() for w in block.experts.parameters()]
    assert distance(found, tiny.masked_logits(model, IDS, kept_of(plan))) < TOLERANCE
    assert state_of(model) == before


def test_numbers_among_the_kept_become_numbers_among_all_and_those_beyond_stay_beyond():
    assert whole_numbers(torch.tensor([[0, 2], [1, 3]]), (1, 4, 6), 8).tolist() == [[1, 6], [4, 8]]


def test_sliced_router_that_asks_its_config_for_the_class_that_skips_still_finds_it():
    values = {"num_experts": tiny.EXPERTS, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    sizes = {"vocab_size": tiny.VOCABULARY, "hidden_size": 32, "head_dim": 8, "router_hidden_size": 16}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["zaya"](**values, **sizes, **heads)).eval()
    block, seen = model.model.layers[1].mlp, []
    block.gate.balancing_biases[-1] = 100.0  # every token skips the experts
    block.experts.register_forward_hook(lambda _, inputs, output: seen.append(inputs))
    plan = read_plan(model.config)
    for experts in (True, False):
        with sliced(model, plan, {1: SOME[1]}, experts):
            tiny.logits(model, IDS)
    for _, expert, gate in seen:
        assert not expert.any() and not gate.any()
