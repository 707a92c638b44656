"""Identity by content: of files, and of folders of files. It needs no torch, which takes a second to import."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(hashes: Mapping[str, str]) -> str:
    """The identity of a folder of files, such as a checkpoint: sha256 over its sorted {file name: sha256}."""
    return hashlib.sha256(json.dumps(dict(sorted(hashes.items()))).encode()).hexdigest()
