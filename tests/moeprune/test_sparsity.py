"""Sparse checkpoints against loops over the tokens each expert really saw, in the model's own layout in memory."""

import shutil
from dataclasses import replace
from fractions import Fraction

import pytest
import tiny
import torch
from observed import corpus_of
from safetensors.torch import load_file, save_file
from sparse import (
    CRITERIA,
    SOME,
    expert_names,
    inputs_of,
    shared_visits,
    sparse_parameters,
    sparsified,
    statistics_of,
    surviving,
    visits,
)

from moeprune.checkpoint import open_checkpoint
from moeprune.configs import read_config
from moeprune.criteria import moe_pruner, wanda
from moeprune.errors import BadInput
from moeprune.projections import projections
from moeprune.schema import read_plan
from moeprune.sparsity import energies_of, sparse_mask, sparsify, stored_sizes
from moeprune.weight_masks import parse_pattern

every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
some_families = pytest.mark.parametrize("family", SOME)


def sizes_of(checkpoint, pattern):
    config = read_config(checkpoint.folder)
    return stored_sizes(checkpoint, read_plan(config), projections(config), parse_pattern(pattern))


@every_family
@pytest.mark.parametrize("pattern", ["0.3", "2:4"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_sparse_checkpoint_loads_with_the_zeros_of_the_slow_reference(family, pattern, criterion, saved, tmp_path):
    sparsified(saved(family), tmp_path / "sparse", statistics_of(family), CRITERIA[criterion], pattern)
    loaded = tiny.moe_blocks(tiny.load(tmp_path / "sparse"))
    for number, of_layer in shared_visits(family).items():
        gated = criterion == "moe_pruner"
        for name, expected in sparse_parameters(tiny.shared_model(family), number, of_layer, pattern, gated).items():
            assert torch.equal(getattr(loaded[number].experts, name), expected), (number, name)


@some_families
def test_gates_and_inputs_change_which_weights_go(family):
    statistics, weight = statistics_of(family), torch.randn(6, tiny.HIDDEN)
    gated, ungated = (energies_of(statistics, kind).up[0, 0] for kind in ("gated", "ungated"))
    masks = [sparse_mask(moe_pruner.score(weight, e), parse_pattern("0.5")) for e in (gated, ungated, gated * 0 + 1)]
    assert not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[1], masks[2])
    assert not torch.equal(masks[0], masks[1])


@every_family
def test_everything_but_expert_projections_is_byte_identical(family, saved, tmp_path):
    source = open_checkpoint(saved(family))
    sparse = sparsified(saved(family), tmp_path / "sparse", statistics_of(family))
    assert sparse.config == source.config
    assert {name: (info.dtype, info.shape) for name, info in sparse.tensors.items()} == {
        name: (info.dtype, info.shape) for name, info in source.tensors.items()
    }
    for name in source.tensors:
        before, after = source.read(name), sparse.read(name)
        if name in expert_names(source):
            assert torch.equal(after, before.where(after != 0, 0.0)), "a weight that stays has changed"
            assert int((after == 0).sum()) == after.numel() // 2
        else:
            assert torch.equal(after.view(torch.uint8), before.view(torch.uint8)), name


def test_weights_in_half_precision_stay_in_it_bit_for_bit(saved, tmp_path):
    shutil.copytree(saved("qwen2_moe"), tmp_path / "half")
    path = tmp_path / "half/model.safetensors"
    before = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(before, path, metadata={"format": "pt"})
    sparse = sparsified(tmp_path / "half", tmp_path / "sparse", statistics_of("qwen2_moe"), pattern="1:4")
    for name in expert_names(sparse):
        after = sparse.read(name)
        assert after.dtype == torch.bfloat16
        assert torch.equal(after, before[name].where(after != 0, 0.0))
        assert ((after != 0).unflatten(-1, (-1, 4)).sum(-1) == 1).all()
    half = sizes_of(sparse, "2:4")
    experts = sum(sparse.tensors[name].bytes for name in expert_names(sparse))
    # The known size of 2:4 in 16 bits: 8 bits of values and 1 of places for each weight of 16.
    assert half["n_of_m_bytes"] == half["dense_bytes"] - experts + experts * 9 // 16


def test_stack_and_transposed_stack_are_sparsified_as_their_matrices_are():
    generator = torch.Generator().manual_seed(5)
    stack = torch.randn(4, 10, 8, generator=generator)
    energy = torch.rand(4, 8, generator=generator, dtype=torch.float64)
    options = (moe_pruner.score, parse_pattern("3:8"))
    single = torch.stack([sparsify(matrix, 1, e, *options) for matrix, e in zip(stack, energy, strict=True)])
    assert torch.equal(sparsify(stack, 2, energy, *options), single)
    assert torch.equal(sparsify(stack.mT.contiguous(), 1, energy, *options).mT, single)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_fused_file_becomes_the_same_model_as_one_tensor_per_expert(family, saved, tmp_path):
    shutil.copytree(saved(family), tmp_path / "fused")
    state = {name: tensor.contiguous() for name, tensor in tiny.load(saved(family)).state_dict().items()}
    save_file(state, tmp_path / "fused/model.safetensors", metadata={"format": "pt"})
    fused = sparsified(tmp_path / "fused", tmp_path / "a", statistics_of(family))
    single = sparsified(saved(family), tmp_path / "b", statistics_of(family))
    assert len(expert_names(fused)) < len(expert_names(single))
    found, expected = (tiny.load(checkpoint.folder).state_dict() for checkpoint in (fused, single))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("pattern", ["0", "0.1", "0.29", "0.5", "0.97", "1:4", "2:4", "4:8", "3:5"])
@pytest.mark.parametrize("levels", [3, 10**6], ids=["ties", "no ties"])
def test_mask_keeps_what_a_sorted_row_keeps(pattern, levels):
    importance = torch.randint(levels, (7, 200), generator=torch.Generator().manual_seed(1)).double()
    mask = sparse_mask(importance, parse_pattern(pattern))
    for row, kept in zip(importance.tolist(), mask, strict=True):
        assert kept.nonzero().flatten().tolist() == surviving(row, pattern)


def test_number_zeroed_in_each_row_is_exact():
    importance = torch.rand(50, 100)
    for percent in range(100):
        mask = sparse_mask(importance, parse_pattern(f"0.{percent:02d}"))
        assert (mask.sum(1) == 100 - percent).all(), percent


@pytest.mark.parametrize(("pattern", "keep", "of"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4), ("7:8", 7, 8)])
def test_number_kept_in_each_block_is_exact(pattern, keep, of):
    mask = sparse_mask(torch.rand(30, 64), parse_pattern(pattern))
    assert (mask.reshape(30, -1, of).sum(-1) == keep).all()


def test_equal_weights_go_from_the_lowest_index_on():
    equal = torch.ones(2, 8, dtype=torch.float64)
    assert sparse_mask(equal, parse_pattern("0.4"))[0].tolist() == [False] * 3 + [True] * 5
    assert sparse_mask(equal, parse_pattern("1:4"))[0].tolist() == [False, False, False, True] * 2


@pytest.mark.parametrize("family", ["olmoe", "mixtral", "deepseek_v3"])
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_with_every_gate_one_it_is_wanda_of_the_tokens_the_expert_saw(family, ratio):
    layer, of_layer = next(iter(shared_visits(family).items()))
    weight = tiny.moe_blocks(tiny.shared_model(family))[layer].experts.gate_up_proj[1].detach()
    inputs = torch.stack([hidden for _, hidden, _ in of_layer[1]])
    scaler = (inputs**2).sum(0) / len(inputs)  # a mean, as in Wanda's code
    order = torch.sort(weight.double().abs() * scaler.sqrt(), dim=-1, stable=True).indices
    expected = weight.clone()
    expected.scatter_(1, order[:, : int(weight.shape[1] * ratio)], 0.0)
    energy = energies_of(statistics_of(family), "ungated").of(layer, "up")[1]
    for criterion in (moe_pruner, wanda):
        assert torch.equal(sparsify(weight, 1, energy, criterion.score, parse_pattern(str(ratio))), expected)


@pytest.mark.parametrize("factor", [0.25, 3.0, 1e6])
def test_factor_common_to_all_gates_changes_nothing(factor):
    energy = energies_of(statistics_of("deepseek_v3"), "gated").down[0]
    weight = tiny.moe_blocks(tiny.shared_model("deepseek_v3"))[1].experts.down_proj.detach()
    options = (moe_pruner.score, parse_pattern("2:4"))
    assert torch.equal(sparsify(weight, 2, energy * factor**2, *options), sparsify(weight, 2, energy, *options))


@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_experts_that_saw_no_token_are_counted_and_ranked_by_weight_alone(family, saved, tmp_path):
    sequences = tiny.token_ids(2)
    statistics = inputs_of(family, corpus_of(sequences, [0]))
    seen = visits(tiny.shared_model(family), sequences)
    dead = {n: tuple(e for e in range(tiny.EXPERTS) if not of_layer[e]) for n, of_layer in seen.items()}
    assert energies_of(statistics, "gated").unseen == dead and all(dead.values())
    assert not energies_of(statistics_of("olmoe"), "gated").unseen
    sparsified(saved(family), tmp_path / "sparse", statistics)
    loaded = tiny.moe_blocks(tiny.load(tmp_path / "sparse"))
    for number, of_layer in seen.items():
        for name, expected in sparse_parameters(tiny.shared_model(family), number, of_layer, "0.5").items():
            assert torch.equal(getattr(loaded[number].experts, name), expected)


def test_shards_hold_what_one_file_holds_and_progress_is_told_every_byte(saved, tmp_path):
    told: list[int] = []
    one = sparsified(saved("mixtral"), tmp_path / "one", statistics_of("mixtral"))
    many = sparsified(
        saved("mixtral"), tmp_path / "many", statistics_of("mixtral"), shard_bytes=30_000, progress=told.append
    )
    assert len(many.weight_files) > 3 and sum(told) == many.weight_bytes
    assert all(torch.equal(many.read(name), one.read(name)) for name in one.tensors)
    tiny.load(tmp_path / "many")


def test_prediction_layers_are_copied(saved, tmp_path):
    shutil.copytree(saved("qwen3_moe"), tmp_path / "odd")
    path = tmp_path / "odd/model.safetensors"
    odd = [f"{layers}.mlp.experts.0.up_proj.weight" for layers in ("model.layers.2", "mtp.layers.0")]
    save_file(load_file(path) | {name: torch.ones(4, 8) for name in odd}, path, metadata={"format": "pt"})
    sparse = sparsified(tmp_path / "odd", tmp_path / "sparse", statistics_of("qwen3_moe"), pattern="2:4")
    assert all(sparse.read(name).all() for name in odd)
    assert sizes_of(sparse, "2:4")["zeros"] * 2 == sizes_of(sparse, "2:4")["expert_weights"]


@pytest.mark.parametrize(
    ("pattern", "part"), [("2:4", Fraction(1, 2)), ("1:4", Fraction(3, 4)), ("0.25", Fraction(1, 4))]
)
def test_stored_sizes_follow_their_formulas(pattern, part, saved, tmp_path):
    checkpoint = sparsified(saved("olmoe"), tmp_path / "sparse", statistics_of("olmoe"), pattern=pattern)
    tensors = load_file(tmp_path / "sparse/model.safetensors")
    weights = sum(tensors[name].numel() for name in expert_names(checkpoint))
    others = sum(tensor.nbytes for name, tensor in tensors.items() if name not in expert_names(checkpoint))
    zeros = sum(int((tensors[name] == 0).sum()) for name in expert_names(checkpoint))
    expected = {
        "expert_weights": weights,
        "zeros": zeros,
        "dense_bytes": others + 4 * weights,
        "bitmask_bytes": others + 4 * (weights - zeros) + weights // 8,
    }
    if ":" in pattern:
        expected["n_of_m_bytes"] = others + (weights - zeros) * 34 // 8  # 32 bits and 2 for the place
    assert sizes_of(checkpoint, pattern) == expected
    assert zeros == weights * Fraction(part)


def test_sums_that_were_not_observed_are_asked_for():
    statistics = replace(statistics_of("olmoe"), sums={})
    with pytest.raises(BadInput, match=r"add 'inputs' to observe\.sums"):
        energies_of(statistics, "gated")


def test_energies_of_other_layers_are_refused(saved, tmp_path):
    with pytest.raises(BadInput, match="observe this checkpoint"):
        sparsified(saved("olmoe"), tmp_path / "sparse", statistics_of("deepseek_v3"))
    assert not list((tmp_path / "sparse").iterdir())


def test_pattern_that_does_not_fit_a_row_is_refused_before_anything_is_written(saved, tmp_path):
    with pytest.raises(BadInput, match="blocks of 16"):  # 32 inputs are made of such blocks, 24 are not
        sparsified(saved("olmoe"), tmp_path / "sparse", statistics_of("olmoe"), pattern="8:16")
    assert not list((tmp_path / "sparse").iterdir())


@pytest.mark.parametrize("change", ["quantised", "renamed"])
def test_expert_weights_that_are_no_floating_point_numbers_are_refused(change, saved, tmp_path):
    shutil.copytree(saved("olmoe"), tmp_path / "odd")
    path = tmp_path / "odd/model.safetensors"
    state = load_file(path)
    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    if change == "quantised":
        state[name] = state[name].to(torch.float8_e4m3fn)
    else:
        state = {key.replace("down_proj.weight", "down_proj.weight_packed"): tensor for key, tensor in state.items()}
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(BadInput, match="unquantised"):
        sparsified(tmp_path / "odd", tmp_path / "sparse", statistics_of("olmoe"))
