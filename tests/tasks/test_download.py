"""From a folder, and from a Hub on the loopback interface."""

import logging
import shutil
from pathlib import Path

import pytest
import sample
from hub import Hub, closed_port, point_at, serve

from moeprune.checkpoint import sha256
from moeprune.errors import BadInput
from tasks import download
from tasks.artifacts import Artifact, Runtime, Store
from tasks.download import DownloadParams

NAME, OLD, NEW = "owner/tiny", "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two commits of a repository."""
    folder = tmp_path_factory.mktemp("hub")
    found = {OLD: sample.write_model(folder / "old", seed=1), NEW: sample.write_model(folder / "new", seed=2)}
    for model in found.values():
        (model / "README.md").write_text("not part of a checkpoint")
        (model / "pytorch_model.bin").write_bytes(b"not part of a checkpoint either")
    return found


@pytest.fixture
def hub(models, tmp_path, monkeypatch):
    with serve({NAME: models}) as running:
        running.heads[NAME] = OLD
        point_at(monkeypatch, running.url, tmp_path / "cache")
        yield running


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(store=tmp_path / "store")


def fetch(runtime: Runtime, source: str = NAME, revision: str | None = None) -> tuple[download.Source, Artifact]:
    store = Store(runtime.store)
    params = DownloadParams(source=source, revision=revision)
    resolved = download.resolve(params, store)
    step = download.step(params, resolved, store)
    return resolved, download.download.fn(step=step, runtime=runtime, source=resolved)


def unplug(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    point_at(monkeypatch, f"http://127.0.0.1:{closed_port()}", tmp_path / "cache")


def weights(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.glob("*.safetensors")}


def test_download_hub_revision_becomes_its_commit_and_its_files(hub, models, runtime):
    source, artifact = fetch(runtime)
    folder = Store(runtime.store).folder(artifact)
    assert source.commit == OLD
    assert weights(folder) == weights(models[OLD])
    assert (folder / "tokenizer.json").read_bytes() == (models[OLD] / "tokenizer.json").read_bytes()
    fetched = {path.rsplit("/", 1)[1] for method, path in hub.requests if method == "GET" and "/resolve/" in path}
    assert not fetched & {"README.md", "pytorch_model.bin"}


def test_download_hub_second_time_fetches_no_file(hub, runtime):
    _, first = fetch(runtime)
    hub.requests.clear()
    assert fetch(runtime)[1] == first
    assert not [path for _, path in hub.requests if "/resolve/" in path]


def test_download_hub_main_moved_on_is_another_model(hub, models, runtime):
    _, old = fetch(runtime)
    hub.heads[NAME] = NEW
    source, new = fetch(runtime)
    assert source.commit == NEW
    assert new.key != old.key and new.digest != old.digest
    assert weights(Store(runtime.store).folder(new)) == weights(models[NEW])


def test_download_hub_pinned_commit_stays_when_main_moves_on(hub, runtime):
    _, old = fetch(runtime, revision=OLD)
    hub.heads[NAME] = NEW
    assert fetch(runtime, revision=OLD)[1] == old


def test_download_hub_and_folder_of_the_same_files_are_the_same_checkpoint(hub, models, runtime):
    _, from_hub = fetch(runtime)
    _, from_folder = fetch(runtime, source=str(models[OLD]))
    assert from_folder.digest == from_hub.digest


def test_download_hub_gone_stays_at_the_last_commit_and_says_so(hub, runtime, monkeypatch, tmp_path, caplog):
    hub.heads[NAME] = NEW
    _, online = fetch(runtime)
    unplug(hub, monkeypatch, tmp_path)
    with caplog.at_level(logging.WARNING):
        source, offline = fetch(runtime)
    assert source.commit == NEW and offline == online
    assert NEW in caplog.text and "cannot be reached" in caplog.text


def test_download_hub_gone_before_the_store_had_it_uses_what_was_fetched(hub, runtime, monkeypatch, tmp_path):
    _, online = fetch(runtime)
    shutil.rmtree(runtime.store / "download")
    unplug(hub, monkeypatch, tmp_path)
    assert fetch(runtime)[1] == online


def test_download_hub_never_reached_is_refused(runtime, hub, monkeypatch, tmp_path):
    unplug(hub, monkeypatch, tmp_path)
    with pytest.raises(BadInput, match=r"no folder owner/tiny, and the Hub at http://127.* cannot be reached"):
        fetch(runtime)


@pytest.mark.parametrize(
    ("name", "revision"), [("owner/nothing", None), (NAME, "no-such-branch")], ids=["repository", "revision"]
)
def test_download_hub_does_not_have_it_is_refused(name: str, revision: str | None, hub, runtime):
    with pytest.raises(BadInput, match=r"the Hub does not give out .*check the name and revision"):
        fetch(runtime, source=name, revision=revision)


def test_download_hub_sending_cut_off_is_never_taken_for_whole(hub, models, runtime):
    hub.broken.add("model-00002-of-00005.safetensors")
    try:
        _, artifact = fetch(runtime)
    except Exception:  # the library gives up or goes on by itself; the next try must be whole
        assert not list((runtime.store / "download").glob("[0-9a-f]*"))
        _, artifact = fetch(runtime)
    assert weights(Store(runtime.store).folder(artifact)) == weights(models[OLD])


def test_download_hub_repository_without_a_shard_is_refused(models, tmp_path, runtime, monkeypatch):
    shutil.copytree(models[OLD], tmp_path / "less")
    (tmp_path / "less/model-00002-of-00005.safetensors").unlink()
    with serve({NAME: {OLD: tmp_path / "less"}}) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache")
        with pytest.raises(BadInput, match=r"names model-00002-of-00005\.safetensors, which is not there"):
            fetch(runtime)


def test_read_config_gated_repository_is_refused_with_the_remedy(hub):
    hub.gated.add(NAME)
    with pytest.raises(BadInput, match=r"GatedRepoError.*hf auth login"):
        download.read_config_folder(download.Source(None, NAME, OLD))


def test_read_config_repository_without_one_is_refused(models, tmp_path, monkeypatch):
    shutil.copytree(models[OLD], tmp_path / "less")
    (tmp_path / "less/config.json").unlink()
    with serve({NAME: {OLD: tmp_path / "less"}}) as hub:
        point_at(monkeypatch, hub.url, tmp_path / "cache")
        with pytest.raises(BadInput, match=r"no config\.json of owner/tiny"):
            download.read_config_folder(download.Source(None, NAME, OLD))


def test_read_config_offline_before_it_was_fetched_is_refused(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match=r"no config\.json of owner/tiny .*check the name and the connection"):
        download.read_config_folder(download.Source(None, NAME, OLD))


def test_download_folder_is_linked_and_survives_the_removal_of_its_origin(models, runtime, tmp_path):
    shutil.copytree(models[OLD], tmp_path / "model")
    _, artifact = fetch(runtime, source=str(tmp_path / "model"))
    folder = Store(runtime.store).folder(artifact)
    before = weights(tmp_path / "model")
    shard = "model-00001-of-00005.safetensors"
    assert (folder / shard).stat().st_ino == (tmp_path / "model" / shard).stat().st_ino  # no second copy on disk
    shutil.rmtree(tmp_path / "model")
    assert weights(folder) == before


@pytest.mark.parametrize("source", ["/no/such/folder", "./model", "model", "a/b/c"])
def test_resolve_path_that_is_no_folder_is_refused_without_asking_the_hub(source: str, hub, runtime):
    with pytest.raises(BadInput, match="there is no folder"):
        fetch(runtime, source=source)
    assert hub.requests == []
