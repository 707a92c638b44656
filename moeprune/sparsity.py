"""Zeros inside experts (arXiv:2410.12013): masks, sparse checkpoints, and what they would take to store.

No expert is removed and no shape changes: what is written is a stock checkpoint as large as before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from moeprune.checkpoint import Checkpoint
from moeprune.errors import BadInput
from moeprune.projections import KINDS, Kind, Projection, unnumbered
from moeprune.schema import Plan, layer_of
from moeprune.statistics import Statistics
from moeprune.weight_masks import NOfM, Pattern
from moeprune.writing import Contents, write_checkpoint

Score = Callable[[Tensor, Tensor], Tensor]
"""A weight criterion: (matrix [out, in], energy [in]) -> importance [out, in], higher = keep."""

FLOATS = ("F64", "F32", "F16", "BF16")


def sparse_mask(importance: Float[Tensor, "out in"], pattern: Pattern) -> Bool[Tensor, "out in"]:
    """Which weights stay: in each block of each output row all but the least important ones.

    Of equally important weights those with the lower index go first. Raises BadInput if a row is not made of whole
    blocks.
    """
    size, dropped = pattern.blocks(importance.shape[1])
    blocks = importance.reshape(len(importance), -1, size)
    order = blocks.argsort(dim=-1, stable=True)
    return torch.ones_like(blocks, dtype=torch.bool).scatter_(-1, order[..., :dropped], False).reshape_as(importance)


@dataclass(frozen=True)
class Energies:
    """Sums, over the tokens routed to an expert, of each input squared, times the gate squared if they are gated.

    `up` is of the expert's input, `down` of the input of its down projection, `layer` the number of each layer.
    """

    layer: tuple[int, ...]
    up: Float64[Tensor, "L E D"]
    down: Float64[Tensor, "L E I"]

    def of(self, layer: int, kind: Kind) -> Float64[Tensor, "E in"]:
        """The energies of the inputs of one layer's up or down projections."""
        return {"up": self.up, "down": self.down}[kind][self.layer.index(layer)]

    @property
    def unseen(self) -> dict[int, tuple[int, ...]]:
        """By layer the experts that saw no token; layers without any are left out."""
        silent = (self.up == 0).all(-1)
        rows = zip(self.layer, silent, strict=True)
        return {layer: tuple(row.nonzero().flatten().tolist()) for layer, row in rows if row.any()}


def energies_of(statistics: Statistics, kind: Literal["gated", "ungated"]) -> Energies:
    """The energies that a weight criterion's ENERGY names; BadInput if the group `inputs` was not observed."""
    suffix = "" if kind == "gated" else ".ungated"
    up, down = (statistics.sum_of(f"input_energy.{part}{suffix}") for part in KINDS)
    return Energies(tuple(statistics.layer.tolist()), up, down)


def sparsify(
    weight: Float[Tensor, "*E rows columns"],
    input_axis: int,
    energy: Float64[Tensor, "*E in"],
    score: Score,
    pattern: Pattern,
) -> Float[Tensor, "*E rows columns"]:
    """A copy of one expert's matrix, or of a stack of them, in which the least important weights are zero.

    An expert whose inputs were all zero, such as one that saw no token, is ranked by |W| alone: all its scores would
    be equal, and its first inputs would go.
    """
    sparse = weight.clone(memory_format=torch.contiguous_format)
    matrices = sparse.movedim(input_axis, -1)  # a view: writing to it writes to `sparse`
    stack, energies = (matrices, energy) if weight.dim() == 3 else (matrices[None], energy[None])
    for matrix, one in zip(stack, energies.to(weight.device), strict=True):
        importance = score(matrix, one if one.any() else torch.ones_like(one))
        matrix.masked_fill_(~sparse_mask(importance, pattern), 0)
    return sparse


def sparsify_checkpoint(
    source: Checkpoint,
    plan: Plan,
    projections: Mapping[str, Projection],
    score: Score,
    energies: Energies,
    pattern: Pattern,
    target: Path,
    shard_bytes: int,
    progress: Callable[[int], None] = lambda written: None,
) -> None:
    """Write to the folder `target` the checkpoint with zeros in its experts, and all else byte for byte.

    `progress` is told the bytes of each tensor written. At most one tensor and its copy are in memory. Raises BadInput,
    before anything is written, if the energies are of other layers, a row is not made of whole blocks, or the files do
    not hold the experts' weights as floating-point numbers.
    """
    if list(energies.layer) != plan.layers:
        raise BadInput(
            f"statistics: they are of the layers {list(energies.layer)}, the experts of {source.folder} are in the "
            f"layers {plan.layers}: observe this checkpoint"
        )

    def sparse(name: str, projection: Projection, layer: int) -> Tensor:
        energy, expert = energies.of(layer, projection.kind), plan.expert_of(name)
        own = energy if expert is None else energy[expert]
        return sparsify(source.read(name), projection.input_axis, own, score, pattern)

    reads: dict[str, Callable[[], Tensor]] = {name: partial(source.read, name) for name in source.tensors}
    for name, (projection, layer) in expert_weights(source, plan, projections).items():
        pattern.blocks(source.tensors[name].shape[projection.input_axis])
        reads[name] = partial(sparse, name, projection, layer)
    contents: Contents = {name: (info, reads[name]) for name, info in source.tensors.items()}
    write_checkpoint(source, contents, source.config, target, shard_bytes, progress)


def expert_weights(
    checkpoint: Checkpoint, plan: Plan, projections: Mapping[str, Projection]
) -> dict[str, tuple[Projection, int]]:
    """The tensors of a checkpoint that are expert projections, and the layer of each.

    Those of prediction layers, which the model does not run, are left out. Raises BadInput if a layer has none, or if
    they are quantised.
    """
    layers = set(plan.layers)
    found = {
        name: (projection.turned() if name in plan.turned else projection, layer)
        for name in checkpoint.tensors
        if (projection := projections.get(unnumbered(name))) and (layer := layer_of(name)) in layers
    }
    packed = [name for name in found if checkpoint.tensors[name].dtype not in FLOATS]
    absent = {(at, kind) for at in layers for kind in KINDS} - {(at, of.kind) for of, at in found.values()}
    if packed or absent:
        what = f"{packed[0]} is {checkpoint.tensors[packed[0]].dtype}" if packed else "some are not there"
        raise BadInput(
            f"{checkpoint.folder}: weights inside experts can be zeroed only where the files hold them as "
            f"floating-point numbers, but {what}: give an unquantised checkpoint"
        )
    return found


def stored_sizes(
    checkpoint: Checkpoint, plan: Plan, projections: Mapping[str, Projection], pattern: Pattern
) -> dict[str, int]:
    """What a sparse checkpoint takes on disk, and what it would take in forms that no loader of MoE models reads.

      expert_weights  weights of expert projections
      zeros           those of them that are zero, counted in the files
      dense_bytes     all tensors as they are on disk: what the checkpoint takes
      bitmask_bytes   computed: for expert projections the weights that are not zero, and a bit for each weight
      n_of_m_bytes    computed, only for N:M: for expert projections the N weights kept of every M, and ceil(log2 M)
                      bits for the place of each (for 2:4 the 2 bits that sparse tensor cores read)

    Both computed sizes hold all other tensors as they are.
    """
    weights = zeros = dense_bits = bitmask_bits = n_of_m_bits = 0
    for name in expert_weights(checkpoint, plan, projections):
        tensor = checkpoint.read(name)
        size, width = tensor.numel(), 8 * tensor.element_size()
        filled = int(tensor.count_nonzero())
        weights, zeros, dense_bits = weights + size, zeros + size - filled, dense_bits + size * width
        bitmask_bits += filled * width + size
        if isinstance(pattern, NOfM):
            n_of_m_bits += size * pattern.keep // pattern.of * (width + (pattern.of - 1).bit_length())
    sizes = {"expert_weights": weights, "zeros": zeros, "dense_bytes": checkpoint.weight_bytes}
    others = checkpoint.weight_bytes - dense_bits // 8
    sizes["bitmask_bytes"] = others + -(-bitmask_bits // 8)
    if isinstance(pattern, NOfM):
        sizes["n_of_m_bytes"] = others + -(-n_of_m_bits // 8)
    return sizes
