"""What removing experts does to a layer: full passes of the masked model, one sequence and one subset at a time."""

from functools import lru_cache
from itertools import combinations

import pytest
import tiny
from observed import corpus_of
from torch import Tensor, nn

TOLERANCE = 1e-5
KEEP = 6
ALL = tuple(range(tiny.EXPERTS))
SEQUENCES = tiny.token_ids(14, 9)
CORPUS = corpus_of(SEQUENCES, [0, 0])
ROUTINGS = ["olmoe", "olmoe-renormalised", "qwen2_moe", "deepseek_v3", "gpt_oss"]
"""Softmax with and without renormalisation, with shared experts, sigmoid in two groups, softmax over the chosen."""
routings = pytest.mark.parametrize("family", ROUTINGS)
forms = pytest.mark.parametrize("form", ["layerwise", "progressive"])

Kept = dict[int, tuple[int, ...]]


def admissible(family: str, keep: int = KEEP) -> list[tuple[int, ...]]:
    """Every subset; with two groups of four those that take equally many of each."""
    subsets = list(combinations(ALL, keep))
    if family == "deepseek_v3":
        subsets = [kept for kept in subsets if sum(expert < 4 for expert in kept) == keep // 2]
    return subsets


def routed(model: nn.Module, ids: Tensor, layer: int, kept: Kept) -> Tensor:
    """What the routed experts of a layer put out in a full pass in which all others cannot be chosen."""
    found: list[Tensor] = []
    blocks = tiny.moe_blocks(model)
    handle = blocks[layer].experts.register_forward_hook(lambda _, inputs, output: found.append(output.double()))
    tiny.masked_logits(model, ids[None], dict.fromkeys(blocks, ALL) | kept)
    handle.remove()
    return found[0].reshape(len(ids), -1)


def brute_force(model: nn.Module, layer: int, earlier: Kept, kept: tuple[int, ...]) -> float:
    """The sum over sequences of || F'(X, C) - F(X) ||_F; F is of the dense model, whatever was pruned earlier."""
    return sum(
        float((routed(model, ids, layer, earlier | {layer: kept}) - routed(model, ids, layer, {})).norm())
        for ids in SEQUENCES
    )


@lru_cache
def losses(family: str, form: str) -> dict[int, dict[tuple[int, ...], float]]:
    """By layer the brute-force loss of each subset; in the progressive form earlier layers keep their best."""
    model = tiny.shared_model(family)
    found: dict[int, dict[tuple[int, ...], float]] = {}
    for layer in tiny.moe_blocks(model):
        earlier = {done: min(table, key=table.get) for done, table in found.items()} if form == "progressive" else {}
        found[layer] = {kept: brute_force(model, layer, earlier, kept) for kept in admissible(family)}
    return found
