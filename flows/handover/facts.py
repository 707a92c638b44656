"""What a model card is written from: all of it is in the tracker, but for what the base model says of itself."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import yaml

from flows.handover.made import MadeModel, Measured, measured
from moeprune import weight_masks
from moeprune.masks import Mask
from tasks.base_card import BaseCard
from tasks.lineage import read_manifest, read_text, recipe_text
from tasks.tracking import Tracker


@dataclass(frozen=True)
class Facts:
    """What a card is written from."""

    made: MadeModel
    recipe: Mapping[str, Any]
    """The resolved recipe."""
    mask: str
    """The text of mask.json."""
    manifest: Mapping[str, Any]
    """Of the checkpoint."""
    base: BaseCard
    silent: str | None
    """Why the base model's card could not be read, if so."""
    measured: Measured | None

    @property
    def sparse(self) -> bool:
        """Whether weights inside experts went, rather than experts."""
        return bool(json.loads(self.mask)["format"] == weight_masks.FORMAT)

    @property
    def sparsity(self) -> str:
        """Of which zeros, such as 0.5 or 2:4, if it is sparse."""
        return str(json.loads(self.mask)["pattern"])

    @property
    def criterion(self) -> str | None:
        """The word of what scored experts or weights; None if the selection rule needs no scores."""
        scored = next((stage.of for stage in self.made.lineage.stages if stage.stage == "score"), None)
        return str(self.recipe["score"]["criterion"]) if self.sparse else scored

    @property
    def uneven(self) -> bool:
        """Whether layers keep different numbers of experts."""
        return not self.sparse and Mask.from_json(self.mask).uneven

    @property
    def trusted(self) -> bool:
        """Whether loading it runs code that comes with it."""
        return bool(self.uneven or self.recipe["download"]["trust_remote_code"])


def origin(made: MadeModel) -> dict[str, str]:
    """Where the base model came from: {"repository", "commit"} on the Hub, or {"content"} of a folder."""
    read = made.lineage.find("download")
    assert read is not None
    return {key.removeprefix("source."): value for key, value in read.params.items() if key.startswith("source.")}


def facts_of(made: MadeModel, tracker: Tracker, base: BaseCard | None = None, silent: str = "not looked up") -> Facts:
    """What the tracker knows for a card; the store is not read. `base` is the base model's own card, if it was read.

    Raises BadInput if the tracker has lost a part.
    """
    mask, evaluated = made.lineage.find("mask"), made.lineage.find("evaluate", made.kind)
    assert mask is not None
    where = origin(made)
    with ThreadPoolExecutor() as at_once:  # a server answers each in its own time
        recipe = at_once.submit(recipe_text, tracker, made.run)
        text = at_once.submit(read_text, tracker, mask.id, "mask.json")
        manifest = at_once.submit(read_manifest, tracker, made.stage)
        reports = at_once.submit(measured, made, tracker) if evaluated else None
    return Facts(
        made=made,
        recipe=yaml.safe_load(recipe.result()),
        mask=text.result(),
        manifest=manifest.result(),
        base=base or BaseCard(where.get("repository"), where.get("commit")),
        silent=None if base else silent,
        measured=reports.result() if reports else None,
    )
