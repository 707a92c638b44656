"""From a folder, and from a Hub on the loopback interface."""

import errno
import io
import logging
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from downloaded import NAME, NEW, OLD, SHARD, fetch, resolve, serve_alone, weights
from hub import closed_port, point_at

from moeprune.errors import BadInput
from tasks import download
from tasks.artifacts import MANIFEST, Store
from tasks.download import DownloadParams


@pytest.fixture
def unplug(monkeypatch, tmp_path):
    return lambda: point_at(monkeypatch, f"http://127.0.0.1:{closed_port()}", tmp_path / "cache")


def sizes(folder: Path, *names: str) -> dict[str, int]:
    """Bytes of a model's files that are to be fetched, or of those named."""
    wanted = [name for name in names or ("*.json", "*.jinja", "model-*") for name in folder.glob(name)]
    return {path.name: path.stat().st_size for path in wanted}


def test_download_hub_revision_becomes_its_commit_and_its_files(hub, models, runtime):
    source, artifact = fetch(runtime)
    folder = Store(runtime.store).folder(artifact)
    assert source.commit == OLD
    assert len(weights(folder)) == 5 and weights(folder) == weights(models[OLD])
    assert (folder / "tokenizer.json").read_bytes() == (models[OLD] / "tokenizer.json").read_bytes()


def test_download_hub_serves_each_byte_of_the_checkpoint_once_and_no_other(hub, models, runtime):
    fetch(runtime)
    assert hub.served == sizes(models[OLD])


def test_download_hub_second_time_fetches_no_file(hub, runtime):
    _, first = fetch(runtime)
    hub.requests.clear()
    assert fetch(runtime)[1] == first
    assert [path for _, path in hub.requests] == [f"/api/models/{NAME}"]


def test_download_hub_main_moved_on_is_another_model(hub, models, runtime):
    _, old = fetch(runtime)
    hub.refs[NAME]["main"] = NEW
    source, new = fetch(runtime)
    assert source.commit == NEW
    assert new.key != old.key and new.digest != old.digest
    assert weights(Store(runtime.store).folder(new)) == weights(models[NEW])


@pytest.mark.parametrize("revision", ["dev", "v1.0", "refs/pr/1", NEW], ids=["branch", "tag", "pull request", "commit"])
def test_download_hub_revision_of_any_kind_is_pinned_to_its_commit(revision: str, hub, models, runtime):
    hub.refs[NAME] |= {"dev": NEW, "v1.0": NEW, "refs/pr/1": NEW}
    source, artifact = fetch(runtime, revision=revision)
    assert source.commit == NEW
    assert weights(Store(runtime.store).folder(artifact)) == weights(models[NEW]) != weights(models[OLD])
    # Not by the revision's name: that may mean something else by the time the files are asked for.
    assert {path.split("/")[4] for _, path in hub.requests if "/resolve/" in path} == {NEW}


def test_download_hub_main_moving_on_between_looking_up_and_fetching_changes_nothing(hub, models, runtime):
    source = resolve(runtime)
    hub.refs[NAME]["main"] = NEW
    step = download.step(download.DownloadParams(source=NAME), source, Store(runtime.store))
    artifact = download.download.fn(step=step, runtime=runtime, source=source)
    assert weights(Store(runtime.store).folder(artifact)) == weights(models[OLD])


def test_download_hub_pinned_commit_stays_when_main_moves_on(hub, runtime):
    _, old = fetch(runtime, revision=OLD)
    hub.refs[NAME]["main"] = NEW
    assert fetch(runtime, revision=OLD)[1] == old


def test_download_hub_and_folder_of_the_same_files_are_the_same_checkpoint(hub, models, runtime):
    _, from_hub = fetch(runtime)
    _, from_folder = fetch(runtime, source=str(models[OLD]))
    assert from_folder.digest == from_hub.digest


def test_download_hub_gone_stays_at_the_last_commit_and_says_so(hub, runtime, unplug, caplog):
    hub.refs[NAME]["main"] = NEW
    _, online = fetch(runtime)
    unplug()
    with caplog.at_level(logging.WARNING):
        source, offline = fetch(runtime)
    assert source.commit == NEW and offline == online
    assert NEW in caplog.text and "cannot be reached" in caplog.text


def test_download_hub_gone_before_the_store_had_it_uses_what_was_fetched(hub, runtime, unplug):
    _, online = fetch(runtime)
    shutil.rmtree(runtime.store / "download")
    unplug()
    assert fetch(runtime)[1] == online


def test_download_hub_sending_cut_off_goes_on_where_it_stopped(hub, models, runtime, monkeypatch):
    chunk, size = 1000, sizes(models[OLD])[SHARD]
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", chunk)  # its 10 MB are more than the file
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda _: None))
    hub.broken.add(SHARD)
    _, artifact = fetch(runtime)
    cut = size // 2
    assert hub.ranges == [(SHARD, cut - cut % chunk)] and cut > chunk
    hub.served[SHARD] -= cut % chunk  # what came of a chunk that was not whole comes again
    assert hub.served == sizes(models[OLD]), "no other byte twice"
    assert weights(Store(runtime.store).folder(artifact)) == weights(models[OLD])


def test_download_hub_announcing_xet_storage_is_fetched_over_plain_http_if_xet_is_off(
    hub, models, runtime, monkeypatch
):
    hub.xet = True
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    _, artifact = fetch(runtime)
    assert hub.served == sizes(models[OLD])
    assert weights(Store(runtime.store).folder(artifact)) == weights(models[OLD])


def test_download_hub_code_of_the_repository_comes_with_its_config(hub, models, runtime, tmp_path, monkeypatch):
    shutil.copytree(models[OLD], tmp_path / "coded")
    (tmp_path / "coded/modelling.py").write_text("layers = 2\n")
    with serve_alone({OLD: tmp_path / "coded"}, monkeypatch, tmp_path / "cache"):
        source = resolve(runtime)
        assert {path.name for path in download.read_config_folder(source).iterdir()} == {
            "config.json",
            "model.safetensors.index.json",
            "modelling.py",
        }
        _, artifact = fetch(runtime)
    assert (Store(runtime.store).folder(artifact) / "modelling.py").read_text() == "layers = 2\n"


def test_bytes_to_fetch_are_those_of_the_checkpoint_that_are_not_here_yet(hub, models, runtime):
    source = resolve(runtime)
    expected = sizes(models[OLD])
    small = expected["config.json"] + expected["model.safetensors.index.json"]  # read to know the weights' names
    assert download.bytes_to_fetch(source) == sum(expected.values()) - small
    assert hub.sent == small
    fetch(runtime)
    assert download.bytes_to_fetch(source) == 0
    assert download.bytes_to_fetch(resolve(runtime, source=str(models[OLD]))) == 0


def test_download_hub_progress_goes_from_nothing_to_all_bytes(hub, models, runtime, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", written := Terminal())
    monkeypatch.setattr("tasks.progress.tqdm", lambda **options: bars.append(Bar(options)) or bars[-1])
    bars: list[Bar] = []

    class Bar:
        def __init__(self, options):
            self.title, self.total, self.seen = options["desc"], options["total"], [options["initial"]]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, amount):
            self.seen.append(amount)

    fetch(runtime)
    (bar,) = [bar for bar in bars if bar.title == "download" and len(bar.seen) > 3]
    assert bar.total == sum(sizes(models[OLD]).values()) == sum(bar.seen)
    assert written.getvalue() == "", "no bar of the library beside ours"


def test_download_folder_is_linked_and_survives_the_removal_of_its_origin(models, runtime, tmp_path):
    shutil.copytree(models[OLD], tmp_path / "model")
    _, artifact = fetch(runtime, source=str(tmp_path / "model"))
    folder = Store(runtime.store).folder(artifact)
    before = weights(tmp_path / "model")
    shard = "model-00001-of-00005.safetensors"
    assert (folder / shard).stat().st_ino == (tmp_path / "model" / shard).stat().st_ino  # no second copy on disk
    shutil.rmtree(tmp_path / "model")
    assert weights(folder) == before


@pytest.fixture
def machines(models, tmp_path, monkeypatch):
    """Puts us on a machine that has the model on a disk of its own, where the store is not; returns the folder."""

    def on_other_disk(target: Path, origin: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", on_other_disk)

    def be(name: str) -> Path:
        monkeypatch.setattr("tasks.artifacts.machine", lambda: name)
        if not (home := tmp_path / "homes" / name).is_dir():
            shutil.copytree(models[OLD], home)
        return home

    return be


def test_download_in_a_store_of_two_machines_is_linked_by_each_to_its_own_disk(machines, models, runtime):
    store, homes, folders = Store(runtime.store), {}, {}
    for name in ("one", "other"):
        homes[name] = machines(name)
        _, artifact = fetch(runtime, source=str(homes[name]))
        folders[name] = store.folder(artifact)
        homes[name].rename(homes[name].with_suffix(".unmounted"))
    for name, home in homes.items():
        home.with_suffix(".unmounted").rename(home)
        machines(name)
        assert {(folders[name] / shard).resolve().parent for shard in weights(home)} == {home}
        assert store.fault(folders[name]) is None and weights(folders[name]) == weights(models[OLD])
        assert store.folder(artifact) == folders[name] and store.manifests("download") == [folders[name] / MANIFEST]
        home.rename(home.with_suffix(".unmounted"))


def test_find_links_that_lead_nowhere_removes_nothing_under_whoever_reads(machines, models, runtime):
    store, home = Store(runtime.store), machines("one")
    source, artifact = fetch(runtime, source=str(home))
    step = download.step(DownloadParams(source=str(home)), source, store)
    with store.lock(f"download-{artifact.key}"), ThreadPoolExecutor(1) as pool:
        home.rename(home.with_suffix(".unmounted"))
        assert pool.submit(store.find, step).result() is None
        home.with_suffix(".unmounted").rename(home)
        assert weights(store.folder(artifact)) == weights(models[OLD])
    assert store.find(step) == artifact


def test_download_links_once_more_where_the_model_has_moved(machines, models, runtime, monkeypatch):
    store, home = Store(runtime.store), machines("one")
    _, artifact = fetch(runtime, source=str(home))
    home.rename(moved := home.with_suffix(".moved"))
    assert fetch(runtime, source=str(moved))[1] == artifact
    assert weights(store.folder(artifact)) == weights(models[OLD])

    moved.rename(home)
    monkeypatch.undo()  # now on the store's disk
    assert fetch(runtime, source=str(home))[1] == artifact
    shutil.rmtree(home)
    assert weights(store.folder(artifact)) == weights(models[OLD])


@pytest.mark.parametrize("source", ["/no/such/folder", "./model", "model", "a/b/c"])
def test_resolve_path_that_is_no_folder_is_refused_without_asking_the_hub(source: str, hub, runtime):
    with pytest.raises(BadInput, match="there is no folder"):
        fetch(runtime, source=source)
    assert hub.requests == []
