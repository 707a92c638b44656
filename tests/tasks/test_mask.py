"""Budgets, margins, and masks that are equal by what they keep."""

import json

import pytest
import sample
import torch
from transformers import DeepseekV3Config

from moeprune.checkpoint import Checkpoint, open_checkpoint
from moeprune.errors import BadInput
from moeprune.files import save_scores
from moeprune.masks import Mask
from tasks import mask, prune
from tasks.artifacts import Artifact, Step
from tasks.mask import MaskParams, number_to_keep


def scores_in_store(workshop, scores: torch.Tensor, **params: object) -> Artifact:
    def build(target):
        save_scores(target / "scores.safetensors", scores, scores[None], torch.arange(len(scores)), {})
        return {}

    return workshop.store.produce(Step("score", "test", "test", dict(params), {}), workshop.runtime, build)


def make(workshop, scores: torch.Tensor, keep: int) -> tuple[Artifact, dict]:
    params = MaskParams(keep=keep)
    artifact = mask.mask.fn(
        step=mask.step(params, keep, workshop.base, scores_in_store(workshop, scores, values=scores.tolist())),
        runtime=workshop.runtime,
        params=params,
        trust_remote_code=False,
    )
    return artifact, json.loads((workshop.store.folder(artifact) / "mask.json").read_text())


@pytest.mark.parametrize(
    ("given", "keep"),
    [({"ratio": 0.25}, 6), ({"ratio": 0.3}, 6), ({"ratio": 0.0}, 8), ({"ratio": 0.75}, 2), ({"keep": 5}, 5)],
    ids=str,
)
def test_number_to_keep_removed_experts_are_rounded_down(given, keep: int, workshop):
    assert number_to_keep(MaskParams(**given), open_checkpoint(workshop.folder / "model")) == keep


@pytest.mark.parametrize(
    ("given", "reason", "remedy"),
    [
        ({"ratio": 0.3}, "mask.ratio 0.3: 45 of 64", "are 0.375 (40 of 64 kept) and 0.25 (48 of 64 kept)"),
        ({"ratio": 0.9}, "mask.ratio 0.9: 7 of 64", "is 0.75 (16 of 64 kept)"),
        ({"keep": 45}, "mask.keep: 45 of 64", "are 40 and 48"),
        ({"keep": 70}, "mask.keep: 70 of 64", "is 64"),
    ],
    ids=str,
)
def test_number_to_keep_that_the_router_refuses_is_told_the_nearest_in_the_same_unit(given, reason, remedy, tmp_path):
    DeepseekV3Config(n_routed_experts=64, n_group=8, topk_group=4).save_pretrained(tmp_path)
    with pytest.raises(BadInput) as refusal:
        number_to_keep(MaskParams(**given), Checkpoint(tmp_path, {}))
    assert str(refusal.value).startswith(reason) and str(refusal.value).endswith(remedy)


def test_number_to_keep_bytes_is_the_most_that_fits(workshop):
    sizes = {}
    for keep in (5, 6):
        _, content = make(workshop, torch.rand(2, 8, dtype=torch.float64), keep)
        artifact, _ = make(workshop, torch.rand(2, 8, dtype=torch.float64), keep)
        params = prune.PruneParams()
        made = prune.prune.fn(
            step=prune.step(params, workshop.base, artifact),
            runtime=workshop.runtime,
            params=params,
            trust_remote_code=False,
        )
        sizes[keep] = workshop.store.manifest(made)["facts"]["bytes"]
        on_disk = sum(path.stat().st_size for path in workshop.store.folder(made).glob("*.safetensors"))
        assert sizes[keep] <= on_disk < sizes[keep] + 20_000  # headers
        assert len(content["kept"]["0"]) == keep
    model = open_checkpoint(workshop.folder / "model")
    assert number_to_keep(MaskParams(bytes=sizes[6]), model) == 6
    assert number_to_keep(MaskParams(bytes=sizes[6] - 1), model) == 5
    assert number_to_keep(MaskParams(bytes=10**12), model) == sample.EXPERTS
    with pytest.raises(BadInput, match="the fewest the router can work with"):
        number_to_keep(MaskParams(bytes=1000), model)


def test_mask_keeps_the_highest_scores_and_tells_the_margins(workshop):
    scores = torch.tensor([[5.0, 1, 4, 2, 8, 7, 3, 6], [1, 2, 3, 4, 5, 6, 7, 8]], dtype=torch.float64)
    artifact, content = make(workshop, scores, 5)
    assert content["kept"] == {"0": [0, 2, 4, 5, 7], "1": [3, 4, 5, 6, 7]}
    assert content["base"] == workshop.base.digest and content["experts"] == 8
    table = workshop.store.manifest(artifact)["facts"]["table"]
    assert len(table) == 16
    cut = {row["expert"]: row["margin"] for row in table if row["layer"] == 0}
    assert cut[2] == 0.5 and cut[6] == -0.5  # the cut lies between the scores 4 and 3
    assert all(row["kept"] == (row["margin"] > 0) for row in table)


def test_margins_are_from_the_cut_of_the_router_group():
    kept = Mask("", 8, {0: (0, 2, 5, 7)})
    scores = [[9.0, 6, 8, 5, 1, 4, 0, 3]]  # expert 1 goes although it beats all of the second group
    margin = {row["expert"]: row["margin"] for row in mask.margins(kept, scores, 2)}
    assert margin == {0: 2, 1: -1, 2: 1, 3: -2, 4: -1, 5: 2, 6: -2, 7: 1}


def test_margins_of_layers_that_keep_different_numbers_are_none():
    table = mask.margins(Mask("", 4, {0: (0, 1, 2), 1: (3,)}), [[4.0, 3, 2, 1]] * 2, 1)
    assert {row["margin"] for row in table} == {None} and table[0]["score"] == 4


def test_mask_from_other_scores_that_keep_the_same_is_the_same_artifact_by_content(workshop):
    scores = torch.rand(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one, content = make(workshop, scores, 4)
    two, same = make(workshop, scores * 3 + 1, 4)
    other, _ = make(workshop, -scores, 4)
    assert content == same and one.key != two.key and one.digest == two.digest != other.digest
    params = prune.PruneParams()
    assert prune.step(params, workshop.base, one).key == prune.step(params, workshop.base, two).key


def test_prune_mask_that_leaves_a_layer_fewer_than_top_k_is_refused(workshop):
    def build(target):
        (target / "mask.json").write_text(Mask(workshop.base.digest, 8, {0: (1, 2), 1: (3,)}).to_json())
        return {}

    artifact = workshop.store.produce(Step("mask", "test", "test", {}, {}), workshop.runtime, build)
    params = prune.PruneParams()
    with pytest.raises(BadInput, match="layer 1: 1 of 8 experts to keep, but the router needs 2"):
        prune.prune.fn(
            step=prune.step(params, workshop.base, artifact),
            runtime=workshop.runtime,
            params=params,
            trust_remote_code=False,
        )
