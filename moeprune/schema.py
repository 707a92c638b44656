"""Which tensors of a checkpoint belong to which expert: asked of transformers, not listed per architecture.

The library's own save path is run on two models whose tensors live on the meta device, one with E experts and one
with more. A tensor whose shape differs has an axis of experts; a name only the larger model has belongs to one expert.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from moeprune.configs import read_routing, with_expert_count
from moeprune.errors import BadInput
from moeprune.meta import meta_model, meta_tensors

LAYER = re.compile(r"(?:layers|blocks)\.(\d+)\.")
ONE_EXPERT = re.compile(r"(?<![^.])experts\.(\d+)\.")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Axis:
    """A dimension of a tensor made of `rows` rows for each expert, then `rest` rows that belong to none of them.

    (1, 0) is a router or a stack of experts, (1, n) one with further classes last (shared or identity experts, a skip
    class), (F, 0) a stack of blocks of F rows (dbrx).
    """

    dimension: int
    rows: int
    rest: int

    def resized(self, shape: Shape, experts: int) -> Shape:
        """A tensor's shape with this axis, if it is to hold so many experts."""
        return (*shape[: self.dimension], self.rows * experts + self.rest, *shape[self.dimension + 1 :])

    def positions(self, kept: Sequence[int], experts: int) -> Int64[torch.Tensor, "n"]:
        """Where along it the parts lie that stay if `kept` of `experts` experts do: theirs, and those of no expert."""
        rows = torch.tensor(kept, dtype=torch.long)[:, None] * self.rows + torch.arange(self.rows)
        return torch.cat([rows.reshape(-1), torch.arange(self.rest) + self.rows * experts])


@dataclass(frozen=True)
class Plan:
    """How the tensors of a checkpoint depend on its experts.

    `axes` maps tensor names, those on disk and those in memory, to the dimension along which experts lie.
    `single` holds the names of tensors of one expert, with its number replaced by '#'.
    `tables` are integer tensors whose values are numbers of experts (deepseek_v4 binds each token to some).
    `shapes` holds the library's shape of every tensor, by its names on disk and in memory.
    `blocks` are the prefixes of the names of all that lies in a block with experts.
    `ignored` are patterns of the names that the library leaves out when it loads, such as prediction heads.

    Of a file (`file_plan.read_file_plan`), `parts` maps the names of tensors that lie beside others, such as scales
    beside weights, to the names of those, with '#' for numbers of experts; `dropped` are the tensors that pruning
    leaves out; `counts` are the experts of each layer, if layers hold different numbers: `experts` is the largest;
    `turned` are the tensors that lie with two dimensions exchanged, as published files of qwen3_vl_moe have them.

    In jetmoe one count sizes the experts of the MLP and those of the attention: the same ones leave both.
    """

    experts: int
    axes: Mapping[str, Axis]
    single: frozenset[str]
    tables: frozenset[str] = frozenset()
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    blocks: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    counts: Mapping[int, int] = field(default_factory=dict)
    turned: frozenset[str] = frozenset()

    def expert_of(self, name: str) -> int | None:
        """The expert a tensor belongs to alone, or None."""
        found = ONE_EXPERT.search(name)
        return int(found[1]) if found and without_number(name) in self.single else None

    def is_expert_weight(self, name: str, shape: Shape) -> bool:
        """Whether a tensor holds weight matrices of experts: not a router, a bias or a scale."""
        if without_number(name) in self.parts:
            return False
        if self.expert_of(name) is not None:
            return len(shape) == 2
        axis = self.axes.get(name)
        return axis is not None and (len(shape) == 3 or (len(shape) == 2 and axis.rows > 1))

    def is_router(self, name: str, shape: Shape) -> bool:
        """Whether a tensor could be the weight of a router: a row for each expert, outside the experts."""
        axis = self.axes.get(name)
        if axis is None or "experts." in name or name in self.parts:
            return False  # biases of stacked experts have a row for each expert too
        return len(shape) == 2 and (axis.dimension, axis.rows) == (0, 1)

    def whole_of(self, name: str) -> str:
        """The tensor of the library's that a tensor of a file is, or is part of where it is quantised."""
        pattern = self.parts.get(without_number(name))
        return name if pattern is None else pattern.replace("#", str(self.expert_of(name)))

    def weight_of(self, name: str) -> str | None:
        """The weight of experts that a tensor of a file holds, or is part of where it is quantised; None if none."""
        weight = self.whole_of(name)
        shape = self.shapes.get(weight)
        return weight if shape is not None and self.is_expert_weight(weight, shape) else None

    @cached_property
    def layers(self) -> list[int]:
        """Numbers of the layers with routed experts, ascending."""
        return sorted({layer for name in [*self.axes, *self.single] if (layer := layer_of(name)) is not None})


@lru_cache(1 << 18)  # plans are asked about the same names again and again
def layer_of(name: str) -> int | None:
    """The number of the decoder layer in a tensor's or module's name."""
    found = LAYER.search(f"{name}.")
    return int(found[1]) if found else None


@lru_cache(1 << 18)
def without_number(name: str) -> str:
    """A tensor's name with the number of its expert replaced by '#'."""
    return ONE_EXPERT.sub("experts.#.", name)


def renumbered(name: str, expert: int) -> str:
    """A tensor's name with another number of its expert."""
    return ONE_EXPERT.sub(f"experts.{expert}.", name)


def read_plan(config: Any, trust_remote_code: bool = False) -> Plan:
    """The plan of a model, from its config alone; no memory is allocated for weights."""
    routing = read_routing(config)
    larger = routing.experts + routing.groups
    model = meta_model(with_expert_count(config, routing.experts), trust_remote_code)
    memory, disk = meta_tensors(model)
    few = memory | disk
    many: dict[str, Tensor] = {}
    for tensors in meta_tensors(meta_model(with_expert_count(config, larger), trust_remote_code)):
        many |= tensors
    axes = {
        name: _axis(name, tuple(tensor.shape), tuple(many[name].shape), routing.experts, larger)
        for name, tensor in few.items()
        if name in many and many[name].shape != tensor.shape
    }
    single = frozenset(without_number(name) for name in many.keys() - few.keys())
    shapes = {name: tuple(tensor.shape) for name, tensor in few.items()}
    plan = Plan(
        routing.experts,
        axes,
        single,
        shapes=shapes,
        ignored=tuple(sorted(model._keys_to_ignore_on_load_unexpected or ())),
    )
    if not any(plan.weight_of(name) for name in shapes):
        raise BadInput(
            f"download.source: model type '{config.model_type}' keeps its experts in a form that cannot be "
            "pruned: no tensor holds a matrix of each expert"
        )
    blocks = frozenset().union(
        *(blocks_of(name for name in part if name in axes or without_number(name) in single) for part in (memory, disk))
    )
    tables = frozenset(
        name
        for name, tensor in few.items()
        if not tensor.is_floating_point() and tensor.shape[1:] == (routing.top_k,) and name.startswith(tuple(blocks))
    )
    return replace(plan, tables=tables, blocks=blocks)


def blocks_of(names: Iterable[str]) -> set[str]:
    """What the names of tensors of experts and routers begin with, layer by layer."""
    layers: dict[int | None, list[str]] = {}
    for name in names:
        layers.setdefault(layer_of(name), []).append(name)
    return {_common(inside) for inside in layers.values()}


def _common(names: Sequence[str]) -> str:
    """The path, with a dot at its end, of the innermost module in which all these tensors lie."""
    paths = zip(*(name.split(".")[:-1] for name in names), strict=False)
    same = itertools.takewhile(lambda parts: len(set(parts)) == 1, paths)
    return "".join(f"{parts[0]}." for parts in same)


def _axis(name: str, few: Shape, many: Shape, experts: int, larger: int) -> Axis:
    changed = [i for i, (a, b) in enumerate(zip(few, many, strict=True)) if a != b]
    rows, remainder = divmod(many[changed[0]] - few[changed[0]], larger - experts)
    rest = few[changed[0]] - rows * experts
    if len(changed) > 1 or remainder or rows < 1 or rest < 0:
        raise BadInput(
            f"{name}: shape {few} with {experts} experts and {many} with {larger} is not made of equal "
            "parts per expert: this model cannot be pruned"
        )
    return Axis(changed[0], rows, rest)
