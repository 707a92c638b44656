"""distill through the store: killed and resumed, both kinds of masks, what it is keyed on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sample
import torch
from pydantic import ValidationError
from torch import Tensor

from moeprune import distillation
from moeprune.checkpoint import Checkpoint, open_checkpoint
from moeprune.errors import BadInput
from moeprune.masks import Mask
from moeprune.models import load_model
from moeprune.weight_masks import WeightMask
from moeprune.writing import write_checkpoint
from tasks import calibrate, distill, download, prune
from tasks.artifacts import Artifact, Step, Store
from tasks.calibrate import CalibrateParams
from tasks.distill import DistillParams

PARAMS = DistillParams(epochs=2, learning_rate=1e-3, batch_size=12)


def in_store(workshop, stage: str, name: str, build: Callable[[Path], Any]) -> Artifact:
    """An artifact made by hand."""
    step = Step(stage, "", "test", {"name": name}, {"download": workshop.base})
    return workshop.store.produce(step, workshop.runtime, lambda target: build(target) or {})


@pytest.fixture(scope="module")
def corpora(workshop) -> dict[str, Artifact]:
    sources = [{"name": name, "source": str(workshop.folder / f"sources/{name}.jsonl")} for name in sample.CORPORA]
    params = CalibrateParams(corpora=sources, tokens=128, sequence_length=16, chunks=4)
    tokenizer = download.tokenizer_of(workshop.base, workshop.store)
    return {
        corpus.name: calibrate.calibrate.fn(
            step=calibrate.step(params, corpus, Path(corpus.source), tokenizer, workshop.store),
            runtime=workshop.runtime,
            params=params,
            corpus=corpus,
            path=Path(corpus.source),
            trust_remote_code=False,
        )
        for corpus in params.corpora
    }


@pytest.fixture(scope="module")
def fewer(workshop) -> tuple[Artifact, Artifact]:
    """(mask, pruned checkpoint) with the same six experts of each layer."""
    kept = dict.fromkeys(range(sample.LAYERS), (1, 2, 3, 4, 6, 7))
    text = Mask(workshop.base.digest, sample.EXPERTS, kept).to_json()
    mask = in_store(workshop, "mask", "fewer", lambda target: (target / "mask.json").write_text(text) and None)
    params = prune.PruneParams(shard_size="30KB")
    step = prune.step(params, workshop.base, mask)
    return mask, prune.prune.fn(step=step, runtime=workshop.runtime, params=params, trust_remote_code=False)


def is_expert(name: str) -> bool:
    return ".experts." in name


@pytest.fixture(scope="module")
def sparser(workshop) -> tuple[Artifact, Artifact]:
    """(weight mask, checkpoint) with zeros for the smaller half of each expert's weights."""
    text = WeightMask(workshop.base.digest, "wanda", "0.5", (), "as_printed").to_json()
    mask = in_store(workshop, "mask", "sparser", lambda target: (target / "mask.json").write_text(text) and None)
    source = open_checkpoint(workshop.store.folder(workshop.base))

    def thinned(name: str) -> Tensor:
        value = source.read(name)
        return value.where(value.abs() > value.abs().median(), 0) if is_expert(name) else value

    contents = {name: (info, lambda name=name: thinned(name)) for name, info in source.tensors.items()}
    pruned = in_store(
        workshop, "prune", "sparser", lambda target: write_checkpoint(source, contents, source.config, target, 30_000)
    )
    return mask, pruned


def train(
    workshop, made: tuple[Artifact, Artifact], corpora: dict[str, Artifact], root: Path, params: DistillParams = PARAMS
) -> tuple[Checkpoint, dict[str, Any]]:
    """(checkpoint, facts) of a distillation in another store, which has the shared one's inputs."""
    if not root.exists():
        shutil.copytree(workshop.store.root, root, ignore=shutil.ignore_patterns("distill", "partial"))
    artifact = distill.distill.fn(
        step=distill.step(params, workshop.base, *made, corpora),
        runtime=workshop.runtime.model_copy(update={"store": root}),
        params=params,
        trust_remote_code=False,
    )
    store = Store(root)
    return open_checkpoint(store.folder(artifact)), store.manifest(artifact)["facts"]


def content(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {file: (checkpoint.folder / file).read_bytes() for file in checkpoint.files}


def test_distill_checkpoint_loads_and_is_like_the_pruned_one(workshop, fewer, corpora, tmp_path):
    found, facts = train(workshop, fewer, corpora, tmp_path / "store")
    pruned = open_checkpoint(workshop.store.folder(fewer[1]))
    assert found.config == pruned.config and found.tensors.keys() == pruned.tensors.keys()
    assert set(found.files) - set(found.weight_files) == set(pruned.files) - set(pruned.weight_files)
    assert 1 < len(found.weight_files) <= len(pruned.weight_files)
    for name, info in pruned.tensors.items():
        assert (found.tensors[name].dtype, found.tensors[name].shape) == (info.dtype, info.shape)
        assert not torch.equal(found.read(name), pruned.read(name)), f"{name} was not trained"
    load_model(found.folder)

    curve = facts["curve"]
    assert len(curve) == facts["steps"] >= 4 and [row["step"] for row in curve] == list(range(len(curve)))
    assert facts["expert_weight"] == curve[0]["cross_entropy"] / curve[0]["expert_loss"]
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_distill_zeros_of_a_weight_mask_are_in_the_file(workshop, sparser, corpora, tmp_path):
    found, _ = train(workshop, sparser, corpora, tmp_path / "store")
    before = open_checkpoint(workshop.store.folder(sparser[1]))
    for name in filter(is_expert, before.tensors):
        was, now = before.read(name), found.read(name)
        assert torch.equal(was == 0, now == 0) and 0.4 < float((now == 0).float().mean()) < 0.6
        assert not torch.equal(was, now)


@pytest.mark.parametrize("kind", ["fewer", "sparser"])
def test_distill_killed_at_any_step_gives_the_same_bytes(kind, workshop, corpora, tmp_path, monkeypatch, request):
    made = request.getfixturevalue(kind)
    whole, facts = train(workshop, made, corpora, tmp_path / "whole")
    monkeypatch.setattr(distill, "SAVE_SECONDS", 0.0)
    advance, taken = distillation.Distillation.advance, []

    def failing(training: distillation.Distillation) -> distillation.Point:
        if training.done not in taken:
            taken.append(training.done)
            raise OSError("the machine went away")
        return advance(training)

    monkeypatch.setattr(distillation.Distillation, "advance", failing)
    for _ in range(facts["steps"]):
        with pytest.raises(OSError, match="went away"):
            train(workshop, made, corpora, tmp_path / "cut")
    again, facts_again = train(workshop, made, corpora, tmp_path / "cut")
    assert taken == list(range(facts["steps"]))  # each attempt went on where the one before was killed
    assert content(again) == content(whole) and facts_again == facts
    assert not list((tmp_path / "cut/partial").iterdir())


def test_distill_killed_while_writing_does_not_train_again(workshop, fewer, corpora, tmp_path, monkeypatch):
    whole, _ = train(workshop, fewer, corpora, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk is full"):
        patch.setattr("moeprune.writing.write_safetensors", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
        train(workshop, fewer, corpora, tmp_path / "cut")
    monkeypatch.setattr(distillation.Distillation, "advance", lambda *_: pytest.fail("trained again"))
    assert content(train(workshop, fewer, corpora, tmp_path / "cut")[0]) == content(whole)


def test_distill_mask_of_another_base_is_refused(workshop, fewer, corpora, tmp_path):
    text = Mask("f" * 64, sample.EXPERTS, dict.fromkeys(range(sample.LAYERS), (1, 2, 3, 4, 6, 7))).to_json()
    other = in_store(workshop, "mask", "other", lambda target: (target / "mask.json").write_text(text) and None)
    with pytest.raises(BadInput, match=r"distill: the mask is of the checkpoint ffffffffffff, the base is"):
        train(workshop, (other, fewer[1]), corpora, tmp_path / "store")


def test_step_is_keyed_on_what_decides_the_weights(workshop, fewer, corpora):
    def key(params: DistillParams = PARAMS, corpora: dict[str, Artifact] = corpora) -> str | None:
        return distill.step(params, workshop.base, *fewer, corpora).key

    given = {"epochs": 1, "learning_rate": 1e-4, "batch_size": 2, "expert_weight": 1.0, "seed": 1, "dtype": "bfloat16"}
    keys = {key()} | {key(PARAMS.model_copy(update={name: value})) for name, value in given.items()}
    assert len(keys) == 1 + len(given)
    assert key(corpora=dict(reversed(corpora.items()))) not in keys  # batches are dealt in the corpora's order
    assert key(corpora={f"{name}-again": corpus for name, corpus in corpora.items()}) == key()
    assert key(corpora={**corpora, "wiki": None}) is None


def test_distill_in_bfloat16_trains_and_keeps_the_files_precision(workshop, fewer, corpora, tmp_path):
    params = PARAMS.model_copy(update={"dtype": "bfloat16", "epochs": 4})
    found, facts = train(workshop, fewer, corpora, tmp_path / "store", params)
    assert {info.dtype for info in found.tensors.values()} == {"F32"}
    assert facts["curve"][-1]["loss"] < facts["curve"][0]["loss"]


@pytest.mark.parametrize(
    "given",
    [{"epochs": 0}, {"learning_rate": 0}, {"batch_size": 0}, {"expert_weight": -1}, {"dtype": "float16"}],
    ids=str,
)
def test_params_out_of_range_are_refused(given):
    with pytest.raises(ValidationError):
        DistillParams(**given)
