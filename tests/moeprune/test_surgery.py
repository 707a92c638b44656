"""Pruned files against the whole model in which the removed experts cannot be chosen."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from moeprune.checkpoint import Checkpoint, open_checkpoint
from moeprune.configs import read_config
from moeprune.errors import BadInput
from moeprune.file_plan import read_file_plan
from moeprune.masks import Mask
from moeprune.schema import Plan, read_plan
from moeprune.sizes import parameters, pruned_bytes
from moeprune.surgery import prune_checkpoint
from moeprune.writing import write_checkpoint

KEEP = 6
ONE_FILE = 10**9
TOLERANCE = 1e-5
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
IDS = torch.stack(tiny.token_ids(24, 24))


def plan_of(folder: Path) -> Plan:
    return read_file_plan(open_checkpoint(folder))


def some_mask(plan: Plan, keep: int = KEEP, seed: int = 7) -> Mask:
    """Other experts in each layer; half of them from each half, as two router groups demand."""
    generator = torch.Generator().manual_seed(seed)
    half = plan.experts // 2
    kept = {
        layer: tuple(
            sorted(
                first + expert
                for first in (0, half)
                for expert in torch.randperm(half, generator=generator)[: keep // 2].tolist()
            )
        )
        for layer in plan.layers
    }
    return Mask("0" * 64, plan.experts, kept)


def prune(folder: Path, target: Path, mask: Mask, shard_bytes: int = ONE_FILE) -> Checkpoint:
    target.mkdir()
    prune_checkpoint(open_checkpoint(folder), plan_of(folder), mask, target, shard_bytes)
    return open_checkpoint(target)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@every_family
def test_pruned_checkpoint_equals_the_model_with_router_logits_at_minus_infinity(family, saved, tmp_path):
    mask = some_mask(plan_of(saved(family)))
    prune(saved(family), tmp_path / "pruned", mask)
    pruned, whole = tiny.load(tmp_path / "pruned"), tiny.shared_model(family)
    found = tiny.logits(pruned, IDS)
    assert distance(found, tiny.masked_logits(whole, IDS, mask.kept)) < TOLERANCE
    assert distance(found, tiny.logits(whole, IDS)) > 1e-2, "pruning changed nothing: the comparison shows nothing"


@every_family
def test_pruned_checkpoint_differs_under_a_wrong_mask_and_with_two_experts_swapped(family, saved, tmp_path):
    plan = plan_of(saved(family))
    mask, last = some_mask(plan), plan.layers[-1]
    prune(saved(family), tmp_path / "pruned", mask)
    pruned, whole = tiny.load(tmp_path / "pruned"), tiny.shared_model(family)
    found = tiny.logits(pruned, IDS)
    half = [expert for expert in mask.removed(last) if expert < plan.experts // 2]
    wrong = tuple(sorted((*mask.kept[last][1:], half[0])))  # one other expert, in one layer
    assert distance(found, tiny.masked_logits(whole, IDS, mask.kept | {last: wrong})) > 1e-3
    with torch.no_grad():
        down = tiny.moe_blocks(pruned)[last].experts.down_proj
        down[[0, 1]] = down[[1, 0]]
    assert distance(tiny.logits(pruned, IDS), found) > 1e-3


@every_family
def test_pruning_no_expert_reproduces_the_model_exactly(family, saved, tmp_path):
    plan = plan_of(saved(family))
    pruned = prune(saved(family), tmp_path / "pruned", some_mask(plan, keep=plan.experts))
    source = open_checkpoint(saved(family))
    assert pruned.tensors.keys() == source.tensors.keys()
    assert all(torch.equal(pruned.read(name), source.read(name)) for name in source.tensors)
    assert pruned.config == source.config
    assert torch.equal(tiny.logits(tiny.load(tmp_path / "pruned"), IDS), tiny.logits(tiny.load(saved(family)), IDS))


@every_family
def test_config_is_edited_in_the_expert_count_only(family, saved, tmp_path):
    prune(saved(family), tmp_path / "pruned", some_mask(plan_of(saved(family))))
    folders = (saved(family), tmp_path / "pruned")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in folders)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert changed and changed <= {"num_experts", "num_local_experts", "n_routed_experts"}
    assert all((before[key], after[key]) == (tiny.EXPERTS, KEEP) for key in changed)


@every_family
@pytest.mark.parametrize("keep", [tiny.EXPERTS, KEEP])
def test_bytes_and_parameters_are_those_of_the_pruned_model(family, keep, saved, tmp_path):
    plan, source = plan_of(saved(family)), open_checkpoint(saved(family))
    pruned = prune(saved(family), tmp_path / "pruned", some_mask(plan, keep))
    assert pruned_bytes(source, plan, keep) == pruned.weight_bytes
    assert pruned_bytes(source, plan, keep) == sum(
        v.nbytes for v in load_file(tmp_path / "pruned/model.safetensors").values()
    )
    model = tiny.load(tmp_path / "pruned")
    total = sum(tensor.numel() for tensor in model.state_dict().values())
    idle = sum(p.numel() for block in tiny.moe_blocks(model).values() for p in block.experts.parameters())
    active = total - idle * (keep - tiny.TOP_K) / keep
    assert parameters(source, plan, keep, tiny.TOP_K) == (total, active)


def fused(folder: Path, target: Path) -> Path:
    """The same checkpoint with its experts stacked in the file, under the names they have in memory."""
    shutil.copytree(folder, target)
    state = {name: tensor.contiguous() for name, tensor in tiny.load(folder).state_dict().items()}
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_fused_file_is_pruned_along_its_expert_axis(family, saved, tmp_path):
    source = fused(saved(family), tmp_path / "fused")
    assert "model.layers.0.mlp.experts.gate_up_proj" in open_checkpoint(source).tensors
    mask = some_mask(plan_of(source))
    pruned = prune(source, tmp_path / "pruned", mask)
    assert pruned.tensors["model.layers.0.mlp.experts.gate_up_proj"].shape[0] == KEEP
    expected = tiny.masked_logits(tiny.shared_model(family), IDS, mask.kept)
    assert distance(tiny.logits(tiny.load(tmp_path / "pruned"), IDS), expected) < TOLERANCE


@pytest.mark.parametrize("source_shards", ["30KB", "10GB"], ids=["sharded-source", "single-source"])
@pytest.mark.parametrize("shard_bytes", [30_000, ONE_FILE], ids=["sharded-target", "single-target"])
def test_shards_of_any_number_become_shards_of_any_number(source_shards, shard_bytes, tmp_path):
    tiny.shared_model("mixtral").save_pretrained(tmp_path / "whole", max_shard_size=source_shards)
    source = open_checkpoint(tmp_path / "whole")
    assert (len(source.weight_files) > 3) == (source_shards == "30KB")
    mask = some_mask(plan_of(source.folder))
    pruned = prune(source.folder, tmp_path / "pruned", mask, shard_bytes)
    expected = tiny.masked_logits(tiny.shared_model("mixtral"), IDS, mask.kept)
    assert distance(tiny.logits(tiny.load(tmp_path / "pruned"), IDS), expected) < TOLERANCE
    index = tmp_path / "pruned" / "model.safetensors.index.json"
    if shard_bytes == ONE_FILE:
        assert pruned.weight_files == ["model.safetensors"] and not index.exists()
    else:
        assert len(pruned.weight_files) > 3
        content = json.loads(index.read_text())
        for file in pruned.weight_files:
            tensors = load_file(pruned.folder / file)
            assert sum(tensor.nbytes for tensor in tensors.values()) <= shard_bytes
            assert {name for name, where in content["weight_map"].items() if where == file} == tensors.keys()
        assert content["metadata"]["total_size"] == pruned.weight_bytes


def test_a_tensor_larger_than_a_shard_gets_one_of_its_own(saved, tmp_path):
    pruned = prune(saved("mixtral"), tmp_path / "pruned", some_mask(plan_of(saved("mixtral"))), shard_bytes=1)
    assert len(pruned.weight_files) == len(pruned.tensors)
    tiny.load(tmp_path / "pruned")


@every_family
def test_pruning_twice_gives_the_same_bytes(family, saved, tmp_path):
    mask = some_mask(plan_of(saved(family)))
    first, second = (prune(saved(family), tmp_path / name, mask, shard_bytes=40_000) for name in ("a", "b"))
    assert first.files == second.files
    for file in first.files:
        assert (first.folder / file).read_bytes() == (second.folder / file).read_bytes(), file


def test_stored_precisions_are_kept_and_mixed_ones_are_readable(saved, tmp_path):
    shutil.copytree(saved("deepseek_v3"), tmp_path / "mixed")
    state = load_file(tmp_path / "mixed" / "model.safetensors")
    state = {name: tensor if "bias" in name or "norm" in name else tensor.bfloat16() for name, tensor in state.items()}
    state["a.first.by.name"] = torch.ones(3, dtype=torch.bfloat16)  # 6 bytes: what follows it is not aligned to 4
    save_file(state, tmp_path / "mixed" / "model.safetensors", metadata={"format": "pt"})
    prune(tmp_path / "mixed", tmp_path / "pruned", some_mask(plan_of(tmp_path / "mixed")))
    found = load_file(tmp_path / "pruned" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.bfloat16}
    content = (tmp_path / "pruned" / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8 : 8 + length]).items():
        assert name == "__metadata__" or entry["data_offsets"][0] % found[name].element_size() == 0, name
    assert all(found[name].dtype == state[name].dtype for name in found if ".experts." not in name)


def test_plan_of_the_config_alone_does_not_prune_files_that_hold_more(saved, tmp_path):
    shutil.copytree(saved("qwen3_moe"), tmp_path / "more")
    path, name = tmp_path / "more" / "model.safetensors", "model.layers.0.mlp.experts.0.gate_proj.weight_scale_inv"
    save_file(load_file(path) | {name: torch.ones(1, 1)}, path, metadata={"format": "pt"})
    plan = read_plan(read_config(tmp_path / "more"))
    with pytest.raises(ValueError, match=f"{name} belongs to one expert, .* give that of the files"):
        prune_checkpoint(open_checkpoint(tmp_path / "more"), plan, some_mask(plan), tmp_path / "pruned", ONE_FILE)


def test_mask_that_does_not_fit_the_checkpoint_is_refused(saved, tmp_path):
    fits = some_mask(plan_of(saved("olmoe")))
    for number, (experts, kept) in enumerate(
        [
            (8, {0: fits.kept[0]}),  # a layer is missing
            (8, fits.kept | {2: fits.kept[0]}),  # a layer too many
            (16, fits.kept),
        ]
    ):
        with pytest.raises(BadInput, match="make a mask for this checkpoint"):
            prune(saved("olmoe"), tmp_path / str(number), Mask(fits.base, experts, kept))


def test_tokenizer_and_generation_config_go_along_and_other_files_stay(saved, tmp_path):
    shutil.copytree(saved("olmoe"), tmp_path / "whole")
    for name in ("tokenizer.json", "chat_template.jinja", "README.md", "optimizer.bin"):
        (tmp_path / "whole" / name).write_text(name)
    prune(tmp_path / "whole", tmp_path / "pruned", some_mask(plan_of(tmp_path / "whole")))
    assert {path.name for path in (tmp_path / "pruned").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    }


def test_code_goes_along_with_the_config_that_names_it(saved, tmp_path):
    shutil.copytree(saved("olmoe"), tmp_path / "whole")
    (tmp_path / "whole/modeling_own.py").write_text("A = 1\n")
    config = json.loads((tmp_path / "whole/config.json").read_text())
    (tmp_path / "whole/config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "modeling_own.Own"}}))
    pruned = prune(tmp_path / "whole", tmp_path / "pruned", some_mask(plan_of(tmp_path / "whole")))
    assert (tmp_path / "pruned/modeling_own.py").read_text() == "A = 1\n"
    assert "modeling_own.py" in pruned.files and pruned.config["auto_map"]


def test_progress_is_told_every_byte(saved, tmp_path):
    source, plan = open_checkpoint(saved("olmoe")), plan_of(saved("olmoe"))
    told: list[int] = []
    prune_checkpoint(source, plan, some_mask(plan), tmp_path, ONE_FILE, told.append)
    assert sum(told) == pruned_bytes(source, plan, KEEP)


def doubled(source: Checkpoint) -> dict:
    """Contents in which every norm is twice what it was."""
    return {
        name: (info, lambda name=name: source.read(name) * (2 if "norm" in name else 1))
        for name, info in source.tensors.items()
    }


def test_checkpoint_is_written_from_any_contents_with_the_config_given(saved, tmp_path):
    shutil.copytree(saved("olmoe"), tmp_path / "whole")
    (tmp_path / "whole/tokenizer.json").write_text("{}")
    source, told = open_checkpoint(tmp_path / "whole"), []
    (tmp_path / "new").mkdir()
    config = source.config | {"rms_norm_eps": 1e-3}
    write_checkpoint(source, doubled(source), config, tmp_path / "new", 40_000, told.append)
    new = open_checkpoint(tmp_path / "new")
    assert new.config == config and len(new.weight_files) > 3 and sum(told) == new.weight_bytes
    assert (tmp_path / "new/tokenizer.json").is_file() and (tmp_path / "new/generation_config.json").is_file()
    model = tiny.new_model("olmoe")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(2 if "norm" in name else 1)
    loaded = tiny.load(tmp_path / "new").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("change", [lambda tensor: tensor.double(), lambda tensor: tensor[:-1]], ids=["dtype", "shape"])
def test_tensor_read_as_another_than_promised_is_refused(change, saved, tmp_path):
    source = open_checkpoint(saved("olmoe"))
    contents = {name: (info, lambda name=name: change(source.read(name))) for name, info in source.tensors.items()}
    with pytest.raises(ValueError, match="planned was"):
        write_checkpoint(source, contents, source.config, tmp_path, ONE_FILE)
