"""A repository of two commits on the loopback Hub, and downloads of it into a store."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sample
from hub import Hub, point_at, serve

from moeprune.errors import BadInput
from moeprune.hashing import sha256
from tasks import download
from tasks.artifacts import Artifact, Runtime, Store
from tasks.download import DownloadParams, Source

NAME, OLD, NEW = "owner/tiny", "a" * 40, "b" * 40
SHARD = "model-00002-of-00005.safetensors"


def write_models(folder: Path) -> dict[str, Path]:
    """The two commits, each with files that are no part of a checkpoint."""
    found = {OLD: sample.write_model(folder / "old", seed=1), NEW: sample.write_model(folder / "new", seed=2)}
    for model in found.values():
        (model / "README.md").write_text("not part of a checkpoint")
        (model / "pytorch_model.bin").write_bytes(b"not part of a checkpoint either")
        (model / "consolidated.safetensors").write_bytes(b"the same weights in another layout")
        (model / "original").mkdir()
        (model / "original/model.safetensors").write_bytes(b"and once more")
    return found


@contextmanager
def serve_alone(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """The models as commits of NAME, with huggingface_hub of this process pointed there; the first one is main."""
    with serve({NAME: models}) as hub:
        hub.refs[NAME]["main"] = next(iter(models))
        point_at(monkeypatch, hub.url, cache)
        yield hub


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`write_models`, not to be changed."""
    return write_models(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def hub(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """`serve_alone`, with a cache that is empty."""
    with serve_alone(models, monkeypatch, tmp_path / "cache") as running:
        yield running


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    """An empty store."""
    return Runtime(store=tmp_path / "store")


def resolve(runtime: Runtime, source: str = NAME, revision: str | None = None) -> Source:
    """What a source is right now."""
    return download.resolve(DownloadParams(source=source, revision=revision), Store(runtime.store))


def fetch(runtime: Runtime, source: str = NAME, revision: str | None = None) -> tuple[Source, Artifact]:
    """A source resolved and taken into the store, without Prefect's engine."""
    store, resolved = Store(runtime.store), resolve(runtime, source, revision)
    step = download.step(DownloadParams(source=source, revision=revision), resolved, store)
    return resolved, download.download.fn(step=step, runtime=runtime, source=resolved)


def refused(runtime: Runtime, match: str, kind: type[BadInput] = BadInput) -> str:
    """The one line a download is refused with; nothing is in the store."""
    with pytest.raises(BadInput, match=match) as caught:
        fetch(runtime)
    assert type(caught.value) is kind
    line = str(caught.value)
    assert line.startswith("download.source: ") and "\n" not in line
    assert not list((runtime.store / "download").glob("[0-9a-f]*"))
    return line


def weights(folder: Path) -> dict[str, str]:
    """sha256 of the checkpoint's shards."""
    return {path.name: sha256(path) for path in folder.glob("model-*.safetensors")}
