"""Models that runs read or made, with their names in the registry and their cards."""

import re
from dataclasses import dataclass

from flows.dashboard.index import MODELS, Node
from flows.dashboard.watching import Watcher
from moeprune.errors import BadInput

_FOLDED = re.compile(r"<details><summary>(.*?)</summary>|</details>")
"""What the Hub folds; HTML in a card is shown as text here, since others may have written what it quotes."""


@dataclass(frozen=True)
class Model:
    """A checkpoint in the store's words and the registry's."""

    node: Node
    name: str
    aliases: tuple[str, ...]
    """Such as `olmoe version 3: production`."""


def models_of(watcher: Watcher) -> dict[str, Model]:
    """Every checkpoint by its path, newest first."""
    index = watcher.index
    names = {model.digest: model.name for entry in index.entries.values() for model in entry.lineage.models}
    return {
        path: Model(node, names.get(node.stage.digest, node.label), watcher.registered.get(node.stage.digest, ()))
        for path, node in index.nodes.items()
        if node.kind in MODELS
    }


def card(model: Model, watcher: Watcher) -> str:
    """The model's card, Markdown, from what the tracker knows; else why there is none."""
    from flows.handover.card import body
    from flows.handover.facts import facts_of
    from flows.handover.made import made_by

    if model.node.kind == MODELS[0]:
        return "The base model has the card it came with."
    runs = [watcher.index.entries[use.run].lineage for use in model.node.uses]
    made_it = [one for one in runs if one.final is not None and one.final.path == model.node.path]
    if not made_it:
        return "It was distilled: the distilled model has the card."
    try:
        made = made_by(made_it[0], watcher.store)
        return _FOLDED.sub(_heading, body(facts_of(made, watcher.tracker), made.model.name))
    except BadInput as error:
        return f"There is no card: {error}"


def _heading(found: re.Match[str]) -> str:
    return f"**{found[1]}**" if found[1] else ""
