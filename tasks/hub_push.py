"""Repositories on the Hub written to: one commit that makes a repository's model that of the files given."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeprune.checkpoint import is_small_file
from moeprune.errors import BadInput, one_line
from tasks.base_card import LICENCE
from tasks.hub_refusals import HubUnavailable, endpoint, is_of_xet

WEIGHTS = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""How files of weights end, in whatever format."""
NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Pushed:
    """Where a model was put."""

    url: str
    commit: str
    private: bool
    changed: bool
    """Whether the commit is a new one; else all was there already."""
    removed: tuple[str, ...]
    """Files of another model that were there before."""


def check_name(repository: str) -> None:
    """Raise BadInput for what cannot be a repository's name."""
    if not NAME.fullmatch(repository):
        raise BadInput(f"'{repository}' is no repository of the Hub: give owner/name")


def publish(
    repository: str, files: Mapping[str, Path | bytes], public: bool, message: str, sha256: Callable[[Path], str]
) -> Pushed:
    """Commit files to a repository, which is made if it is not there; what else is of a model there is removed.

    All is one commit: whoever looks finds the old model or the new one. The Hub's hashes are then held against those of
    the files, where `sha256` tells those of large ones. Raises BadInput if the Hub refuses, the repository is public
    and `public` is not set, or it changed meanwhile; HubUnavailable where only waiting helps.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    with _refusals(repository):
        api.create_repo(repository, private=not public, exist_ok=True)
        before = api.model_info(repository, timeout=30)
        if not (before.private or public):
            raise BadInput(f"{repository} is a public repository: give another one, or --public if all may see this")
        there = {file.rfilename for file in before.siblings or []}
        stale = sorted(name for name in there - files.keys() if _is_of_model(name))
        added = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
        removed = [CommitOperationDelete(name) for name in stale]
        commit = api.create_commit(repository, [*added, *removed], commit_message=message, parent_commit=before.sha)
        after = api.model_info(repository, revision=commit.oid, files_metadata=True, timeout=30)
    _verify(repository, files, {file.rfilename: file for file in after.siblings or []}, sha256)
    return Pushed(f"{endpoint()}/{repository}", commit.oid, bool(after.private), commit.oid != before.sha, tuple(stale))


def _is_of_model(name: str) -> bool:
    """Whether a file could be taken for part of a model, or for the terms of one."""
    return name.endswith(WEIGHTS) or is_small_file(name, 0) or LICENCE.fullmatch(name) is not None


def _verify(
    repository: str, files: Mapping[str, Path | bytes], there: Mapping[str, Any], sha256: Callable[[Path], str]
) -> None:
    from huggingface_hub.utils.sha import git_hash

    for name, content in files.items():
        file = there.get(name)
        if file is not None and file.lfs and isinstance(content, Path):
            same = file.lfs.sha256 == sha256(content)
        else:
            small = content if isinstance(content, bytes) else content.read_bytes()
            same = file is not None and file.blob_id == git_hash(small)
        if not same:
            raise BadInput(f"{repository}: what the Hub has as {name} is not what was sent: push again")


@contextmanager
def _refusals(repository: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into BadInput that says what to do; let through what it did not cause."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        if (refusal := _refusal(error, repository)) is None:
            raise
        raise refusal from error


def _refusal(error: BaseException, repository: str) -> BadInput | None:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if type(error) is RuntimeError and error.__cause__ is not None:  # of one of several uploads
        error = error.__cause__
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if isinstance(error, HFValidationError):
        return BadInput(f"'{repository}' is no repository of the Hub ({one_line(error)}): give owner/name")
    if status in (401, 403, 404):
        return BadInput(
            f"the Hub does not let you write to {repository} ({status}): log in (hf auth login, or set HF_TOKEN) with "
            "a token that may write, and check the owner's name"
        )
    if status in (409, 412):
        return BadInput(f"{repository} was changed by somebody else meanwhile ({status}): look at it, then push again")
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnavailable(f"HF_HUB_OFFLINE is set: unset it to push {repository}")
    if status == 429 or status >= 500:
        return HubUnavailable(f"the Hub at {endpoint()} fails ({status}) to take {repository}: push again later")
    if status or (isinstance(error, ValueError) and "README.md" in str(error)):
        said = " ".join(str(error).split())
        return BadInput(f"the Hub refuses {repository}: {said}: mend that, then push again")
    if type(error) is RuntimeError and is_of_xet(error):  # whose words may be signed addresses
        return HubUnavailable(
            f"the Xet storage of the Hub does not take the files of {repository}: push again later, or set "
            "HF_HUB_DISABLE_XET=1 to send them over plain HTTP"
        )
    if isinstance(error, ConnectionError) or type(error).__module__.startswith(("httpx", "httpcore")):
        return HubUnavailable(
            f"the Hub at {endpoint()} cannot be reached ({type(error).__name__}): check HF_ENDPOINT or the connection"
        )
    return None
