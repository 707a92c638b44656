"""The experts a layer can lose with least change (ExpertSparsity / NAEE, Lu et al. 2024, arXiv:2402.14800)."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from moeprune.corpus import Corpus
from moeprune.errors import BadInput, known_word
from moeprune.reconstruction import LayerLoss, batches
from moeprune.routing import Routing
from moeprune.schema import Plan

MOST = 1_000_000
"""Most subsets of a layer that are tried one by one."""

Search = Literal["auto", "exhaustive", "greedy", "sampled"]
Loss = Callable[[Sequence[int]], float]


def select(
    model: nn.Module,
    plan: Plan,
    corpora: dict[str, Corpus],
    keep: int,
    routing: Routing,
    progress: Callable[[int], None],
    *,
    form: Literal["layerwise", "progressive"] = "layerwise",
    search: Search = "auto",
    subsets: int = 2000,
    corpus: str = "",
    tokens: int = 0,
    seed: int = 0,
) -> Int64[Tensor, "L keep"]:
    """The experts each layer keeps, ascending: those with the least `moeprune.reconstruction` loss that is found.

        min over C, |C| = keep, of sum over blocks of ||F'(X, C) - F(X)||_F        (Eq. 4)

    F is the layer's routed output, F' that of the experts in C alone, chosen anew by the router.

    `form`: in "layerwise" every layer has the dense model's inputs; in "progressive" those left by the layers pruned
    before it, while what it is to reconstruct stays the dense model's output.

    `search`: "exhaustive" (the paper's) tries every subset. "greedy" removes one expert at a time, the one whose
    removal leaves the least loss. "sampled" takes the best of `subsets` random ones, drawn with `seed`. "auto" is
    exhaustive if there are at most `subsets`, else greedy, or with a group-limited router sampled: its groups must
    lose equally many, and between two steps of a greedy search they would not have. Of equal losses the lower
    expert ids go.

    `corpus` names the one to use ("": all, as one); `tokens` is the number used of each (0: all). A layer takes
    8 T (E + 1)^2 bytes for T tokens. `progress` is told each layer; its loss goes to the log.

    Raises BadInput for more than `MOST` subsets to try, a corpus there is none of, a `keep` the router cannot work
    with, "greedy" with a group-limited router, or a family whose layers cannot be run by themselves.

    Good for few experts, where every subset can be tried: on Mixtral-8x7B the paper keeps more accuracy than frequency
    and random choice do. It is the one method here that sees what rerouting does.
    """
    options = {"form": form, "search": search, "subsets": subsets, "corpus": corpus, "tokens": tokens, "seed": seed}
    check(keep, routing, list(corpora), options)
    chosen = [corpora[corpus]] if corpus else list(corpora.values())
    random = torch.Generator().manual_seed(seed)
    kept: dict[int, tuple[int, ...]] = {}
    for layer in plan.layers:
        loss = LayerLoss(model, plan, layer, batches(chosen, tokens), kept if form == "progressive" else {})
        found = best(loss, routing, keep, search, subsets, random)
        kept[layer] = found.kept
        share = found.loss / loss.dense if loss.dense else 0.0
        logging.getLogger("moeprune").info(
            "reconstruction, layer %d: loss %.6g, %.2f%% of its output, the least of %d by %s search",
            *(layer, found.loss, 100 * share, found.tried, found.search),
        )
        progress(1)
    return torch.tensor(list(kept.values()))


def check(keep: int, routing: Routing, corpora: Sequence[str], options: dict[str, Any]) -> None:
    """Raise BadInput for what `select` cannot do, before a model is loaded; `corpora` are names."""
    routing.check(keep)
    if options["corpus"]:
        known_word(options["corpus"], corpora, "mask.options.corpus:")
    if options["subsets"] < 1 or options["tokens"] < 0:
        raise BadInput("mask.options: give at least 1 as subsets and 0 as tokens")
    if not corpora:
        raise BadInput("mask.selection: 'reconstruction' runs the model on text: name corpora in calibrate.corpora")
    if options["search"] == "greedy" and routing.groups > 1:
        raise BadInput(
            f"mask.options.search: 'greedy' removes one expert at a time, but the router has {routing.groups} "
            "groups, which must lose equally many: choose 'sampled'"
        )
    if options["search"] == "exhaustive" and number_of_subsets(keep, routing) > MOST:
        raise BadInput(
            f"mask.options.search: 'exhaustive' would try {number_of_subsets(keep, routing):.3g} subsets of each "
            f"layer, more than {MOST}: choose 'greedy' or 'sampled'"
        )


def number_of_subsets(keep: int, routing: Routing) -> int:
    """How many subsets of `keep` experts take equally many of each group."""
    return comb(routing.experts // routing.groups, keep // routing.groups) ** routing.groups


@dataclass(frozen=True)
class Found:
    """What a search came to: the experts kept, their loss, how many subsets were tried, and by which search."""

    kept: tuple[int, ...]
    loss: float
    tried: int
    search: str


def best(loss: Loss, routing: Routing, keep: int, search: Search, subsets: int, random: torch.Generator) -> Found:
    """Search one layer."""
    if search == "auto":
        few = number_of_subsets(keep, routing) <= subsets
        search = "exhaustive" if few else "greedy" if routing.groups == 1 else "sampled"
    if search == "greedy":
        return _greedy(loss, routing.experts, keep)
    tried = dict.fromkeys(_drawn(routing, keep, subsets, random)) if search == "sampled" else _all(routing, keep)
    losses = {kept: loss(kept) for kept in tried}
    kept = min(losses, key=losses.__getitem__)
    return Found(kept, losses[kept], len(losses), search)


def _greedy(loss: Loss, experts: int, keep: int) -> Found:
    kept, least, tried = tuple(range(experts)), 0.0, 0
    while len(kept) > keep:
        rests = [kept[:place] + kept[place + 1 :] for place in range(len(kept))]
        losses = [loss(rest) for rest in rests]
        least, tried = min(losses), tried + len(rests)
        kept = rests[losses.index(least)]
    return Found(kept, least, tried, "greedy")


def _all(routing: Routing, keep: int) -> Iterator[tuple[int, ...]]:
    """Every subset that takes equally many of each group, those without the lowest ids first."""
    size = routing.experts // routing.groups
    lost = size - keep // routing.groups
    groups = [range(first, first + size) for first in range(0, routing.experts, size)]
    for removed in product(*(combinations(group, lost) for group in groups)):
        gone = {expert for part in removed for expert in part}
        yield tuple(expert for expert in range(routing.experts) if expert not in gone)


def _drawn(routing: Routing, keep: int, number: int, random: torch.Generator) -> Iterator[tuple[int, ...]]:
    """Random subsets that take equally many of each group."""
    size, each = routing.experts // routing.groups, keep // routing.groups
    for _ in range(number):
        parts = [torch.randperm(size, generator=random)[:each] + group * size for group in range(routing.groups)]
        yield tuple(torch.cat(parts).sort().values.tolist())
