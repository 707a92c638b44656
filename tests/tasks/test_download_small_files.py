"""Files beside the weights, from a Hub on the loopback interface and from folders; code only as the Hub names it."""

import shutil
from pathlib import Path

import pytest
from downloaded import OLD, fetch, resolve, serve_alone

from moeprune.checkpoint import open_checkpoint
from moeprune.errors import BadInput
from tasks import download
from tasks.artifacts import MANIFEST, Store

EXTRA = {
    "preprocessor_config.json": "{}",
    "processor_config.json": '{"a": 1}',
    "chat_template.json": '{"b": 1}',
    "own.tiktoken": "QQ== 0\n",
    "tiktoken.model": "Qg== 1\n",
    "tokenization_own.py": "NAME = 'own'\n",
}


@pytest.fixture
def extended(models, tmp_path) -> Path:
    """A model of a processor and a tokenizer with code of its own, which no config names, and a licence."""
    folder = tmp_path / "extended"
    shutil.copytree(models[OLD], folder)
    for name, text in (EXTRA | {"LICENSE.txt": "free"}).items():
        (folder / name).write_text(text)
    return folder


def test_download_hub_brings_processors_and_tokenizers_of_any_format(extended, runtime, monkeypatch, tmp_path):
    with serve_alone({OLD: extended}, monkeypatch, tmp_path / "cache") as hub:
        source = resolve(runtime)
        told = download.bytes_to_fetch(source)
        before = hub.sent
        _, from_hub = fetch(runtime)
        assert hub.sent - before == told
        assert not {"LICENSE.txt", "README.md"} & set(hub.served)
    folder = Store(runtime.store).folder(from_hub)
    assert {name: (folder / name).read_text() for name in EXTRA} == EXTRA
    _, from_folder = fetch(runtime, source=str(extended))
    assert from_folder.digest == from_hub.digest


@pytest.mark.parametrize("name", EXTRA)
def test_download_folder_of_another_small_file_is_another_model(name: str, extended, runtime):
    _, before = fetch(runtime, source=str(extended))
    (extended / name).write_text(EXTRA[name] + " ")
    _, after = fetch(runtime, source=str(extended))
    assert before.key != after.key and before.digest != after.digest


def test_download_folder_of_another_licence_is_the_same_model(extended, runtime):
    _, before = fetch(runtime, source=str(extended))
    (extended / "LICENSE.txt").write_text("not free")
    assert fetch(runtime, source=str(extended))[1] == before


@pytest.mark.parametrize(
    ("name", "same"),
    [("own.tiktoken", False), ("tokenization_own.py", False), ("tokenizer.json", False), ("config.json", True)],
)
def test_tokenizer_is_another_if_a_file_it_may_read_is(name: str, same: bool, extended, runtime):
    store = Store(runtime.store)
    before = download.tokenizer_of(fetch(runtime, source=str(extended))[1], store)
    (extended / name).write_text((extended / name).read_text() + " ")
    after = download.tokenizer_of(fetch(runtime, source=str(extended))[1], store)
    assert (before.digest == after.digest) is same


def test_checkpoint_in_the_store_is_what_was_taken_in(extended, runtime):
    _, artifact = fetch(runtime, source=str(extended))
    folder = Store(runtime.store).folder(artifact)
    assert MANIFEST not in open_checkpoint(folder).files and (folder / MANIFEST).is_file()
    assert fetch(runtime, source=str(folder))[1] == artifact


def test_code_that_is_not_what_the_hub_names_is_refused_before_it_can_run(extended, runtime, monkeypatch, tmp_path):
    with serve_alone({OLD: extended}, monkeypatch, tmp_path / "cache") as hub:
        hub.poisoned.add("tokenization_own.py")
        source = resolve(runtime)
        with pytest.raises(BadInput, match=r"tokenization_own\.py has the hash .* removed from the cache, run again"):
            download.read_config_folder(source)
        assert not list((tmp_path / "cache").rglob("tokenization_own.py"))
        hub.poisoned.clear()
        folder = download.read_config_folder(source)
    assert (folder / "tokenization_own.py").read_text() == EXTRA["tokenization_own.py"]
