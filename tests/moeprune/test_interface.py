"""Standing in for experts, in each of the ways in which families make them."""

from functools import lru_cache

import families
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from moeprune.errors import BadInput
from moeprune.interface import experts_of, in_place, routers_of
from moeprune.observer import Observer
from moeprune.statistics import Statistics

TOLERANCE = 1e-5
KINDS = {
    "olmoe": "RegistryExperts",
    "nemotron_h": "RegistryExperts",
    "dbrx": "WrappedExperts",
    "longcat_flash": "WrappedExperts",
    "llama4_text": "Llama4Experts",
    "jetmoe": "JetMoeExperts",
}
every_kind = pytest.mark.parametrize("family", KINDS)
IDS = torch.randint(3, families.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(3))


@lru_cache
def model_of(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(families.tiny_config(family)).eval()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@every_kind
def test_experts_of_a_family_are_found_in_every_layer_that_has_some(family):
    found = experts_of(model_of(family))
    assert {type(experts).__name__ for experts in found.values()} == {KINDS[family]}
    assert {experts.count for experts in found.values()} == {families.EXPERTS}
    assert list(found) == sorted(found)


@every_kind
def test_in_place_of_all_experts_their_own_total_changes_nothing(family):
    model = model_of(family)
    found, calls = experts_of(model), []

    def counted(experts):
        return lambda *call: calls.append(experts) or experts.total(*call)

    with in_place({experts: counted(experts) for experts in found.values()}):
        assert difference(logits(model), logits(model)) == 0
    assert len(calls) == 2 * len(found), "a layer did not call what stood in for its experts"
    with in_place({experts: experts.total for experts in found.values()}):
        inside = logits(model)
    assert difference(inside, logits(model)) < TOLERANCE


@every_kind
def test_in_place_of_experts_nothing_is_what_the_model_then_lacks(family):
    model = model_of(family)
    with in_place({experts: lambda hidden, *_: torch.zeros_like(hidden) for experts in experts_of(model).values()}):
        nothing = logits(model)
    assert difference(nothing, logits(model)) > 1e-3


@every_kind
def test_outputs_times_their_gates_add_up_to_the_total(family):
    model = model_of(family)
    for experts in experts_of(model).values():

        def check(hidden: Tensor, expert: Tensor, gate: Tensor, experts=experts) -> Tensor:
            total = torch.zeros_like(hidden)
            for slot in range(expert.shape[1]):
                rows = experts.outputs(hidden, expert[:, slot], gate[:, slot])
                total += rows * gate[:, slot, None]
            torch.testing.assert_close(total, experts.total(hidden, expert, gate), rtol=1e-5, atol=TOLERANCE)
            return total

        with in_place({experts: check}):
            logits(model)


@every_kind
def test_in_place_blocks_nest_and_leave_no_trace_however_they_end(family):
    model, seen = model_of(family), []
    first = next(iter(experts_of(model).values()))
    before = {name: set(vars(module)) for name, module in model.named_modules()}

    def noting(word):
        return lambda *call: seen.append(word) or first.total(*call)

    with pytest.raises(RuntimeError, match="enough"), in_place({first: noting("outer")}):
        with in_place({first: noting("inner")}):
            logits(model)
        logits(model)
        raise RuntimeError("enough")
    logits(model)
    assert seen == ["inner", "outer"]
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert model.config._experts_implementation != "moeprune"


def test_experts_of_a_family_whose_experts_are_rows_of_an_embedding_are_refused():
    with pytest.raises(BadInput, match=r"experts of DogeForCausalLM .* weight-only criterion"):
        experts_of(AutoModelForCausalLM.from_config(families.tiny_config("doge")))


def test_routers_of_jetmoe_are_those_of_its_experts_not_of_its_attention():
    model = model_of("jetmoe")
    found = routers_of(model, experts_of(model))
    for layer, (router, _) in found.items():
        assert router is model.model.layers[layer].mlp.router


def test_routers_of_hash_layers_are_found_by_their_rows():
    model = model_of("deepseek_v4")
    found = routers_of(model, experts_of(model))
    assert found[0][0] is model.model.layers[0].mlp.gate
    assert type(found[0][0]).__name__ == "DeepseekV4HashRouter"


@pytest.mark.parametrize("family", ["gemma4_text", "longcat_flash", "zaya"])
def test_probability_of_experts_is_a_softmax_over_all_classes_of_the_router(family):
    """gemma4 shows probabilities where others show logits; the others have classes that are no routed experts."""
    model, expected = model_of(family), []

    def keep(router: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        found = next(part for part in output if part.shape[-1] >= families.EXPERTS)
        probability = found if family == "gemma4_text" else found.softmax(-1)
        expected.append(probability.double().reshape(-1, probability.shape[-1])[:, : families.EXPERTS].sum(0))

    routers = {router for router, _ in routers_of(model, experts_of(model)).values()}
    handles = [router.register_forward_hook(keep) for router in routers]
    with Observer(model, ("core",), ("deployed",)) as observer:
        logits(model)
        found = observer.take()["probability"]
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_inputs_of_down_projections_are_refused_where_they_cannot_be_seen():
    with pytest.raises(BadInput, match=r"observe\.sums: DbrxForCausalLM does not show"):
        Observer(model_of("dbrx"), ("core", "inputs"), ("deployed",))


def test_experts_of_a_model_with_two_towers_of_experts_are_refused():
    towers = nn.ModuleDict({"thinker": model_of("olmoe"), "talker": model_of("jetmoe")})
    with pytest.raises(BadInput, match=r"ModuleDict has experts in layer 0 of two towers \(talker\."):
        experts_of(towers)


def test_easy_ep_of_a_family_whose_experts_are_given_no_norm_is_refused_with_the_reason():
    with Observer(model_of("flex_olmo"), ("core",), ("deployed",)) as observer:
        logits(model_of("flex_olmo"))
        sums = observer.take()
    zeros = torch.zeros(1, *sums["moments"].shape, dtype=torch.float64)
    statistics = Statistics(torch.arange(3), torch.zeros(1).long(), zeros[..., 0, 0].long(), zeros, sums=sums)
    with pytest.raises(BadInput, match="not given a norm of the residual stream"):
        statistics.sum_of("easy_ep")
