"""A tiny model of a family, and what moeprune makes of it from its files on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import brute_force
import families
import tiny
import torch
import visits
from observed import corpus_of
from torch import Tensor
from transformers import PreTrainedModel

from moeprune import criteria
from moeprune.checkpoint import Checkpoint, open_checkpoint
from moeprune.configs import read_config, read_routing
from moeprune.experts import LayerExperts
from moeprune.file_plan import read_file_plan
from moeprune.masks import Mask
from moeprune.observation import observe_chunk
from moeprune.observer import Observer
from moeprune.routing import Routing
from moeprune.schema import Plan
from moeprune.selection import uniform
from moeprune.statistics import Statistics
from moeprune.surgery import prune_checkpoint

SEQUENCES = tiny.token_ids(14, 9, 20)
"""What is observed."""
IDS = torch.stack(tiny.token_ids(24, 24, seed=4))
"""What logits are compared on."""


@dataclass(frozen=True)
class Case:
    """A family's tiny model on disk and what becomes of it; each step is made once, by the first test that needs it."""

    family: str
    folder: Path

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The whole model as files."""
        families.tiny_model(self.family).save_pretrained(self.folder / "whole")
        return open_checkpoint(self.folder / "whole")

    @cached_property
    def model(self) -> PreTrainedModel:
        """The whole model, loaded from its files."""
        # As loaded, not as built: zaya's last balancing bias is -1 after loading, whatever the file holds.
        return tiny.load(self.checkpoint.folder)

    @cached_property
    def plan(self) -> Plan:
        """Which tensors of the files belong to which expert."""
        return read_file_plan(self.checkpoint)

    @cached_property
    def routing(self) -> Routing:
        """What its router demands."""
        return read_routing(read_config(self.checkpoint.folder))

    def observed(self, batch_size: int) -> Statistics:
        """The sums of two chunks; in batches of 4 the sequences of the first are padded."""
        corpus = corpus_of(SEQUENCES, [0, 0, 1])
        with Observer(self.model, ("core", "vectors"), ("deployed",)) as observer:
            parts = [observe_chunk(self.model, observer, corpus, chunk, batch_size) for chunk in range(2)]
        return (parts[0] + parts[1]).total()

    @cached_property
    def statistics(self) -> Statistics:
        """The sums, padded where sequences are of unlike lengths."""
        return self.observed(4)

    @cached_property
    def truth(self) -> dict[int, visits.LayerTruth]:
        """What each token does at each expert."""
        return visits.truth(self.model, SEQUENCES)

    def expected(self, of: Callable[[visits.Visit], float | Tensor]) -> Tensor:
        """[L, E, ...]: the sum over the visits of each expert of what `of` makes of one."""
        return torch.stack([layer.sums(of) for layer in self.truth.values()])

    @cached_property
    def scores(self) -> Tensor:
        """[L, E]: AIMER."""
        score = criteria.find("aimer").score
        return torch.stack([score(LayerExperts(self.checkpoint, self.plan, layer)) for layer in self.plan.layers])

    @cached_property
    def mask(self) -> Mask:
        """The experts with the best scores, at most 6 of 8."""
        keep = max(number for number in range(1, 7) if self.routing.works(number))
        kept = uniform.select(self.scores, keep, self.routing).tolist()
        return Mask("0" * 64, self.plan.experts, dict(zip(self.plan.layers, map(tuple, kept), strict=True)))

    @cached_property
    def wrong(self) -> dict[int, tuple[int, ...]]:
        """The experts kept, but in the last layer another one instead of the one with the most tokens."""
        layer, kept = self.plan.layers[-1], dict(self.mask.kept)
        count = self.truth[layer].sums(lambda visit: 1)
        busiest = max(kept[layer], key=lambda expert: float(count[expert]))
        return kept | {layer: tuple(sorted({*kept[layer], self.mask.removed(layer)[0]} - {busiest}))}

    @cached_property
    def masked(self) -> Tensor:
        """Logits of the whole model in which only the experts of the mask can be chosen."""
        return brute_force.masked_logits(self.model, IDS, self.mask.kept)

    @cached_property
    def pruned(self) -> PreTrainedModel:
        """The model of the pruned files."""
        target = self.folder / "pruned"
        target.mkdir()
        prune_checkpoint(self.checkpoint, self.plan, self.mask, target, 10**9)
        return tiny.load(target)

    @cached_property
    def difference(self) -> float:
        """Largest difference between the logits of the pruned checkpoint and those of the masked model."""
        return float((tiny.logits(self.pruned, IDS) - self.masked).abs().max())
