"""Energies taken layer after layer, against a model whose parameters are replaced one layer at a time."""

import pytest
import tiny
import torch
from observed import corpus_of, relative_error
from sparse import (
    CRITERIA,
    SEQUENCES,
    SOME,
    expert_names,
    sparse_parameters,
    sparsified,
    statistics_of,
    true_energy,
    visits,
)

from moeprune.criteria import moe_pruner
from moeprune.sequential import sequential_energies
from moeprune.sparsity import Energies, energies_of
from moeprune.weight_masks import parse_pattern

some_families = pytest.mark.parametrize("family", SOME)


@torch.no_grad()
def slow_sequential(family, pattern, gated):
    """Energies by layer, each of a model whose earlier layers' parameters have been replaced by sparse ones."""
    model = tiny.new_model(family)
    found = {}
    for number, block in tiny.moe_blocks(model).items():
        of_layer = visits(model, SEQUENCES)[number]
        sparse = sparse_parameters(model, number, of_layer, pattern, gated)
        widths = {"up": tiny.HIDDEN, "down": len(next(v for v in of_layer if v)[0][2])}
        found[number] = {
            kind: torch.stack([true_energy(one, kind, width, gated) for one in of_layer])
            for kind, width in widths.items()
        }
        for name, values in sparse.items():
            getattr(block.experts, name).copy_(values)
    return found


def sequential(model, criterion=moe_pruner, pattern="2:4", **more) -> Energies:
    corpora = [corpus_of(list(SEQUENCES[:1]), [0]), corpus_of(list(SEQUENCES[1:]), [0, 1])]
    return sequential_energies(model, corpora, criterion.ENERGY, criterion.score, parse_pattern(pattern), 2, **more)


@some_families
@pytest.mark.parametrize("criterion", CRITERIA)
def test_sequential_energies_are_those_of_a_model_with_sparse_earlier_layers(family, criterion):
    found = sequential(tiny.new_model(family), criterion=CRITERIA[criterion])
    expected = slow_sequential(family, "2:4", criterion == "moe_pruner")
    dense = energies_of(statistics_of(family), CRITERIA[criterion].ENERGY)
    assert list(found.layer) == list(expected) == list(dense.layer)
    for place, layer in enumerate(expected):
        for kind in ("up", "down"):
            one = found.of(layer, kind)
            assert relative_error(one, expected[layer][kind]) < 1e-4
            apart = float((one - dense.of(layer, kind)).norm() / one.norm())
            assert (apart < 1e-6) == (place == 0), "only the first layer sees what it sees in the dense model"


@some_families
def test_sequential_energies_leave_the_model_as_it_was(family):
    model, told = tiny.new_model(family), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    output = tiny.logits(model, SEQUENCES[0][None])
    layers = len(sequential(model, progress=told.append).layer)
    assert sum(told) == layers * sum(map(len, SEQUENCES))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(tiny.logits(model, SEQUENCES[0][None]), output)


def test_sequential_pass_ends_with_the_layer_it_observes():
    model, calls = tiny.new_model("deepseek_v3", num_hidden_layers=4), []
    for number, block in tiny.moe_blocks(model).items():
        block.experts.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    sequential(model)
    assert {number: calls.count(number) for number in calls} == {1: 9, 2: 6, 3: 3}  # 3 batches


def test_sequential_energies_leave_the_model_as_it_was_when_they_fail():
    model = tiny.new_model("olmoe")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls = []

    def score(weight, energy):
        calls.append(weight)
        if len(calls) > 2 * tiny.EXPERTS:  # in the second layer
            raise KeyboardInterrupt
        return moe_pruner.score(weight, energy)

    with pytest.raises(KeyboardInterrupt):
        sequential_energies(model, [corpus_of(list(SEQUENCES), [0, 0, 0])], "gated", score, parse_pattern("0.5"), 4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    tiny.logits(model, SEQUENCES[0][None])


def test_sequential_and_as_printed_checkpoints_differ_from_the_second_layer_on(tmp_path):
    tiny.shared_model("mixtral").save_pretrained(tmp_path / "dense")
    printed = sparsified(tmp_path / "dense", tmp_path / "a", statistics_of("mixtral"), pattern="2:4")
    after = sparsified(tmp_path / "dense", tmp_path / "b", sequential(tiny.new_model("mixtral")), pattern="2:4")
    same = {name: torch.equal(printed.read(name), after.read(name)) for name in expert_names(printed)}
    assert all(equal for name, equal in same.items() if "layers.0." in name)
    assert not all(equal for name, equal in same.items() if "layers.1." in name)
