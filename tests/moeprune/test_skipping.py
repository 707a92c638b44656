"""Dynamic expert skipping against one token at a time."""

from functools import partialmethod

import pytest
import tiny
import torch
from observed import corpus_of, gate_ratios, observe, observed
from torch import Tensor, nn

from moeprune.errors import BadInput
from moeprune.interface.registry import RegistryExperts
from moeprune.observation import observe_chunk
from moeprune.observer import Observer
from moeprune.skipping import skipping, thresholds
from moeprune.statistics import RATIO_BINS, Statistics

TOLERANCE = 1e-5
IDS = torch.stack(tiny.token_ids(24, 24))
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
explained = pytest.mark.parametrize("family", tiny.EXPLAINED)


def beta_of(model: nn.Module, value: float) -> dict[int, float]:
    return dict.fromkeys(tiny.moe_blocks(model), value)


def statistics_of(*histograms: dict[int, int]) -> Statistics:
    """Layers with so many tokens in these bins."""
    ratios = torch.zeros(len(histograms), RATIO_BINS, dtype=torch.float64)
    for layer, histogram in enumerate(histograms):
        for place, tokens in histogram.items():
            ratios[layer, place] = tokens
    empty = torch.zeros(1, len(histograms), 4)
    return Statistics(
        torch.arange(len(histograms)),
        torch.zeros(1).long(),
        empty.long(),
        empty.double()[..., None, None].expand(-1, -1, -1, 3, 3),
        sums={"gate_ratio": ratios},
    )


def test_thresholds_are_medians_read_inside_their_bin():
    # 8 tokens: the fourth is the last of 3 in bin 500 (one below); 4 tokens: the second is the second of 4 in bin 0.
    found = thresholds(statistics_of({10: 1, 500: 3, 900: 4}, {0: 4}))
    torch.testing.assert_close(found, torch.tensor([0.501, 0.0005], dtype=torch.float64))


@explained
def test_thresholds_are_within_a_bin_of_the_exact_medians(family):
    case = observed(family)
    exact = torch.stack([gate_ratios(layer).median() for layer in case.truth.values()])
    assert (thresholds(case.statistics) - exact).abs().max() < 1 / RATIO_BINS + 1e-6


def test_thresholds_of_a_layer_where_no_token_has_two_experts_are_refused():
    with pytest.raises(BadInput, match=r"layers \[1\]"):
        thresholds(statistics_of({3: 1}, {}))


def test_thresholds_without_their_sums_name_the_key_to_set():
    with Observer(tiny.shared_model("olmoe"), ("core",), ("deployed",)) as observer:
        core = observe_chunk(tiny.shared_model("olmoe"), observer, corpus_of([IDS[0]], [0]), 0, 1)
    with pytest.raises(BadInput, match=r"add 'ratios' to observe\.sums"):
        thresholds(core)


def one_expert(experts: nn.Module, expert: int, hidden: Tensor) -> Tensor:
    w_gate, w_up = experts.gate_up_proj[expert].double().chunk(2)
    a = w_gate @ hidden
    return experts.down_proj[expert].double() @ (a / (1 + (-a).exp()) * (w_up @ hidden))


@explained
@torch.no_grad()
def test_skipping_layers_compute_what_a_loop_over_tokens_does(family):
    model, beta = tiny.shared_model(family), 0.6
    seen = {}
    handles = [
        block.experts.register_forward_hook(
            lambda _, inputs, output, layer=layer: seen.update({layer: (*inputs, output)})
        )
        for layer, block in tiny.moe_blocks(model).items()
    ]
    with skipping(model, beta_of(model, beta)) as counts:
        tiny.logits(model, IDS)
    for handle in handles:
        handle.remove()
    for layer, (hidden, expert, gate, output) in seen.items():
        experts, skipped = tiny.moe_blocks(model)[layer].experts, 0
        for h, pair, g, found in zip(hidden.double(), expert.tolist(), gate.double().tolist(), output, strict=True):
            first, second = (0, 1) if g[0] >= g[1] else (1, 0)
            if g[second] < beta * g[first]:
                skipped += 1
                expected = (g[0] + g[1]) * one_expert(experts, pair[first], h)
            else:
                expected = sum(g[slot] * one_expert(experts, pair[slot], h) for slot in (0, 1))
            assert (found.double() - expected).norm() < TOLERANCE * expected.norm()
        assert 0 < skipped < len(hidden), "the loop shows only one of the two cases"
        assert (counts.tokens[layer], int(counts.skipped[layer])) == (len(hidden), skipped)


@every_family
def test_skipping_with_thresholds_of_zero_changes_nothing(family):
    model = tiny.shared_model(family)
    with skipping(model, beta_of(model, 0.0)) as counts:
        assert counts.experts_per_token == 2
        found = tiny.logits(model, IDS)
    assert (found - tiny.logits(model, IDS)).abs().max() < 1e-6
    assert counts.experts_per_token == 2 and set(counts.tokens.values()) == {48}


@every_family
def test_skipping_with_thresholds_above_one_leaves_one_expert_a_token_and_computes_no_other(family, monkeypatch):
    model, rows, own = tiny.shared_model(family), [], RegistryExperts.outputs
    monkeypatch.setattr(
        RegistryExperts, "outputs", lambda _, hidden, *rest: rows.append(len(hidden)) or own(_, hidden, *rest)
    )
    with skipping(model, beta_of(model, 1.01)) as counts:
        found = tiny.logits(model, IDS)
    assert counts.experts_per_token == 1
    assert rows == [48, 48]
    assert (found - tiny.logits(model, IDS)).abs().max() > 1e-2


@every_family
def test_skipping_is_the_same_with_the_grouped_kernel(family, monkeypatch):
    model = tiny.shared_model(family)
    with skipping(model, beta_of(model, 0.6)):
        plain = tiny.logits(model, IDS)
    monkeypatch.setattr(RegistryExperts, "outputs", partialmethod(RegistryExperts.outputs, grouped=True))
    with skipping(model, beta_of(model, 0.6)):
        assert (tiny.logits(model, IDS) - plain).abs().max() < TOLERANCE


@every_family
def test_skipping_by_the_models_own_medians_skips_about_half(family):
    model, sequences = tiny.shared_model(family), tiny.token_ids(100, 100, 100, seed=5)
    statistics = observe(model, corpus_of(sequences, [0, 0, 0]))
    beta = dict(zip(statistics.layer.tolist(), thresholds(statistics).tolist(), strict=True))
    with skipping(model, beta) as counts:
        tiny.logits(model, torch.stack(sequences))
    first, *_ = counts.skipped
    # Nothing before the first such layer has changed; the next one sees other tokens.
    assert abs(int(counts.skipped[first]) - 150) <= int(statistics.sum_of("gate_ratio")[0].max())
    assert abs(counts.experts_per_token - 1.5) < 0.06


def test_skipping_neither_counts_nor_computes_slots_that_are_none():
    # Token 0 has one expert and a slot of gate 0, token 1 one expert and one held elsewhere: neither has a second.
    model = tiny.shared_model("olmoe")
    experts = model.model.layers[0].mlp.experts
    hidden = torch.randn(2, tiny.HIDDEN, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), skipping(model, beta_of(model, 1.01)) as counts:
        found = experts(hidden, torch.tensor([[3, 0], [8, 5]]), torch.tensor([[0.5, 0.0], [0.9, 0.1]]))
        expected = [0.5 * one_expert(experts, 3, hidden[0].double()), 0.1 * one_expert(experts, 5, hidden[1].double())]
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=TOLERANCE, atol=TOLERANCE)
    assert counts.experts_per_token == 2


@every_family
def test_skipping_leaves_the_model_as_it_was_when_the_forward_raises(family):
    model = tiny.new_model(family)
    before = tiny.logits(model, IDS)
    with pytest.raises(IndexError), skipping(model, beta_of(model, 1.01)):
        tiny.logits(model, IDS + tiny.VOCABULARY)
    assert torch.equal(tiny.logits(model, IDS), before)


def test_skipping_is_refused_for_a_model_that_does_not_choose_two_experts():
    model = tiny.new_model("olmoe", num_experts_per_tok=3)
    with pytest.raises(BadInput, match="chooses 3"), skipping(model, beta_of(model, 0.5)):
        pass


def test_skipping_is_refused_for_thresholds_of_other_layers():
    match = r"layers \[0\], but experts are in \[0, 1\]"
    with pytest.raises(BadInput, match=match), skipping(tiny.shared_model("olmoe"), {0: 0.5}):
        pass
