"""Checkpoints that are broken are refused with the file and what is wrong with it."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from moeprune.checkpoint import CONFIG_FILES, Checkpoint, TensorInfo, open_checkpoint, refuse_non_finite
from moeprune.errors import BadInput
from moeprune.hashing import digest_of, sha256
from moeprune.models import load_model
from moeprune.writing import write_safetensors

INDEX = "model.safetensors.index.json"


@pytest.fixture
def single(tmp_path):
    tiny.shared_model("olmoe").save_pretrained(tmp_path / "single")
    return tmp_path / "single"


@pytest.fixture
def sharded(tmp_path):
    tiny.shared_model("olmoe").save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    return tmp_path / "sharded"


def test_open_headers_tell_what_the_library_reads(single, sharded):
    state = load_file(single / "model.safetensors")
    for folder in (single, sharded):
        checkpoint = open_checkpoint(folder)
        assert {name: info.shape for name, info in checkpoint.tensors.items()} == {n: t.shape for n, t in state.items()}
        assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in state.items())
        assert checkpoint.weight_bytes == sum(tensor.nbytes for tensor in state.values())
    assert len(open_checkpoint(sharded).weight_files) > 2
    assert INDEX in open_checkpoint(sharded).files and INDEX not in open_checkpoint(single).files


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("left", [-1, 20, 4, 0], ids=["one byte short", "within header", "within length", "empty"])
def test_open_truncated_shard_is_refused_by_name(sharded, left):
    victim = sorted(sharded.glob("*.safetensors"))[1]
    cut(victim, left)
    with pytest.raises(BadInput, match=f"{victim.name}.*download it again"):
        open_checkpoint(sharded)


def test_open_shard_with_bytes_behind_its_end_is_refused(single):
    with (single / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BadInput, match=r"model\.safetensors has \d+ bytes where its header says"):
        open_checkpoint(single)


def test_open_missing_shard_is_named(sharded):
    victim = sorted(sharded.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(BadInput, match=rf"names {victim.name}, which is not there \(1 of \d+ shards missing\)"):
        open_checkpoint(sharded)


def test_open_tensor_in_the_index_but_in_no_shard_is_named(sharded):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.layers.9.extra.weight"] = next(iter(index["weight_map"].values()))
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"model\.layers\.9\.extra\.weight, which no shard holds"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]", "names no shard"),
        (b"{}", "names no shard"),
        (b'{"weight_map": {}}', "names no shard"),
        (b'{"weight_map": ["a.safetensors"]}', "names no shard"),
        (b'{"weight_map": {"lm_head.weight": 1}}', "names no shard"),
    ],
)
def test_open_index_that_is_none_is_refused_in_one_line(content, said, sharded):
    (sharded / INDEX).write_bytes(content)
    with pytest.raises(BadInput, match=rf"{INDEX} {said}.*download it again") as refusal:
        open_checkpoint(sharded)
    assert "\n" not in str(refusal.value)


def test_open_folder_without_config_or_weights_is_refused(single):
    (single / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="only safetensors checkpoints"):
        open_checkpoint(single)
    (single / "config.json").unlink()
    with pytest.raises(BadInput, match=r"no config\.json"):
        open_checkpoint(single)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        *((dtype, value) for dtype in (torch.float32, torch.bfloat16) for value in (torch.nan, torch.inf, -torch.inf)),
        (torch.float8_e4m3fn, torch.nan),  # this type has no infinity
    ],
)
def test_non_finite_weight_is_refused_naming_the_tensor(tmp_path, dtype, value):
    weights = {name: torch.ones(4, 4).to(dtype) for name in ("a", "b", "c")}
    save_file(weights | {"ids": torch.arange(3)}, tmp_path / "w.safetensors")
    refuse_non_finite(tmp_path / "w.safetensors")
    weights["b"][2, 3] = value
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(BadInput, match=r"w\.safetensors holds NaN or infinite values in b"):
        refuse_non_finite(tmp_path / "w.safetensors")


def test_large_finite_weights_are_not_taken_for_infinite(tmp_path):
    save_file({"a": torch.full((8,), 3e38), "b": torch.full((8,), 6e4).half()}, tmp_path / "w.safetensors")
    refuse_non_finite(tmp_path / "w.safetensors")


def digest(checkpoint: Checkpoint) -> str:
    return digest_of({name: sha256(checkpoint.folder / name) for name in checkpoint.files})


def test_digest_ignores_a_readme_and_sees_config_weights_and_tokenizer(single):
    before = digest(open_checkpoint(single))
    (single / "README.md").write_text("# A model")
    (single / "training_args.bin").write_bytes(b"1")
    assert digest(open_checkpoint(single)) == before
    seen = {before}
    for name in (*CONFIG_FILES, "tokenizer.json"):
        path = single / name
        path.write_text((path.read_text() if path.exists() else "{}") + "\n")
        seen.add(digest(open_checkpoint(single)))
    state = load_file(single / "model.safetensors")
    state["lm_head.weight"][0, 0] += 1e-3
    save_file(state, single / "model.safetensors", metadata={"format": "pt"})
    seen.add(digest(open_checkpoint(single)))
    assert len(seen) == 5


def test_digest_does_not_depend_on_order():
    assert digest_of({"a": "1", "b": "2"}) == digest_of({"b": "2", "a": "1"}) != digest_of({"a": "2", "b": "1"})


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz),
        *(torch.int64, torch.int32, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.bool),
    ],
    ids=str,
)
def test_written_file_is_read_by_the_library(tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "matrix": (torch.randn(3, 5, generator=generator) * 4).to(dtype),
        "transposed": (torch.randn(3, 5, generator=generator) * 4).to(dtype).T,
        "scalar": torch.tensor(1).to(dtype),
        "empty": torch.zeros(0, 4).to(dtype),
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "library.safetensors")
    headers = {}
    for name in tensors:  # the header as the library writes it tells the word for the type
        text = (tmp_path / "library.safetensors").read_bytes()
        entry = json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])[name]
        headers[name] = TensorInfo("ours", entry["dtype"], tuple(entry["shape"]), tensors[name].nbytes)
    write_safetensors(tmp_path / "ours.safetensors", headers, iter(tensors.values()))
    found = load_file(tmp_path / "ours.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name].double(), tensor.double())


def test_four_bit_numbers_travel_as_bytes(tmp_path):
    packed = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    stored = TensorInfo("ours.safetensors", "F4", (2, 3, 8), 24)
    write_safetensors(tmp_path / "model.safetensors", {"w": stored}, iter([packed.view(torch.float4_e2m1fn_x2)]))
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors["w"].shape == (2, 3, 8) and checkpoint.weight_bytes == 24
    read = checkpoint.read("w").index_select(0, torch.tensor([1]))
    assert torch.equal(read.view(torch.uint8), packed[1:])
    refuse_non_finite(tmp_path / "model.safetensors")


def test_open_type_that_torch_does_not_have_is_refused_by_name(tmp_path):
    header = json.dumps({"w": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"123")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match="holds w as F6_E2M3"):
        open_checkpoint(tmp_path)


def test_written_tensor_of_another_shape_or_type_than_planned_is_an_error(tmp_path):
    planned = {"w": TensorInfo("w", "F32", (2, 3), 24)}
    for value in (torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float16)):
        with pytest.raises(ValueError, match="planned was"):
            write_safetensors(tmp_path / "w.safetensors", planned, iter([value]))


@pytest.mark.parametrize("fault", ["missing", "left over", "misshapen"])
def test_load_model_weights_that_do_not_fit_the_config_are_refused(single, fault):
    state = load_file(single / "model.safetensors")
    name = "model.layers.1.mlp.gate.weight"
    if fault == "missing":
        del state[name]
    elif fault == "misshapen":
        state[name] = state[name][:6].clone()
    else:
        state["model.layers.1.mlp.gate.extra"] = torch.ones(1)
    save_file(state, single / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"model\.layers\.1\.mlp\.gate"):
        load_model(single)


def test_load_model_computes_what_was_saved(single):
    ids = torch.stack(tiny.token_ids(12))
    expected = tiny.logits(tiny.shared_model("olmoe"), ids)
    torch.testing.assert_close(tiny.logits(load_model(single), ids), expected, rtol=0, atol=1e-5)
    assert load_model(single, "bfloat16").dtype == torch.bfloat16
