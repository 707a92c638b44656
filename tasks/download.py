"""download: a model source (a folder, or a Hub id at a revision) becomes a local, verified snapshot."""

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from moeprune.checkpoint import (
    CONFIG_FILES,
    INDEX,
    SINGLE,
    is_small_file,
    open_checkpoint,
    read_index,
    refuse_non_finite,
)
from moeprune.errors import BadInput
from moeprune.hashing import digest_of, sha256
from tasks import hub
from tasks.artifacts import Artifact, Params, Runtime, Step, Store, stage
from tasks.hub import Source as Source
from tasks.hub_refusals import HubUnavailable
from tasks.identity import code_digest
from tasks.progress import progress

CODE = ("moeprune.checkpoint", "moeprune.hashing")


class DownloadParams(Params):
    """Where the model comes from."""

    source: str
    """A folder with a checkpoint, or a Hub id such as allenai/OLMoE-1B-7B-0924."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; null is the newest, resolved to its commit."""
    trust_remote_code: bool = False
    """Whether code that comes with the checkpoint may run."""


def resolve(params: DownloadParams, store: Store) -> Source:
    """Find out what the source is right now. Offline, a Hub revision is the commit it was last resolved to.

    Raises BadInput for a folder that is not there, or a Hub that cannot be reached or does not give out the model.
    """
    folder = Path(params.source)
    if folder.is_dir():
        return Source(folder)
    if folder.is_absolute() or params.source.startswith(".") or params.source.count("/") != 1:
        raise BadInput(
            f"download.source: there is no folder {params.source}: give a checkpoint's folder or a Hub id "
            "such as owner/name"
        )
    name = f"{params.source}@{params.revision or 'newest'}"
    return hub.look_up(params.source, params.revision, store.root / "hub" / f"{quote(name, safe='@')}.json")


def read_config_folder(source: Source) -> Path:
    """A folder that holds the source's config.json; from the Hub only small files are fetched.

    These are the config, the index of the weights, and code, which the config may refer to; code may be run, so they
    are held against the Hub's hashes first. Raises BadInput if there is no config, or the Hub does not give it out or
    sends something else.
    """
    if source.folder is not None:
        return source.folder
    if "config.json" not in source.files:
        raise BadInput(
            f"download.source: no config.json in {source.repository} at {source.commit}: give a repository that "
            "holds a checkpoint"
        )
    names = [name for name in source.files if name in ("config.json", INDEX) or _is_code(name)]
    folder = hub.fetch(source, names)
    hub.verify(source, names, folder, sha256)
    return folder


def bytes_to_fetch(source: Source) -> int:
    """Bytes that a download from the Hub will still fetch, as the Hub tells sizes; 0 for a folder.

    Raises BadInput if the repository does not hold a whole safetensors checkpoint.
    """
    return 0 if source.folder is not None else hub.missing_bytes(source, _files(source))


def check_space(source: Source) -> None:
    """Raise BadInput if what is to be fetched does not fit on the disk of huggingface_hub's cache.

    The store's disk is not looked at: it gets links.
    """
    hub.check_space(bytes_to_fetch(source))


def _files(source: Source) -> list[str]:
    """The files of a repository that make up the checkpoint. Others may be many: weights in other formats, or twice."""
    folder = read_config_folder(source)
    if SINGLE in source.files:
        weights = {SINGLE}
    elif INDEX in source.files:
        weights = set(read_index(folder / INDEX).values())
    else:
        raise BadInput(
            f"download.source: neither {SINGLE} nor {INDEX} in {source.repository} at {source.commit}: only "
            "safetensors checkpoints can be pruned; convert it with save_pretrained"
        )
    if missing := sorted(weights - source.files.keys()):
        raise BadInput(
            f"download.source: {INDEX} of {source.repository} at {source.commit} names {missing[0]}, which is not "
            f"there ({len(missing)} of {len(weights)} shards missing): choose another revision"
        )
    small = {name for name, file in source.files.items() if is_small_file(name, file.bytes)}
    return sorted(weights | small | ({INDEX} & source.files.keys()))


def _is_code(name: str) -> bool:
    return name.endswith(".py") and "/" not in name


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
    retry_condition_fn=lambda task, run, state: _may_pass(state.result(raise_on_failure=False)),
)
def download(step: Step, runtime: Runtime, source: Source) -> Artifact:
    """Verify, hash and link a checkpoint's files into the store; from the Hub, fetch them first."""
    store = Store(runtime.store)

    def build(target: Path) -> dict[str, Any]:
        folder = source.folder or _fetch(source, store)
        checkpoint = open_checkpoint(folder)
        with progress("download: check weights", checkpoint.weight_bytes, "B") as done:
            for name in checkpoint.weight_files:
                refuse_non_finite(folder / name)
                done((folder / name).stat().st_size)
        for name in checkpoint.weight_files:
            _link((folder / name).resolve(), target / name)
        for name in set(checkpoint.files) - set(checkpoint.weight_files):  # copied, since people edit those in place
            shutil.copyfile(folder / name, target / name)
        return {"bytes": checkpoint.weight_bytes, "shards": len(checkpoint.weight_files)}

    return store.produce(step, runtime, build)


def _may_pass(error: object) -> bool:
    return not isinstance(error, BadInput) or isinstance(error, HubUnavailable)


def _fetch(source: Source, store: Store) -> Path:
    names = _files(source)
    folder = hub.fetch(source, names)
    hub.verify(source, names, folder, store.hash_of)
    return folder


def _link(origin: Path, target: Path) -> None:
    """The same bytes under another name: a hard link costs no space and outlives a move of its origin."""
    try:
        target.hardlink_to(origin)
    except OSError:  # another disk, or a file of somebody else
        target.symlink_to(origin)


def tokenizer_of(checkpoint: Artifact, store: Store) -> Artifact:
    """The checkpoint seen as its tokenizer: its digest is that of all small files but the model's own configs."""
    files = store.manifest(checkpoint)["files"]
    small = {name for name, file in files.items() if is_small_file(name, file["bytes"])} - {*CONFIG_FILES}
    hashes = {name: files[name]["sha256"] for name in small}
    return checkpoint.model_copy(update={"digest": digest_of(hashes)})
