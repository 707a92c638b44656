"""download: a model source (a folder, or a Hub id at a revision) becomes a local, verified snapshot."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeprune.checkpoint import CONFIG_FILES, INDEX, TOKENIZER_FILES, digest_of, open_checkpoint, refuse_non_finite
from moeprune.errors import BadInput
from tasks.artifacts import Artifact, Params, Runtime, Step, Store, logger, replace_text, stage
from tasks.identity import code_digest
from tasks.progress import progress

CODE = ("moeprune.checkpoint",)
PATTERNS = ["*.safetensors", INDEX, *CONFIG_FILES, *TOKENIZER_FILES, "*.py"]


class DownloadParams(Params):
    """Where the model comes from."""

    source: str
    """A folder with a checkpoint, or a Hub id such as allenai/OLMoE-1B-7B-0924."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; null is the newest, resolved to its commit."""
    trust_remote_code: bool = False
    """Whether code that comes with the checkpoint may run."""


@dataclass(frozen=True)
class Source:
    """A resolved source: a folder here, or a commit of a repository on the Hub."""

    folder: Path | None
    repository: str = ""
    commit: str = ""


def resolve(params: DownloadParams, store: Store) -> Source:
    """Find out what the source is right now. Offline, a Hub revision is the commit it was last resolved to.

    Raises BadInput for a folder that is not there, or a Hub that cannot be reached or does not have the model.
    """
    folder = Path(params.source)
    if folder.is_dir():
        return Source(folder)
    if folder.is_absolute() or params.source.startswith(".") or params.source.count("/") != 1:
        raise BadInput(
            f"download.source: there is no folder {params.source}: give a checkpoint's folder or a Hub id "
            "such as owner/name"
        )
    return Source(None, params.source, _commit(params, store))


def _commit(params: DownloadParams, store: Store) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    record = store.root / "hub" / f"{params.source.replace('/', '--')}@{params.revision or 'newest'}.json"
    try:
        commit = HfApi().model_info(params.source, revision=params.revision, timeout=15).sha
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError) as error:
        raise BadInput(
            f"download.source: the Hub does not give out {params.source} at revision {params.revision}: "
            f"{type(error).__name__}; check the name and revision, and log in (hf auth login) if it is "
            "private or gated"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        return _last_commit(params, record, error)
    except Exception as error:
        # The library's errors of connection are those of httpx or httpx2, whichever it is built on.
        if not type(error).__module__.startswith(("httpx", "httpcore", "huggingface_hub")):
            raise
        return _last_commit(params, record, error)
    record.parent.mkdir(parents=True, exist_ok=True)
    replace_text(record, json.dumps({"commit": commit}))
    return str(commit)


def _last_commit(params: DownloadParams, record: Path, error: Exception) -> str:
    if not record.is_file():
        where = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        raise BadInput(
            f"download.source: there is no folder {params.source}, and the Hub at {where} cannot be "
            f"reached ({type(error).__name__}): check the path or the connection"
        ) from error
    commit = str(json.loads(record.read_text())["commit"])
    logger().warning("the Hub cannot be reached: %s stays at commit %s, the last one resolved", params.source, commit)
    return commit


def read_config_folder(source: Source) -> Path:
    """A folder that holds the source's config.json; from the Hub only this small file is fetched."""
    if source.folder is not None:
        return source.folder
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError

    try:
        return Path(hf_hub_download(source.repository, "config.json", revision=source.commit)).parent
    except (EntryNotFoundError, GatedRepoError) as error:
        raise BadInput(
            f"download.source: no config.json of {source.repository} at {source.commit} is to be had "
            f"({type(error).__name__}): check the name and the connection, and log in (hf auth login) if it is gated"
        ) from error


def step(params: DownloadParams, source: Source, store: Store) -> Step:
    """A folder is named by the digest of its files, a Hub model by its commit. Verifies a folder's shards."""
    if source.folder is not None:
        checkpoint = open_checkpoint(source.folder)
        with progress("hash", sum((source.folder / name).stat().st_size for name in checkpoint.files), "B") as done:
            hashes = {}
            for name in checkpoint.files:
                hashes[name] = store.hash_of(source.folder / name)
                done((source.folder / name).stat().st_size)
        content = {"content": digest_of(hashes)}
    else:
        content = {"repository": source.repository, "commit": source.commit}
    return Step("download", "", code_digest(CODE), {"source": content}, {})


@stage(
    name="download",
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=lambda task, run, state: not isinstance(state.result(raise_on_failure=False), BadInput),
)
def download(step: Step, runtime: Runtime, source: Source) -> Artifact:
    """Verify, hash and link a checkpoint's files into the store; from the Hub, fetch them first."""
    store = Store(runtime.store)

    def build(target: Path) -> dict[str, Any]:
        folder = source.folder or _snapshot(source)
        checkpoint = open_checkpoint(folder)
        with progress("download: check weights", checkpoint.weight_bytes, "B") as done:
            for name in checkpoint.weight_files:
                refuse_non_finite(folder / name)
                done((folder / name).stat().st_size)
        for name in checkpoint.weight_files:
            _link((folder / name).resolve(), target / name)
        # Small files are copied, since people edit those in place. A repository's own modelling code is kept beside
        # its config, where transformers looks for it.
        for name in [*checkpoint.files, *(path.name for path in folder.glob("*.py"))]:
            if name not in checkpoint.weight_files:
                shutil.copyfile(folder / name, target / name)
        return {"bytes": checkpoint.weight_bytes, "shards": len(checkpoint.weight_files)}

    return store.produce(step, runtime, build)


def _snapshot(source: Source) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source.repository, revision=source.commit, allow_patterns=PATTERNS))


def _link(origin: Path, target: Path) -> None:
    """The same bytes under another name: a hard link costs no space and outlives a move of its origin."""
    try:
        target.hardlink_to(origin)
    except OSError:  # another disk, or a file of somebody else
        target.symlink_to(origin)


def tokenizer_of(checkpoint: Artifact, store: Store) -> Artifact:
    """The checkpoint seen as its tokenizer: its digest is that of the tokenizer's files alone."""
    files = store.manifest(checkpoint)["files"]
    hashes = {name: file["sha256"] for name, file in files.items() if name in TOKENIZER_FILES}
    return checkpoint.model_copy(update={"digest": digest_of(hashes)})
