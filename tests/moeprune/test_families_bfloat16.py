"""Every family as it is loaded in bfloat16, where parts of some stay in float32: what stands in for experts fits."""

import copy

import families
import pytest
import tiny
import torch
from transformers import PreTrainedModel

from moeprune.configs import read_routing
from moeprune.distilled_experts import ExpertPairs
from moeprune.interface import experts_of
from moeprune.models import load_model
from moeprune.observer import Observer
from moeprune.skipping import skipping

IDS = torch.stack(tiny.token_ids(24, 24, seed=4))
TOLERANCE = 0.02
"""Of the largest logit: bfloat16 has eight bits, and another order of adding up may choose another expert."""


@pytest.fixture(scope="module", params=[family for family in families.discovered() if family != "doge"])
def model(request, tmp_path_factory) -> PreTrainedModel:
    folder = tmp_path_factory.mktemp(request.param)
    families.tiny_model(request.param).save_pretrained(folder)
    return load_model(folder, "bfloat16")


def apart(model: PreTrainedModel, found: torch.Tensor) -> float:
    logits = tiny.logits(model, IDS).float()
    return float((found.float() - logits).abs().median() / logits.abs().max())


def test_family_in_bfloat16_is_observed_and_computes_what_it_did(model):
    with Observer(model, ("core", "vectors"), ("deployed",)) as observer:
        found = tiny.logits(model, IDS)
        sums = observer.take()
    assert apart(model, found) < TOLERANCE
    assert all(value.isfinite().all() for name, value in sums.items() if not name.startswith("max"))
    assert sums["moments"][..., 0, 0].sum() > 0


def test_family_in_bfloat16_is_at_no_distance_from_a_copy(model):
    student = copy.deepcopy(model)
    with ExpertPairs(model, student, None) as pairs, torch.no_grad():
        tiny.logits(model, IDS)
        tiny.logits(student, IDS)
        distance = pairs.take(torch.ones_like(IDS, dtype=torch.bool))
    assert not distance.any()


def test_family_in_bfloat16_that_skips_nothing_computes_what_it_did(model):
    if read_routing(model.config).top_k != 2:
        pytest.skip("skipping is defined for two experts a token")
    with skipping(model, dict.fromkeys(experts_of(model), 0.0)):
        found = tiny.logits(model, IDS)
    assert apart(model, found) < TOLERANCE
