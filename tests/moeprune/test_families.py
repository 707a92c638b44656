"""Every family from a checkpoint on disk to a smaller one, against references that share nothing with moeprune.

docs/families.md holds what these tests find. To write it anew:

    MOEPRUNE_WRITE_FAMILIES=1 python -m pytest tests/moeprune/test_families.py
"""

import os
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

import brute_force
import families
import pytest
import tiny
import torch
import visits
from families_page import page
from family_case import IDS, Case
from observed import relative_error, relative_error_of_vectors
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from moeprune.errors import BadInput
from moeprune.file_plan import read_file_plan
from moeprune.observer import Observer
from moeprune.slicing import sliced

TOLERANCE = 1e-5
REFUSED = {"doge": "model type 'doge' keeps its experts in a form that cannot be pruned: no tensor holds a matrix"}
WITHOUT_RESIDUAL = {"flex_olmo", "qwen4_exp_text"}
"""Families whose experts are given something else than a norm of the residual stream."""
PRUNED = [family for family in families.discovered() if family not in REFUSED]
every_family = pytest.mark.parametrize("family", PRUNED)
PAGE = Path(__file__).parents[2] / "docs/families.md"
TESTED: set[str] = set()
"""Families whose pruned checkpoint was compared in this run."""


@pytest.fixture(scope="session")
def case(tmp_path_factory):
    return lru_cache(lambda family: Case(family, tmp_path_factory.mktemp(family)))


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# -------------------------------------------------------------------------------------------------- finding families


@pytest.fixture
def made_up():
    """Register a family at run time: Qwen3-MoE under another name, whose model may make demands on its config."""

    def register(demand: Callable[[object], None] = lambda config: None) -> str:
        class MadeUpConfig(Qwen3MoeConfig):
            model_type = "made_up"
            wheels: int | None = None

        class MadeUpForCausalLM(Qwen3MoeForCausalLM):
            config_class = MadeUpConfig

            def __init__(self, config):
                demand(config)
                super().__init__(config)

        AutoConfig.register("made_up", MadeUpConfig)
        AutoModelForCausalLM.register(MadeUpConfig, MadeUpForCausalLM)
        families.discovered.cache_clear()
        return "made_up"

    yield register
    MODEL_FOR_CAUSAL_LM_MAPPING._extra_content.pop(CONFIG_MAPPING._extra_content.pop("made_up"))
    families.discovered.cache_clear()


def test_discovery_finds_families_by_what_their_configs_count():
    found = families.discovered()
    assert {"mixtral", "deepseek_v3", "doge", "gpt_oss"} <= found.keys()
    assert found["qwen3_moe"] == "num_local_experts" and found["dbrx"] == "ffn_config.moe_num_experts"
    assert not {"llama", "qwen3", "llama4", "qwen3_5_moe"} & found.keys(), "dense, or a wrapper round another family"


def test_discovery_overlooks_no_config_that_speaks_of_experts():
    other = {name: config for name, config in families.configs().items() if name not in families.discovered()}
    speak = {name for name, config in other.items() if any("expert" in field.name for field in fields(config))}
    assert not speak, f"{speak} count experts under a name that moeprune.configs.EXPERT_COUNT_KEYS lacks"


def test_discovery_a_new_family_is_found_and_goes_all_the_way(made_up, case):
    assert "made_up" not in families.discovered()
    family = made_up()
    assert family in families.discovered()
    case = case(family)
    assert torch.equal(case.statistics.count[0], case.expected(lambda visit: 1).long())
    assert case.difference < TOLERANCE


def test_discovery_a_new_family_that_needs_values_of_its_own_fails_saying_so(made_up):
    def demand(config):
        if config.wheels is None:
            raise ValueError("wheels: must be a number")

    family = made_up(demand)
    asks = r"'made_up' has no row in tests/families\.py.* wheels: must be a number\s+Add to _ROWS"
    with pytest.raises(pytest.fail.Exception, match=asks):
        families.tiny_model(family)


@pytest.mark.parametrize("family", REFUSED)
def test_family_that_cannot_be_pruned_is_refused_with_the_reason(family, case):
    with pytest.raises(BadInput, match=REFUSED[family]):
        read_file_plan(case(family).checkpoint)


# ---------------------------------------------------------------------------------------------------------- observing


@every_family
def test_observed_moments_equal_brute_force(family, case):
    case = case(family)
    assert case.statistics.layer.tolist() == list(case.truth) == case.plan.layers
    assert torch.equal(case.statistics.count[0], case.expected(lambda visit: 1).long())
    for a in range(3):
        for c in range(3):
            expected = case.expected(lambda visit, a=a, c=c: visit.gate**a * float(visit.output.norm()) ** c)
            assert relative_error(case.statistics.moments[0, ..., a, c], expected) < TOLERANCE, f"sum of g^{a} n^{c}"


@every_family
def test_observed_outputs_equal_brute_force(family, case):
    case = case(family)
    expected = case.expected(lambda visit: visit.output)
    assert relative_error_of_vectors(case.statistics.sum_of("output_sum"), expected) < TOLERANCE


@every_family
def test_observed_probability_is_that_of_the_router(family, case):
    case = case(family)
    for found, layer in zip(case.statistics.sum_of("probability")[0], case.truth.values(), strict=True):
        rule, _ = layer.rule
        if rule == "other":
            assert family == "phimoe", "no function of the logits that is known explains the gates"
            continue
        expected = visits.PROBABILITIES[rule](layer.logits.double()).sum(0)[: families.EXPERTS]
        assert relative_error(found, expected) < TOLERANCE


@every_family
def test_observed_turn_of_the_residual_stream_equals_brute_force(family, case):
    case = case(family)
    if family in WITHOUT_RESIDUAL:
        assert "easy_ep" not in case.statistics.sums
        return
    for found, layer in zip(case.statistics.sum_of("easy_ep")[0], case.truth.values(), strict=True):
        turn = layer.turn.clamp_min(0)
        expected = layer.sums(lambda visit, turn=turn: visit.gate * float(visit.output.norm() * turn[visit.token]))
        assert relative_error(found, expected) < TOLERANCE


@every_family
def test_observed_in_batches_of_one_is_the_same_as_padded(family, case):
    case = case(family)
    padded, alone = case.statistics, case.observed(1)
    assert torch.equal(padded.count, alone.count)
    torch.testing.assert_close(padded.moments, alone.moments, rtol=TOLERANCE, atol=0)
    for name in padded.sums:
        torch.testing.assert_close(padded.sum_of(name), alone.sum_of(name), rtol=TOLERANCE, atol=TOLERANCE)


@every_family
def test_observed_model_computes_what_it_always_does(family, case):
    model = case(family).model
    before = tiny.logits(model, IDS)
    with Observer(model, ("core",), ("deployed",)):
        assert distance(tiny.logits(model, IDS), before) < TOLERANCE
    assert torch.equal(tiny.logits(model, IDS), before)


# ------------------------------------------------------------------------------------------------ scoring and pruning


@every_family
def test_aimer_on_files_equals_the_formula_on_weights_in_memory(family, case):
    case = case(family)
    for layer, found in zip(case.plan.layers, case.scores, strict=True):
        for score, matrices in zip(found, brute_force.expert_matrices(case.model, layer), strict=True):
            weights = torch.cat([matrix.flatten() for matrix in matrices]).double()
            expected = -weights.abs().mean() / weights.square().mean().sqrt()
            assert float(score) == pytest.approx(float(expected), rel=1e-6)


@every_family
def test_pruned_checkpoint_equals_the_model_with_router_logits_at_minus_infinity(family, case):
    case = case(family)
    found = tiny.logits(case.pruned, IDS)
    TESTED.add(family)
    assert case.difference < TOLERANCE
    assert distance(found, brute_force.masked_logits(case.model, IDS, case.wrong)) > 1e-3
    assert distance(found, tiny.logits(case.model, IDS)) > 1e-3, "pruning changed nothing: the comparison shows nothing"


@every_family
def test_sliced_model_equals_the_pruned_checkpoint(family, case):
    case = case(family)
    with sliced(case.model, case.plan, case.mask.kept):
        assert distance(tiny.logits(case.model, IDS), tiny.logits(case.pruned, IDS)) < TOLERANCE


def test_pruned_token_table_binds_tokens_to_the_most_similar_experts_kept(case):
    case = case("deepseek_v4")
    layer = case.plan.layers[0]
    whole, pruned = (brute_force.tensors_of(model) for model in (case.model, case.pruned))
    (name,) = [name for name in whole if name.endswith("tid2eid")]
    kept = case.mask.kept[layer]
    expected = brute_force.rebound(whole[name], whole[name.replace("tid2eid", "weight")], kept)
    assert not torch.equal(expected, whole[name])
    assert torch.equal(torch.tensor(kept)[pruned[name]], expected)


def test_page_is_what_these_tests_found(case):
    if set(PRUNED) != TESTED:
        pytest.skip("only some families were tested")
    found = page([case(family) for family in families.discovered()], REFUSED)
    if os.environ.get("MOEPRUNE_WRITE_FAMILIES"):
        PAGE.write_text(found)
    assert PAGE.read_text() == found, "docs/families.md is not what was found: MOEPRUNE_WRITE_FAMILIES=1 writes it anew"
