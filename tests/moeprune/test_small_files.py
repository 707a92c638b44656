"""Which files beside the weights make up a checkpoint: what a tokenizer or processor may read counts and goes along."""

import json
import shutil

import pytest
import tiny

from moeprune import checkpoint
from moeprune.checkpoint import INDEX, is_small_file, open_checkpoint
from moeprune.file_plan import read_file_plan
from moeprune.hashing import digest_of, sha256
from moeprune.masks import Mask
from moeprune.surgery import prune_checkpoint

OF_THE_MODEL = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model"),
    *("chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json"),
    *("video_preprocessor_config.json", "audio_tokenizer_config.json", "tiktoken.model", "qwen.tiktoken"),
    *("sentencepiece.bpe.model", "source.spm", "bpe.codes", "dict.txt", "tokenization_own.py", "tekken.json"),
)
OF_NO_MODEL = (
    *("README.md", "README.txt", "LICENSE", "LICENSE.txt", "license_model.txt", "NOTICE.txt", "requirements.txt"),
    *("modelcard.json", ".hidden.json", "manifest.json", "model.safetensors", "pytorch_model.bin", "optimizer.pt"),
    *("pytorch_model.bin.index.json", INDEX, "figure.png", "original/params.json", "recipe.yaml"),
)


@pytest.fixture
def folder(tmp_path):
    tiny.shared_model("olmoe").save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def digest(folder) -> str:
    return digest_of({name: sha256(folder / name) for name in open_checkpoint(folder).files})


def write(folder, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(f'{{"name": "{name}"}}')


@pytest.mark.parametrize("name", [name for name in OF_THE_MODEL if name != "config.json"])
def test_file_that_may_decide_a_result_counts(name, folder):
    (folder / name).unlink(missing_ok=True)
    before = digest(folder)
    write(folder, name)
    assert digest(folder) != before


@pytest.mark.parametrize("name", [name for name in OF_NO_MODEL if name not in ("model.safetensors", INDEX)])
def test_file_that_decides_no_result_does_not_count(name, folder):
    before = digest(folder)
    write(folder, name)
    assert digest(folder) == before


def test_file_is_told_by_its_path_alone_but_for_the_size():
    assert all(is_small_file(name, 1) for name in OF_THE_MODEL)
    assert not any(is_small_file(name, 1) for name in OF_NO_MODEL)
    assert is_small_file("tokenizer.json", checkpoint.SMALL_BYTES)
    assert not is_small_file("tokenizer.json", checkpoint.SMALL_BYTES + 1)


def test_large_file_of_such_a_name_does_not_count(folder, monkeypatch):
    write(folder, "dump.json")
    assert "dump.json" in open_checkpoint(folder).files
    monkeypatch.setattr(checkpoint, "SMALL_BYTES", (folder / "dump.json").stat().st_size - 1)
    assert "dump.json" not in open_checkpoint(folder).files


def test_pruned_checkpoint_keeps_processors_and_the_code_of_its_tokenizer_byte_for_byte(folder, tmp_path):
    for name in (*OF_THE_MODEL[1:], *OF_NO_MODEL[:6]):
        write(folder, name)
    auto_map = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}  # which config.json does not have
    (folder / "tokenizer_config.json").write_text(json.dumps(auto_map))
    source, less = open_checkpoint(folder), tmp_path / "less"
    plan = read_file_plan(source)
    less.mkdir()
    prune_checkpoint(source, plan, Mask("", 8, dict.fromkeys(plan.layers, (0, 1, 2, 3))), less, 10**9)
    assert {path.name for path in less.iterdir()} == {*OF_THE_MODEL, "model.safetensors"}
    assert all((less / name).read_bytes() == (folder / name).read_bytes() for name in OF_THE_MODEL[1:])


def test_copy_of_a_folder_is_the_same_checkpoint(folder, tmp_path):
    for name in OF_THE_MODEL[1:]:
        write(folder, name)
    shutil.copytree(folder, tmp_path / "copy")
    assert digest(tmp_path / "copy") == digest(folder)
