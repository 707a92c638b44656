"""What is carried over from the cards that base models have."""

from pathlib import Path

import pytest
import torch
from hub import closed_port, point_at, serve
from safetensors.torch import save_file

from tasks import download
from tasks.artifacts import Store
from tasks.base_card import BaseCard, read_base_card
from tasks.hub import Source
from tasks.hub_refusals import HubUnavailable

NAME, COMMIT = "owner/base", "e" * 40


def folder_with(tmp_path: Path, **files: str) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"weight": torch.ones(2)}, folder / "model.safetensors")
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def origin_of(folder: Path, tmp_path: Path) -> dict[str, str]:
    """What a run records of it."""
    step = download.step(download.DownloadParams(source=str(folder)), Source(folder), Store(tmp_path / "store"))
    content: dict[str, str] = step.params["source"]
    return content


def read(folder: Path, tmp_path: Path) -> BaseCard:
    return read_base_card(origin_of(folder, tmp_path), str(folder), Store(tmp_path / "store"))


def test_card_in_a_folder_gives_licence_language_and_terms_and_nothing_else(tmp_path: Path):
    folder = folder_with(tmp_path, README_md="---\nlicense: mit\nlanguage: [de, en]\ntags: [x]\n---\n", NOTICE="thanks")
    (folder / "notice").mkdir()
    found = read(folder, tmp_path)
    assert found == BaseCard(None, None, {"license": "mit", "language": ["de", "en"]}, {"NOTICE": folder / "NOTICE"})
    assert found.licence == {"license": "mit"}


@pytest.mark.parametrize("card", [None, "# No metadata\n", "---\nlicense: [\n---\n", "---\njust words\n---\n"])
def test_terms_without_a_card_that_names_them_are_a_licence_of_their_own(card: str | None, tmp_path: Path):
    folder = folder_with(tmp_path, LICENSE_txt="our terms", **({"README_md": card} if card else {}))
    found = read(folder, tmp_path)
    assert found.licence == {
        "license": "other",
        "license_name": "as-of-the-base-model",
        "license_link": "LICENSE.txt",
    }


def test_card_that_is_not_utf8_is_read_as_far_as_it_goes(tmp_path: Path):
    folder = folder_with(tmp_path, README_md="")
    (folder / "README.md").write_bytes("---\nlicense: mit\n---\nMüller's model".encode("latin-1"))
    assert read(folder, tmp_path).licence == {"license": "mit"}


def test_base_that_says_nothing_has_no_licence(tmp_path: Path):
    assert read(folder_with(tmp_path, NOTICE="thanks"), tmp_path).licence == {}
    assert read_base_card({"content": "a" * 64}, str(tmp_path / "gone"), Store(tmp_path)) == BaseCard(None)


def test_folder_that_holds_another_model_by_now_says_nothing_of_the_base(tmp_path: Path):
    folder = folder_with(tmp_path, README_md="---\nlicense: mit\n---\n", LICENSE_txt="terms")
    origin, store = origin_of(folder, tmp_path), Store(tmp_path / "store")
    assert read_base_card(origin, str(folder), store).licence == {"license": "mit"}
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
    assert read_base_card(origin, str(folder), store) == BaseCard(None)
    (folder / "model.safetensors").unlink()
    assert read_base_card(origin, str(folder), store) == BaseCard(None)


def test_base_on_the_hub_is_read_at_the_commit_that_was_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, licence in ((old, "mit"), (new, "apache-2.0")):
        folder.mkdir()
        (folder / "README.md").write_text(f"---\nlicense: {licence}\nlicense_link: legal/TERMS.md\n---\n")
        (folder / "model.safetensors").write_bytes(b"much")
    (old / "LICENSE").write_text("old terms")
    store, origin = Store(tmp_path / "store"), {"repository": NAME, "commit": COMMIT}
    with serve({NAME: {COMMIT: old, "f" * 40: new}}) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache")
        found = read_base_card(origin, NAME, store)
        assert found.licence == {
            "license": "mit",
            "license_link": f"{hub.url}/{NAME}/blob/{COMMIT}/legal/TERMS.md",
        }
        assert {name: path.read_text() for name, path in found.files.items()} == {"LICENSE": "old terms"}
        assert (found.repository, found.commit) == (NAME, COMMIT) and "model.safetensors" not in hub.served
    point_at(monkeypatch, f"http://127.0.0.1:{closed_port()}", tmp_path / "cache")
    assert read_base_card(origin, NAME, store).files == found.files, "what was fetched is still there"
    with pytest.raises(HubUnavailable):
        read_base_card(origin | {"commit": "f" * 40}, NAME, store)
