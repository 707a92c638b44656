"""A store with a small checkpoint in it, made by the tasks themselves, without Prefect's engine."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import sample
from downloaded import hub as hub
from downloaded import models as models
from downloaded import runtime as runtime

from tasks import download
from tasks.artifacts import Artifact, Runtime, Store

RUNTIME = {"device": "cpu", "batch_size": 4, "threads": 1}


@dataclass(frozen=True)
class Workshop:
    """A store, the runtime that uses it, a folder with sample sources, and the sample's model in the store."""

    store: Store
    runtime: Runtime
    folder: Path
    base: Artifact


def take_in(model: Path, runtime: Runtime) -> Artifact:
    """A model folder downloaded into the store."""
    store = Store(runtime.store)
    source = download.Source(model)
    step = download.step(download.DownloadParams(source=str(model)), source, store)
    return download.download.fn(step=step, runtime=runtime, source=source)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Shared by tests that add to the store and change nothing in it."""
    folder = sample.write_project(tmp_path_factory.mktemp("workshop"))
    runtime = Runtime(**RUNTIME, store=folder / "store")
    return Workshop(Store(runtime.store), runtime, folder, take_in(folder / "model", runtime))
