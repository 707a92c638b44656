"""Zeros inside experts as loops over tokens, rows and blocks, and sparse checkpoints of tiny models.

The reference works on the model's own parameters in memory and shares nothing with moeprune.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import tiny
import torch
from observed import corpus_of
from torch import Tensor

from moeprune.checkpoint import Checkpoint, open_checkpoint
from moeprune.configs import read_config
from moeprune.corpus import Corpus
from moeprune.criteria import moe_pruner, wanda
from moeprune.observation import observe_chunk
from moeprune.observer import Observer
from moeprune.projections import projections
from moeprune.schema import read_plan
from moeprune.sparsity import Energies, energies_of, sparsify_checkpoint
from moeprune.statistics import Statistics
from moeprune.weight_masks import parse_pattern

SEQUENCES = tuple(tiny.token_ids(14, 9, 20))
SOME = ("olmoe", "mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss")
CRITERIA = {"moe_pruner": moe_pruner, "wanda": wanda}

Visits = dict[int, list[list[tuple[float, Tensor, Tensor]]]]


@torch.no_grad()
def visits(model: Any, sequences: Sequence[Tensor]) -> Visits:
    """By layer and expert: (gate, input, input of the down projection) of every token routed to it, in float64."""
    if model.config.model_type != "gpt_oss":
        truth = tiny.truth(model, sequences)
        return {
            number: [
                [(visit.gates["deployed"], visit.hidden, visit.inner) for visit in layer.of(e)]
                for e in range(tiny.EXPERTS)
            ]
            for number, layer in truth.items()
        }
    found: Visits = {number: [[] for _ in range(tiny.EXPERTS)] for number in tiny.moe_blocks(model)}
    hooks = [
        block.experts.register_forward_pre_hook(partial(_add_gpt_oss, found[number]))
        for number, block in tiny.moe_blocks(model).items()
    ]
    for ids in sequences:
        tiny.logits(model, ids[None])
    for hook in hooks:
        hook.remove()
    return found


def _add_gpt_oss(of_layer: list, experts: Any, arguments: tuple[Tensor, ...]) -> None:
    for h, chosen, gates in zip(*arguments, strict=True):
        for e, gate in zip(chosen.tolist(), gates.tolist(), strict=True):
            both = h.double() @ experts.gate_up_proj[e].double() + experts.gate_up_proj_bias[e].double()
            a, b = both[0::2].clamp(max=experts.limit), both[1::2].clamp(-experts.limit, experts.limit)
            of_layer[e].append((gate, h.double(), (b + 1) * a / (1 + (-a * experts.alpha).exp())))


def true_energy(of_expert: list, kind: str, width: int, gated: bool) -> Tensor:
    """Sum over visits of the squared input, one token at a time."""
    energy = torch.zeros(width, dtype=torch.float64)
    for gate, hidden, inner in of_expert:
        energy += (gate if gated else 1.0) ** 2 * (hidden if kind == "up" else inner) ** 2
    return energy


def surviving(importance: list[float], pattern: str) -> list[int]:
    """Places of a row that stay, by sorting and counting."""
    if ":" in pattern:
        keep, of = map(int, pattern.split(":"))
        starts, size, dropped = range(0, len(importance), of), of, of - keep
    else:
        starts, size, dropped = [0], len(importance), int(Fraction(pattern) * len(importance))
    gone = set()
    for start in starts:
        places = sorted(range(start, start + size), key=lambda j: (importance[j], j))
        gone |= set(places[:dropped])
    return [j for j in range(len(importance)) if j not in gone]


@torch.no_grad()
def zeroed(parameter: Tensor, energy: list[Tensor], pattern: str, transposed: bool) -> Tensor:
    """A stack of matrices with everything but the survivors of each output row zero; `energy` is by expert."""
    result = torch.zeros_like(parameter)
    for e, matrix in enumerate(parameter):
        rows, target = (matrix.T, result[e].T) if transposed else (matrix, result[e])
        length = energy[e].sqrt().tolist() if energy[e].any() else [1.0] * rows.shape[1]
        for row, into in zip(rows, target, strict=True):
            importance = [abs(weight) * x for weight, x in zip(row.double().tolist(), length, strict=True)]
            for j in surviving(importance, pattern):
                into[j] = row[j]
    return result


def sparse_parameters(model: Any, number: int, of_layer: list, pattern: str, gated: bool = True) -> dict[str, Tensor]:
    """The two parameters of one layer's experts as they must become."""
    experts = tiny.moe_blocks(model)[number].experts
    transposed = model.config.model_type == "gpt_oss"
    expected = {}
    for name, kind in (("gate_up_proj", "up"), ("down_proj", "down")):
        parameter = getattr(experts, name)
        width = parameter.shape[1 if transposed else 2]
        energy = [true_energy(one, kind, width, gated) for one in of_layer]
        expected[name] = zeroed(parameter, energy, pattern, transposed)
    return expected


@lru_cache
def shared_visits(family: str) -> Visits:
    """Of `tiny.shared_model` and SEQUENCES."""
    return visits(tiny.shared_model(family), SEQUENCES)


# ------------------------------------------------------------------------------------------------ what moeprune makes


def inputs_of(family: str, corpus: Corpus) -> Statistics:
    """The input energies of a tiny model, observed."""
    with Observer(tiny.shared_model(family), ("inputs",), ("deployed",)) as observer:
        return observe_chunk(tiny.shared_model(family), observer, corpus, 0, 4).total()


@lru_cache
def statistics_of(family: str) -> Statistics:
    """Of `tiny.shared_model` and SEQUENCES."""
    return inputs_of(family, corpus_of(list(SEQUENCES), [0] * len(SEQUENCES)))


def sparsified(
    folder: Path,
    target: Path,
    found: Statistics | Energies,
    criterion: Any = moe_pruner,
    pattern: str = "0.5",
    shard_bytes: int = 10**9,
    **more: Any,
) -> Checkpoint:
    """The sparse checkpoint of the one in `folder`."""
    target.mkdir()
    config = read_config(folder)
    energies = found if isinstance(found, Energies) else energies_of(found, criterion.ENERGY)
    sparsify_checkpoint(
        open_checkpoint(folder),
        read_plan(config),
        projections(config),
        criterion.score,
        energies,
        parse_pattern(pattern),
        target,
        shard_bytes,
        **more,
    )
    return open_checkpoint(target)


def expert_names(checkpoint: Checkpoint) -> list[str]:
    """The weight matrices of experts of a tiny model."""
    return [name for name in checkpoint.tensors if ".experts." in name and "bias" not in name]
