"""The sums of one pass against one token at one expert at a time."""

import gc
import weakref

import pytest
import tiny
import torch
from observed import (
    Observed,
    corpus_of,
    gate_ratios,
    observe,
    observed,
    relative_error,
    relative_error_of_vectors,
)
from torch import Tensor

from moeprune.errors import BadInput
from moeprune.interface.registry import IMPLEMENTATION
from moeprune.observer import Observer
from moeprune.rows import Rows
from moeprune.statistics import GATE_MODES, GROUPS

TOLERANCE = 1e-5
every_family = pytest.mark.parametrize("family", tiny.EXPLAINED)


def moments_of(case: Observed, mode: str) -> Tensor:
    def cells(layer: tiny.LayerTruth, expert: int) -> list[list[float]]:
        visits = [(visit.gates[mode], visit.norm) for visit in layer.of(expert)]
        return [[sum(g**a * n**c for g, n in visits) for c in range(3)] for a in range(3)]

    return case.expected(cells)


def test_truth_tiny_models_use_every_expert_unequally():
    for family in tiny.EXPLAINED:
        counts = observed(family).expected(lambda layer, expert: len(layer.of(expert)))
        assert counts.sum(1).tolist() == [tiny.TOP_K * (14 + 9 + 20)] * len(counts)
        assert counts.max() > 2 * counts.median(), f"{family}: routing is almost uniform, tests would show little"


@every_family
def test_moments_all_nine_cells_equal_brute_force(family):
    case = observed(family)
    found, expected = case.statistics.moments[0], moments_of(case, "deployed")
    for a in range(3):
        for c in range(3):
            assert relative_error(found[..., a, c], expected[..., a, c]) < TOLERANCE, f"sum of g^{a} n^{c}"


@every_family
@pytest.mark.parametrize("mode", ["softmax_full", "softmax_topk"])
def test_moments_of_other_gates_equal_brute_force(family, mode):
    case = observed(family)
    found, expected = case.statistics.other_gates[mode][0], moments_of(case, mode)
    for a in range(3):
        for c in range(3):
            assert relative_error(found[..., a, c], expected[..., a, c]) < TOLERANCE, f"sum of g^{a} n^{c}"


def test_gate_modes_deployed_is_the_one_the_family_deploys():
    def same(family: str, mode: str) -> bool:
        statistics = observed(family).statistics
        return torch.allclose(statistics.moments, statistics.in_gate_mode(mode).moments, rtol=1e-5, atol=0)

    assert same("olmoe", "softmax_full") and not same("olmoe", "softmax_topk")
    assert same("mixtral", "softmax_topk") and not same("mixtral", "softmax_full")
    assert not same("deepseek_v3", "softmax_full") and not same("deepseek_v3", "softmax_topk")


@every_family
def test_count_equals_number_of_visits(family):
    case = observed(family)
    assert torch.equal(case.statistics.count[0], case.expected(lambda layer, expert: len(layer.of(expert))).long())
    assert case.statistics.tokens.tolist() == [14 + 9 + 20]
    assert case.statistics.layer.tolist() == list(case.truth)


@every_family
def test_probability_is_summed_over_all_tokens(family):
    case = observed(family)
    expected = case.expected(lambda layer, expert: sum(float(p[expert]) for p in layer.probability))
    assert relative_error(case.statistics.sum_of("probability")[0], expected) < TOLERANCE


@every_family
def test_easy_ep_weighs_contributions_by_the_turn_of_the_residual(family):
    case = observed(family)

    def turn(layer: tiny.LayerTruth, token: int) -> float:
        x = layer.residual[token]
        y = x + sum(v.gates["deployed"] * v.output for v in layer.visits if v.token == token)
        return max(1 - float(x @ y / (x.norm() * y.norm())), 0)

    expected = case.expected(
        lambda layer, e: sum(v.gates["deployed"] * v.norm * turn(layer, v.token) for v in layer.of(e))
    )
    assert relative_error(case.statistics.sum_of("easy_ep")[0], expected) < TOLERANCE


@every_family
def test_maxima_are_the_largest_elements_of_any_output(family):
    case = observed(family)
    largest = case.expected(lambda layer, e: max([float(v.output.max()) for v in layer.of(e)], default=-torch.inf))
    widest = case.expected(lambda layer, e: max([float(v.output.abs().max()) for v in layer.of(e)], default=-torch.inf))
    torch.testing.assert_close(case.statistics.sum_of("max_activation")[0], largest, rtol=TOLERANCE, atol=1e-6)
    torch.testing.assert_close(case.statistics.sum_of("max_abs_activation")[0], widest, rtol=TOLERANCE, atol=1e-6)


@every_family
def test_output_sum_is_the_sum_of_ungated_outputs(family):
    case = observed(family)
    zero = torch.zeros(tiny.HIDDEN, dtype=torch.float64)
    expected = case.expected(lambda layer, e: sum((v.output for v in layer.of(e)), zero))
    assert relative_error_of_vectors(case.statistics.sum_of("output_sum"), expected) < TOLERANCE


@every_family
def test_pairs_sum_over_tokens_that_chose_both(family):
    case = observed(family)

    def together(layer: tiny.LayerTruth, i: int) -> list[list[float]]:
        mine = {v.token: v.gates["deployed"] * v.norm for v in layer.of(i)}
        both = [
            [mine[v.token] * v.gates["deployed"] * v.norm for v in layer.of(j) if v.token in mine]
            for j in range(tiny.EXPERTS)
        ]
        return [[len(products), sum(products)] for products in both]

    expected = case.expected(together)
    assert torch.equal(case.statistics.sum_of("pair_count"), expected[..., 0])
    assert relative_error(case.statistics.sum_of("pair_contribution"), expected[..., 1]) < TOLERANCE


@every_family
def test_gate_ratio_is_the_histogram_over_tokens_of_second_to_first_gate(family):
    case = observed(family)
    for histogram, layer in zip(case.statistics.sum_of("gate_ratio"), case.truth.values(), strict=True):
        bins = torch.arange(1000).repeat_interleave(histogram.long())  # of each token, ascending
        ratios = gate_ratios(layer).sort().values
        assert len(bins) == len(ratios) == 14 + 9 + 20, "padding was counted, or a token was not"
        # Rounding may put a ratio on the edge of two bins into either.
        assert ((ratios > bins / 1000 - 1e-6) & (ratios < (bins + 1) / 1000 + 1e-6)).all()


def test_gate_ratio_leaves_out_tokens_with_fewer_than_two_gates():
    # Token 0 chose one expert and a slot of gate 0, token 1 an expert held elsewhere, token 2 is padding, token 3 is
    # 0.2 to 0.8, tokens 4 and 5 are 1 to 1.
    expert = torch.tensor([[0, 1], [2, 4], [0, 1], [3, 1], [0, 1], [2, 3]])
    gate = torch.tensor([[0.7, 0.0], [0.5, 0.5], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5], [0.5, 0.5]])
    valid = torch.tensor([True, True, False, True, True, True])
    token = torch.arange(6).repeat_interleave(2)
    expert, order = expert.flatten().sort(stable=True)
    rows = Rows(4, expert, token[order], gate.flatten()[order], torch.ones(12, 3), 6, valid)
    assert rows.gate_ratios(10).tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 2]


@every_family
@pytest.mark.parametrize("side", ["up", "down"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
def test_input_energy_equals_brute_force(family, side, gated):
    case = observed(family)

    def energy(layer: tiny.LayerTruth, expert: int) -> Tensor:
        width = layer.visits[0].hidden if side == "up" else layer.visits[0].inner
        total = torch.zeros_like(width)
        for visit in layer.of(expert):
            x = visit.hidden if side == "up" else visit.inner
            total += (visit.gates["deployed"] ** 2 if gated else 1) * x**2
        return total

    name = f"input_energy.{side}" + ("" if gated else ".ungated")
    assert relative_error_of_vectors(case.statistics.sum_of(name), case.expected(energy)) < TOLERANCE


def test_reference_notices_an_expert_scaled_by_one_percent():
    sequences = tiny.token_ids(14, 9, 20)
    model = tiny.new_model("qwen3_moe")
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj.mul_(1.01)
    found = observe(model, corpus_of(sequences, [0, 0, 0])).moments[0, ..., 1, 1]
    expected = moments_of(observed("qwen3_moe"), "deployed")[..., 1, 1]
    assert relative_error(found[:1], expected[:1]) < TOLERANCE
    assert relative_error(found[1:], expected[1:]) == pytest.approx(1e-2, rel=1e-3)


def test_padding_mask_forgotten_counts_padding():
    ids, mask = tiny.padded(tiny.token_ids(14, 9, 20))
    model = tiny.shared_model("olmoe")
    with Observer(model, ("core",), ("deployed",)) as observer:
        tiny.logits(model, ids, mask)
        forgotten = observer.take()["moments"][:, :, 0, 0].sum(1)
        observer.valid = mask
        tiny.logits(model, ids, mask)
        masked = observer.take()["moments"][:, :, 0, 0].sum(1)
    assert masked.tolist() == [tiny.TOP_K * (14 + 9 + 20)] * 2
    assert forgotten.tolist() == [tiny.TOP_K * 3 * 20] * 2


@pytest.mark.parametrize("groups", [("core",), tuple(GROUPS)], ids=["plain", "inputs"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logits_are_those_of_the_stock_model(family, groups):
    model = tiny.shared_model(family)
    ids, mask = tiny.padded(tiny.token_ids(14, 9, 20))
    stock = tiny.logits(model, ids, mask)
    with Observer(model, groups, ("deployed",)):
        seen = tiny.logits(model, ids, mask)
    assert (seen - stock)[mask.bool()].abs().max() < TOLERANCE


def hooks_of(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@every_family
def test_observer_leaves_nothing_behind_when_the_forward_raises(family):
    model = tiny.new_model(family)
    ids = torch.stack(tiny.token_ids(12))
    before, implementation, hooks = tiny.logits(model, ids), model.config._experts_implementation, hooks_of(model)
    with pytest.raises(IndexError), Observer(model, tuple(GROUPS), GATE_MODES) as observer:
        assert hooks_of(model) > hooks
        assert model.config._experts_implementation == IMPLEMENTATION
        observer.valid = torch.ones_like(ids)
        tiny.logits(model, ids + tiny.VOCABULARY)
    assert hooks_of(model) == hooks
    assert model.config._experts_implementation == implementation
    assert not any("_apply_gate" in vars(block.experts) for block in tiny.moe_blocks(model).values())
    assert torch.equal(tiny.logits(model, ids), before)


def test_observer_inside_a_block_raising_after_some_layers_recovers_for_the_next_pass():
    model, sequences = tiny.new_model("olmoe"), tiny.token_ids(14, 9, 20)
    handle = model.model.layers[1].mlp.experts.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        observe(model, corpus_of(sequences, [0, 0, 0]))
    handle.remove()
    found = observe(model, corpus_of(sequences, [0, 0, 0]))
    assert torch.equal(found.moments, observed("olmoe").statistics.moments)


def test_observer_does_not_keep_a_model_alive():
    model = tiny.new_model("olmoe")
    with Observer(model, ("core",), ("deployed",)):
        tiny.logits(model, torch.stack(tiny.token_ids(12)))
    alive = weakref.ref(model.model.layers[0].mlp.experts)
    del model
    gc.collect()
    assert alive() is None


def test_take_layer_that_saw_nothing_is_an_error_not_a_zero():
    with Observer(tiny.shared_model("olmoe"), ("core",), ("deployed",)) as observer, pytest.raises(RuntimeError):
        observer.take()


def test_observer_family_without_experts_interface_is_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    dense = LlamaForCausalLM(
        LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(BadInput, match="LlamaForCausalLM"):
        Observer(dense, ("core",), ("deployed",))
