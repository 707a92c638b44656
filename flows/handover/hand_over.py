"""Handing a model over: its checkpoint with card, recipe and licence, into a folder or a repository on the Hub.

What is in the store stays as it is, hashes and all: the card is written beside copies.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.handover.card import card
from flows.handover.facts import Facts, facts_of, origin
from flows.handover.made import MadeModel, find_model, in_hand
from moeprune.errors import BadInput
from moeprune.hashing import sha256
from tasks.artifacts import Store
from tasks.base_card import CARD, read_base_card
from tasks.hub_push import Pushed, check_name, publish
from tasks.hub_refusals import HubUnavailable
from tasks.identity import key_of
from tasks.lineage import recipe_text
from tasks.progress import progress
from tasks.tracked import RECIPE
from tasks.tracking import Tracker, open_tracker

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Package:
    """All that is handed over, by file name: files where they lie, and texts that are written for it."""

    made: MadeModel
    facts: Facts
    files: dict[str, Path]
    texts: dict[str, str]


def export(name: str, folder: Path, root: Path) -> Package:
    """Copy the checkpoint of a run (its id, or MODEL@ALIAS) with card, recipe and licence into a new folder.

    Raises BadInput if the folder holds something or cannot be made, the run made no checkpoint, its bytes are not whole
    in the store, or they do not fit on the disk. While the Hub cannot be asked for the base model's licence, the card
    says that.
    """
    folder = folder.resolve()
    tracker = open_tracker(Store(root))
    made = find_model(name, tracker)
    with tracker.store.lock(f"export-{key_of('export', '', {'folder': str(folder)}, {})}"):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(f"{folder} is there already and not empty: give a folder that is to be made")
        building = folder.with_name(f".{folder.name}.exporting")
        shutil.rmtree(building, ignore_errors=True)  # what a killed export left behind
        try:
            building.mkdir(parents=True)
        except OSError as error:
            raise BadInput(f"{folder} cannot be made ({error.strerror}): give another folder") from error
        try:
            with in_hand(made) as manifest:
                package = _exported(made, manifest, tracker, folder.name)
                _copy(package, building)
            if folder.exists():
                folder.rmdir()
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return package


def _exported(made: MadeModel, manifest: Manifest, tracker: Tracker, address: str) -> Package:
    try:
        return _package(made, manifest, tracker, address)
    except HubUnavailable:
        return _package(made, manifest, tracker, address, "the Hub could not be asked when this was written")


def push(name: str, repository: str, root: Path, public: bool = False) -> tuple[Package, Pushed]:
    """Make the model of a run (its id, or MODEL@ALIAS) the content of a repository on the Hub, in one commit.

    The repository is made if there is none: private, unless `public`. Raises BadInput if the run made no checkpoint,
    its bytes are not whole in the store, a public one would have no licence, or the Hub refuses.
    """
    check_name(repository)
    tracker = open_tracker(Store(root))
    made = find_model(name, tracker)
    with in_hand(made) as manifest:
        package = _package(made, manifest, tracker, repository)
        if public and not package.facts.base.licence:
            raise BadInput(
                f"--public: the licence of the base model {made.base.name} is not known: have its repository state "
                "one, or its card or LICENSE lie in the folder that still holds it, or push without --public"
            )
        texts = {file: text.encode() for file, text in package.texts.items()}
        message = f"{made.model.name}, of run {made.run}"
        pushed = publish(repository, {**package.files, **texts}, public, message, made.store.hash_of)
    tracker.tag(made.run, f"hub.{repository}", pushed.commit)
    return package, pushed


def _package(made: MadeModel, manifest: Manifest, tracker: Tracker, address: str, silent: str | None = None) -> Package:
    recipe = recipe_text(tracker, made.run)
    if silent is None:
        source = yaml.safe_load(recipe)["download"]["source"]
        facts = facts_of(made, tracker, read_base_card(origin(made), source, made.store))
    else:
        facts = facts_of(made, tracker, silent=silent)
    checkpoint = {file: made.folder / file for file in manifest["files"]}
    files = {**facts.base.files, **checkpoint}
    return Package(made, facts, files, {CARD: card(facts, address), RECIPE: recipe})


def _copy(package: Package, folder: Path) -> None:
    """Copy and hash all files, and write the texts."""
    sizes = {name: path.stat().st_size for name, path in package.files.items()}
    free = shutil.disk_usage(folder).free
    if free < sum(sizes.values()):
        raise BadInput(
            f"{folder.parent} has {free / 1e9:.2f} GB free and {sum(sizes.values()) / 1e9:.2f} GB are to be copied: "
            "free some space or give a folder on another disk"
        )
    with progress("export", sum(sizes.values()), "B") as done:
        for name, path in package.files.items():
            shutil.copyfile(path, folder / name)
            if sha256(folder / name) != package.made.store.hash_of(path):
                raise BadInput(f"{folder / name} is not what was copied: look at that disk, then export again")
            done(sizes[name])
    for name, text in package.texts.items():
        (folder / name).write_text(text)
