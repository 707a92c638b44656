"""A family that transformers has not: DeepSeekMoE, whose files bring the code that runs them."""

import json

import pytest
import remote
import tiny
import torch
from observed import Observed, corpus_of, observe, relative_error, relative_error_of_vectors
from torch import nn

from moeprune.checkpoint import open_checkpoint
from moeprune.configs import read_config, read_routing
from moeprune.criteria import aimer
from moeprune.errors import BadInput
from moeprune.experts import LayerExperts
from moeprune.file_plan import read_file_plan
from moeprune.masks import Mask
from moeprune.meta import meta_model
from moeprune.models import load_model
from moeprune.observer import Observer
from moeprune.schema import read_plan
from moeprune.slicing import routed_without, sliced
from moeprune.surgery import prune_checkpoint

TOLERANCE = 1e-5
KEPT = {1: (0, 1, 3, 4, 6, 7), 2: (1, 2, 3, 4, 5, 6)}
SEQUENCES = tiny.token_ids(14, 9, 20)
IDS = torch.stack(tiny.token_ids(24, 24))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return remote.write_deepseek(tmp_path_factory.mktemp("remote") / "deepseek")


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def case(model):
    return Observed(observe(model, corpus_of(SEQUENCES, [0, 0, 0])), remote.truth(model, SEQUENCES))


@pytest.fixture(scope="module")
def pruned(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("remote") / "pruned"
    target.mkdir()
    source = open_checkpoint(folder)
    plan = read_file_plan(source, trust_remote_code=True)
    prune_checkpoint(source, plan, Mask("0" * 64, plan.experts, KEPT), target, 30_000)
    return target


def distance(a, b):
    return float((a - b).abs().max())


# ------------------------------------------------------------------------------------------------------------- trust


def test_read_config_without_trust_names_the_key_asks_nobody_and_runs_none_of_the_code(tmp_path, monkeypatch):
    folder = remote.write_deepseek(tmp_path / "model")
    code, ran, asked = folder / "configuration_deepseek.py", tmp_path / "ran", []
    code.write_text(f"open({str(ran)!r}, 'w')\n" + code.read_text())
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    with pytest.raises(BadInput, match=r"set download\.trust_remote_code: true") as refusal:
        read_config(folder)
    assert str(folder) in str(refusal.value) and "\n" not in str(refusal.value)
    assert not ran.exists() and not asked
    assert read_config(folder, trust_remote_code=True).n_routed_experts == tiny.EXPERTS
    assert ran.exists()


# ------------------------------------------------------------------------------------------------------------ plans


def test_read_plan_of_the_published_geometry():
    config = read_config(remote.DEEPSEEK, trust_remote_code=True)
    plan, routing = read_plan(config, trust_remote_code=True), read_routing(config)
    assert sum(p.numel() for p in meta_model(config, True).parameters()) == 16_375_728_128  # published: 16.4B
    assert (routing.experts, routing.top_k, routing.groups, plan.layers) == (64, 6, 1, list(range(1, 28)))
    assert {name.partition("mlp.")[2] for name in plan.axes} == {"gate.weight"}
    projections = {name.partition("mlp.")[2] for name in plan.single}
    assert projections == {f"experts.#.{part}_proj.weight" for part in ("gate", "up", "down")}


def test_aimer_of_the_files_equals_the_definition(folder, model):
    checkpoint = open_checkpoint(folder)
    plan = read_file_plan(checkpoint, trust_remote_code=True)
    for layer in remote.LAYERS:
        found = aimer.score(LayerExperts(checkpoint, plan, layer))
        for expert, score in zip(model.model.layers[layer].mlp.experts, found, strict=True):
            values = torch.cat([weight.detach().double().flatten() for weight in expert.parameters()])
            assert float(score) == pytest.approx(-float(values.abs().mean() / values.square().mean().sqrt()), rel=1e-5)


# -------------------------------------------------------------------------------------------------------- observing


def test_moments_all_nine_cells_equal_brute_force(case):
    for mode in ("deployed", "softmax_full", "softmax_topk"):
        found = case.statistics.in_gate_mode(mode).moments[0]
        for a in range(3):
            for c in range(3):
                expected = case.expected(
                    lambda layer, e: sum(v.gates[mode] ** a * v.norm**c for v in layer.of(e))  # noqa: B023 - used at once
                )
                assert relative_error(found[..., a, c], expected) < TOLERANCE, f"{mode}: sum of g^{a} n^{c}"


def test_other_sums_equal_brute_force(case):
    zero = torch.zeros(tiny.HIDDEN, dtype=torch.float64)
    outputs = case.expected(lambda layer, e: sum((v.output for v in layer.of(e)), zero))
    assert relative_error_of_vectors(case.statistics.sum_of("output_sum"), outputs) < TOLERANCE
    probability = case.expected(lambda layer, e: sum(float(p[e]) for p in layer.probability))
    assert relative_error(case.statistics.sum_of("probability")[0], probability) < TOLERANCE
    for part, entry in (("up", "hidden"), ("down", "inner")):
        width = tiny.HIDDEN if part == "up" else remote.SIZES["moe_intermediate_size"]
        energy = case.expected(
            lambda layer, e: sum(
                (getattr(v, entry).square() * v.gates["deployed"] ** 2 for v in layer.of(e)),  # noqa: B023
                torch.zeros(width, dtype=torch.float64),  # noqa: B023
            )
        )
        assert relative_error_of_vectors(case.statistics.sum_of(f"input_energy.{part}"), energy) < TOLERANCE


def test_easy_ep_weighs_contributions_by_the_turn_of_the_residual(case):
    def turn(layer, token):
        x = layer.residual[token]
        y = x + sum(v.gates["deployed"] * v.output for v in layer.visits if v.token == token)
        return max(1 - float(x @ y / (x.norm() * y.norm())), 0)

    expected = case.expected(
        lambda layer, e: sum(v.gates["deployed"] * v.norm * turn(layer, v.token) for v in layer.of(e))
    )
    assert relative_error(case.statistics.sum_of("easy_ep")[0], expected) < TOLERANCE


def test_observed_model_computes_what_it_always_computes(model):
    ids, mask = tiny.padded(SEQUENCES)
    before = tiny.logits(model, ids, mask)
    with Observer(model, ("core",), ("deployed",)):
        assert distance(tiny.logits(model, ids, mask), before) < 1e-6
    assert torch.equal(tiny.logits(model, ids, mask), before)
    model.model.layers[1].mlp.experts[0].down_proj.weight.data *= 2
    try:
        assert distance(tiny.logits(model, ids, mask), before) > 1e-3, "experts count for nothing here"
    finally:
        model.model.layers[1].mlp.experts[0].down_proj.weight.data /= 2


def test_observed_model_in_bfloat16_is_as_before(folder):
    model = load_model(folder, "bfloat16", trust_remote_code=True)
    before = tiny.logits(model, IDS)
    with Observer(model, ("core",), ("deployed",)) as observer:
        found = tiny.logits(model, IDS)
        sums = observer.take()
    assert found.dtype == torch.bfloat16 and distance(found, before) <= 2e-2 * float(before.abs().max())
    assert sums["moments"][..., 0, 0].sum(1).tolist() == [IDS.numel() * tiny.TOP_K] * 2


# --------------------------------------------------------------------------------------------------------- pruning


def test_pruned_checkpoint_brings_its_code_loads_clean_and_equals_the_masked_model(folder, model, pruned):
    for path in folder.glob("*.py"):
        assert (pruned / path.name).read_bytes() == path.read_bytes()
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, pruned))
    assert after == before | {"n_routed_experts": 6}
    less = remote.load(pruned)
    found = tiny.logits(less, IDS)
    assert distance(found, tiny.masked_logits(model, IDS, KEPT)) < TOLERANCE
    assert distance(found, tiny.logits(model, IDS)) > 1e-2, "pruning changed nothing: the comparison shows nothing"
    assert less.generate(IDS[:, :6], max_new_tokens=3, do_sample=False).shape == (2, 9)


def test_sliced_model_equals_the_pruned_checkpoint_and_copies_no_expert(model, pruned):
    plan = read_plan(model.config, trust_remote_code=True)
    before, masked = tiny.logits(model, IDS), tiny.masked_logits(model, IDS, KEPT)
    weights = {name: id(weight) for name, weight in model.named_parameters()}
    with sliced(model, plan, KEPT):
        assert distance(tiny.logits(model, IDS), tiny.logits(remote.load(pruned), IDS)) < TOLERANCE
        assert {id(weight) for name, weight in model.named_parameters() if ".experts." in name} < set(weights.values())
        assert [len(model.model.layers[layer].mlp.experts) for layer in KEPT] == [6, 6]
    with routed_without(model, plan, KEPT):
        assert distance(tiny.logits(model, IDS), masked) < TOLERANCE
        assert [len(model.model.layers[layer].mlp.experts) for layer in KEPT] == [8, 8]
    assert {name: id(weight) for name, weight in model.named_parameters()} == weights
    assert torch.equal(tiny.logits(model, IDS), before)


def test_published_names_are_those_of_the_files(folder):
    names = {name for name in open_checkpoint(folder).tensors if ".layers.1.mlp." in name}
    experts = {f"experts.{e}.{part}_proj.weight" for e in range(tiny.EXPERTS) for part in ("gate", "up", "down")}
    shared = {f"shared_experts.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert names == {f"model.layers.1.mlp.{name}" for name in experts | shared | {"gate.weight"}}
    assert isinstance(remote.load(folder).model.layers[1].mlp.experts, nn.ModuleList)


def test_layers_of_own_code_with_different_counts_are_refused_for_that_alone(folder, tmp_path):
    source = open_checkpoint(folder)
    mask = Mask("0" * 64, 8, KEPT | {2: (1, 2, 3, 4)})
    (tmp_path / "uneven").mkdir()
    with pytest.raises(BadInput, match=r"different numbers of experts are for causal language models of transformers"):
        plan = read_file_plan(source, trust_remote_code=True)
        prune_checkpoint(source, plan, mask, tmp_path / "uneven", 10**9, trust_remote_code=True)
    assert not list((tmp_path / "uneven").iterdir())


def test_read_config_refuses_no_stock_family(saved):
    assert read_config(saved("olmoe")).model_type == "olmoe"
    with pytest.raises(BadInput, match="not a model transformers can load"):
        read_config(saved("olmoe") / "nowhere")
