"""Models on the Hub: what a repository holds at a commit, and its files brought into huggingface_hub's cache."""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moeprune.errors import BadInput
from tasks.artifacts import logger, replace_text
from tasks.hub_refusals import HubUnavailable, endpoint, refusals
from tasks.progress import progress

WORKERS = 8
"""Files fetched at a time."""
TRIES = 3
LONGEST_WAIT = 300
"""Seconds; the Hub counts requests in windows of five minutes."""


@dataclass(frozen=True)
class HubFile:
    """What the Hub says of a file, to hold against what it sends."""

    bytes: int
    digest: str
    """sha256 of the content of a large (LFS) file, 64 digits; git's blob id of another, 40 digits."""


@dataclass(frozen=True)
class Source:
    """A resolved source: a folder here, or a commit of a repository on the Hub with its files by name."""

    folder: Path | None
    repository: str = ""
    commit: str = ""
    files: Mapping[str, HubFile] = field(default_factory=dict)


def look_up(repository: str, revision: str | None, record: Path) -> Source:
    """A revision's commit and files now. While the Hub is unavailable, those that `record` has from the last time.

    Raises BadInput if the Hub does not have or give out the revision, HubUnavailable if nothing is on record either.
    """
    from huggingface_hub import HfApi

    try:
        with refusals(repository, revision):
            info = _patiently(
                lambda: HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=30)
            )
    except HubUnavailable as error:
        if not record.is_file():
            said = str(error).removeprefix("download.source: ")
            raise HubUnavailable(f"download.source: there is no folder {repository}, and {said}") from error
        content = json.loads(record.read_text())
        files = {name: HubFile(**file) for name, file in content["files"].items()}
        logger().warning("%s: %s stays at commit %s, the last one resolved", error, repository, content["commit"])
        return Source(None, repository, content["commit"], files)
    files = {}
    for file in info.siblings or []:
        digest = file.lfs.sha256 if file.lfs else file.blob_id
        if file.size is None or digest is None:
            raise BadInput(
                f"download.source: {endpoint()} does not tell size and hash of {file.rfilename} of {repository}, so "
                "that it cannot be verified: fetch the model by other means and give its folder"
            )
        files[file.rfilename] = HubFile(file.size, digest)
    record.parent.mkdir(parents=True, exist_ok=True)
    content = {"commit": info.sha, "files": {name: asdict(file) for name, file in files.items()}}
    replace_text(record, json.dumps(content))
    return Source(None, repository, str(info.sha), files)


def _patiently(ask: Callable[[], Any]) -> Any:
    """Ask again, after the wait the Hub asks for, where it limits requests or fails; the library does so for files."""
    from huggingface_hub.errors import HfHubHTTPError

    for attempt in range(1, TRIES + 1):
        try:
            return ask()
        except HfHubHTTPError as error:
            status, wait = error.response.status_code, _wait(error.response.headers, attempt)
            if attempt == TRIES or wait > LONGEST_WAIT or (status != 429 and status < 500):
                raise
            logger().warning("the Hub answers %d: it is asked again in %d s", status, wait)
            time.sleep(wait)
    raise AssertionError


def _wait(headers: Mapping[str, str], attempt: int) -> int:
    """Seconds to wait: as long as the Hub says, else twice as long each time."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    if (limit := parse_ratelimit_headers(headers)) is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    said = headers.get("Retry-After", "")
    return int(said) if said.isdecimal() else 2 ** (attempt - 1)


def missing_bytes(source: Source, names: Sequence[str]) -> int:
    """Bytes of those files that huggingface_hub's cache does not have yet."""
    from huggingface_hub import try_to_load_from_cache

    def is_there(name: str) -> bool:
        return isinstance(try_to_load_from_cache(source.repository, name, revision=source.commit), str)

    return sum(source.files[name].bytes for name in names if not is_there(name))


def check_space(needed: int) -> None:
    """Raise BadInput if the disk of huggingface_hub's cache has not that many bytes free."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE).absolute()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free
    if free < needed:
        raise BadInput(
            f"download.source: {needed / 1e9:.2f} GB are to be fetched into {folder}, whose disk has "
            f"{free / 1e9:.2f} GB free: free some space or set HF_HOME to another disk"
        )


def fetch(source: Source, names: Sequence[str]) -> Path:
    """Bring files of a commit into huggingface_hub's cache, several at a time; returns the folder they lie in.

    What is there already is not fetched again. A connection that is cut is taken up again where it stopped.
    """
    from huggingface_hub import hf_hub_download

    total = sum(source.files[name].bytes for name in names)
    before = total - missing_bytes(source, names)
    with refusals(source.repository, source.commit), progress("download", total, "B", done=before) as done:
        bar = _bar(done)

        def fetch_one(name: str) -> Path:
            return Path(hf_hub_download(source.repository, name, revision=source.commit, tqdm_class=bar))

        with ThreadPoolExecutor(WORKERS) as pool:
            paths = list(pool.map(fetch_one, names))  # the first to fail calls off those not yet begun
    return paths[0].parent


def _bar(done: Callable[[int], None]) -> type:
    """A class with as much of tqdm as huggingface_hub uses; of every file's bar it only passes on the bytes."""

    class Bar:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, amount: float | None = 1) -> None:
            done(int(amount or 0))

        def _ignore(self, *_: Any, **__: Any) -> None:
            pass

        # With `update_transfer` the library tells one bar, not a second one too, what came over the network.
        update_transfer = set_postfix_str = set_transfer_postfix_str = close = _ignore

    return Bar


def verify(source: Source, names: Sequence[str], folder: Path, sha256: Callable[[Path], str]) -> None:
    """Hold fetched files against the Hub's hashes.

    Raises BadInput if some differ; those are removed from the cache, so that the next try fetches them anew.
    """
    from huggingface_hub.utils.sha import git_hash

    wrong = []
    with progress("download: check hashes", sum(source.files[name].bytes for name in names), "B") as done:
        for name in names:
            expected, path = source.files[name], folder / name
            found = sha256(path) if len(expected.digest) == 64 else git_hash(path.read_bytes())
            if found != expected.digest:
                wrong.append(f"{name} has the hash {found} where the Hub names {expected.digest}")
                _remove(path)
            done(expected.bytes)
    if wrong:
        more = f" (and {len(wrong) - 1} more files)" if len(wrong) > 1 else ""
        raise BadInput(
            f"download.source: {source.repository} at {source.commit}: {wrong[0]}{more}: it is removed from the cache, "
            "run again to fetch it anew; if it comes so again, look at what is between here and the Hub (HF_ENDPOINT, "
            "a proxy)"
        )


def _remove(path: Path) -> None:
    """Remove a file of the cache with what it is a link to."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)
