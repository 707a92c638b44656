"""The loss of removing experts against full passes of the masked model."""

import pytest
import tiny
import torch
from observed import corpus_of
from reconstructed import (
    ALL,
    CORPUS,
    SEQUENCES,
    TOLERANCE,
    Kept,
    admissible,
    brute_force,
    forms,
    losses,
    routed,
    routings,
)
from torch import nn

from moeprune.corpus import Corpus
from moeprune.errors import BadInput
from moeprune.reconstruction import LayerLoss, batches
from moeprune.schema import read_plan


def loss_of(
    model: nn.Module, layer: int, earlier: Kept | None = None, corpora: list[Corpus] | None = None
) -> LayerLoss:
    return LayerLoss(model, read_plan(model.config), layer, batches(corpora or [CORPUS]), earlier)


@routings
@forms
def test_losses_of_all_subsets_equal_brute_force_over_full_passes(family, form):
    model, tables = tiny.shared_model(family), losses(family, form)
    earlier: Kept = {}
    for layer, table in tables.items():
        loss = loss_of(model, layer, earlier)
        for kept, expected in table.items():
            assert loss(kept) == pytest.approx(expected, rel=TOLERANCE), f"layer {layer}, experts {kept}"
        if form == "progressive":
            earlier[layer] = min(table, key=table.get)


def test_losses_in_double_precision_equal_brute_force_to_nine_digits():
    model = tiny.new_model("gpt_oss").double()  # its router, unlike the others, does not fall back to float32
    model.set_experts_implementation("eager")  # the grouped one has no double precision
    loss = loss_of(model, 1, {0: ALL[2:]})
    for kept in admissible("gpt_oss")[::3]:
        assert loss(kept) == pytest.approx(brute_force(model, 1, {0: ALL[2:]}, kept), rel=1e-9)


def test_progressive_form_is_not_the_layerwise_one_beyond_the_first_layer():
    first, second = (losses("olmoe", form) for form in ("layerwise", "progressive"))
    assert first[0] == second[0]
    assert all(abs(first[1][kept] / second[1][kept] - 1) > 1e-3 for kept in first[1])


def test_loss_of_keeping_all_is_zero_and_dense_is_the_norm_of_the_output():
    model = tiny.shared_model("qwen2_moe")
    loss = loss_of(model, 1)
    assert loss(ALL) == 0
    expected = sum(float(routed(model, ids, 1, {}).norm()) for ids in SEQUENCES)
    assert loss.dense == pytest.approx(expected, rel=TOLERANCE)


@routings
def test_padding_does_not_count(family):
    wide = Corpus(nn.functional.pad(CORPUS.input_ids, (0, 9), value=5), CORPUS.length, CORPUS.document, CORPUS.chunk)
    model = tiny.shared_model(family)
    alone = [loss_of(model, 1, corpora=[corpus_of([ids], [0])]) for ids in SEQUENCES]
    for kept in admissible(family)[:5]:
        found = loss_of(model, 1, corpora=[wide])(kept)
        assert found == pytest.approx(sum(loss(kept) for loss in alone), rel=TOLERANCE)


def test_loss_is_a_sum_over_blocks_however_many_and_in_whichever_chunks_and_corpora():
    model, kept = tiny.shared_model("olmoe"), (0, 2, 3, 4, 6, 7)
    sequences = tiny.token_ids(*range(5, 16))
    together = loss_of(model, 1, corpora=[corpus_of(sequences, [0] * 11)])(kept)
    dealt = [corpus_of(sequences[:7], [0, 0, 0, 1, 1, 2, 2]), corpus_of(sequences[7:], [0] * 4)]
    assert loss_of(model, 1, corpora=dealt)(kept) == pytest.approx(together, rel=TOLERANCE)
    alone = [loss_of(model, 1, corpora=[corpus_of([ids], [0])])(kept) for ids in sequences]
    assert sum(alone) == pytest.approx(together, rel=TOLERANCE)


@pytest.mark.parametrize("what", ["gate", "expert"])
def test_block_that_routes_otherwise_when_run_again_is_refused(what):
    model, passes = tiny.new_model("olmoe"), []

    def drift(router: nn.Module, inputs: tuple, output: tuple) -> tuple:
        logits, gate, expert = output
        passes.append(router)
        return (logits, gate * len(passes), expert) if what == "gate" else (logits, gate, (expert + len(passes)) % 8)

    model.model.layers[1].mlp.gate.register_forward_hook(drift)
    with pytest.raises(BadInput, match="OlmoeSparseMoeBlock of layer 1 routes other than within the model"):
        loss_of(model, 1)


def test_block_that_is_not_run_as_a_module_is_refused():
    model = tiny.new_model("olmoe")
    block = model.model.layers[1].mlp
    block.__class__ = type("Direct", (type(block),), {"__call__": type(block).forward})
    with pytest.raises(BadInput, match="Direct of layer 1 is not run as a module"):
        loss_of(model, 1)


def test_loss_that_is_not_a_number_is_an_error_not_a_choice():
    model = tiny.new_model("olmoe")
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[3] = torch.nan
    with pytest.raises(ValueError, match="layer 1"):
        loss_of(model, 1)(ALL)
