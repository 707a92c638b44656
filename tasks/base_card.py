"""What a base model's own repository or folder says of it: the licence above all, which goes with every copy."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from moeprune.checkpoint import open_checkpoint
from moeprune.errors import BadInput
from moeprune.hashing import digest_of, sha256
from tasks import hub
from tasks.artifacts import Store
from tasks.hub_refusals import endpoint

CARD = "README.md"
LICENCE = re.compile(r"(licen[cs]e|copying|notice|use_policy|third_party)[\w.-]*", re.IGNORECASE)
"""Names of files with terms; they lie at the top."""
CARRIED = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""Keys of a card's metadata that hold for a smaller copy, too."""


@dataclass(frozen=True)
class BaseCard:
    """Where a base model comes from, and what holds for what is made of it."""

    repository: str | None
    """Its Hub id; None for a folder."""
    commit: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Those of `CARRIED` that its card has."""
    files: Mapping[str, Path] = field(default_factory=dict)
    """Files with terms by name, where they lie on this machine."""

    @property
    def licence(self) -> dict[str, Any]:
        """The licence as a card's metadata name it; empty if nothing names one."""
        stated = {key: value for key, value in self.metadata.items() if key.startswith("license")}
        named = next((name for name in sorted(self.files) if name.lower().startswith(("licen", "copying"))), None)
        if stated or named is None:
            return stated
        # The Hub knows some licences by their names; of another it wants a name of ours and the file.
        return {"license": "other", "license_name": "as-of-the-base-model", "license_link": named}


def read_base_card(origin: Mapping[str, str], source: str, store: Store) -> BaseCard:
    """The card of a base model and its files with terms; from the Hub, those of the commit that was used.

    `origin` says what the download was: {"repository", "commit"}, or {"content"} of a folder, which is then `source`;
    a folder that does not hold that model any longer says nothing. Raises BadInput if the Hub does not give out the
    files, and HubUnavailable while it cannot be reached.
    """
    if "repository" not in origin:
        folder = Path(source)
        if not _holds(folder, origin["content"], store):
            return BaseCard(None)
        return _read(None, None, folder, [path.name for path in folder.iterdir() if path.is_file()])
    repository, commit = origin["repository"], origin["commit"]
    found = hub.look_up(repository, commit, store.root / "hub" / f"{repository.replace('/', '%2F')}@{commit}.json")
    names = [name for name in found.files if _is_wanted(name)]
    if not names:
        return BaseCard(repository, commit)
    folder = hub.fetch(found, names)
    hub.verify(found, names, folder, sha256)
    return _read(repository, commit, folder, names)


def _holds(folder: Path, content: str, store: Store) -> bool:
    """Whether the checkpoint that was read lies there."""
    try:
        files = open_checkpoint(folder).files
    except BadInput:
        return False
    return digest_of({name: store.hash_of(folder / name) for name in files}) == content


def _is_wanted(name: str) -> bool:
    return name == CARD or LICENCE.fullmatch(name) is not None


def _read(repository: str | None, commit: str | None, folder: Path, names: list[str]) -> BaseCard:
    metadata = _metadata((folder / CARD).read_text(errors="replace")) if CARD in names else {}
    files = {name: folder / name for name in names if name != CARD and _is_wanted(name)}
    link = metadata.get("license_link")
    if repository and isinstance(link, str) and "://" not in link and link not in files:
        metadata["license_link"] = f"{endpoint()}/{repository}/blob/{commit}/{link}"
    return BaseCard(repository, commit, metadata, files)


def _metadata(card: str) -> dict[str, Any]:
    """Those of a card that are carried over; none of one whose metadata cannot be read."""
    from huggingface_hub import ModelCard

    try:
        data: Any = ModelCard(card, ignore_metadata_errors=True).data
    except (ValueError, TypeError, yaml.YAMLError):
        return {}
    found = data.to_dict()
    return {key: found[key] for key in CARRIED if key in found}
