"""Which tensors of a checkpoint belong to which expert: asked of transformers, not listed per architecture.

The library's own save path is run on two models whose tensors live on the meta device, one with E experts and one
with more. A tensor whose shape differs has an axis of experts; a name only the larger model has belongs to one expert.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64

from moeprune.errors import BadInput
from moeprune.routing import Routing

EXPERT_COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K_KEYS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "moe_top_k")
GROUP_KEYS = ("n_group", "num_expert_group")
NESTED = ("ffn_config", "text_config")
"""Where configs hide the keys above: dbrx, and the text tower of multimodal models."""

LAYER = re.compile(r"(?:layers|blocks)\.(\d+)\.")
ONE_EXPERT = re.compile(r"experts\.(\d+)\.")

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

    def positions(self, kept: Sequence[int], experts: int) -> Int64[torch.Tensor, "n"]:
        """Where along it the parts lie that stay if `kept` of `experts` experts do: theirs, and those of no expert."""
        rows = torch.tensor(kept, dtype=torch.long)[:, None] * self.rows + torch.arange(self.rows)
        return torch.cat([rows.reshape(-1), torch.arange(self.rest) + self.rows * experts])


@dataclass(frozen=True)
class Plan:
    """How the tensors of a checkpoint depend on its experts.

    `axes` maps tensor names, those on disk and those in memory, to the dimension along which experts lie.
    `single` holds the names of tensors of one expert, with its number replaced by '#'.
    """

    experts: int
    axes: dict[str, Axis]
    single: frozenset[str]

    def expert_of(self, name: str) -> int | None:
        """The expert a tensor belongs to alone, or None."""
        found = ONE_EXPERT.search(name)
        return int(found[1]) if found and without_number(name) in self.single else None

    def is_expert_weight(self, name: str, shape: Shape) -> bool:
        """Whether a tensor holds weight matrices of experts: not a router, a bias or a scale."""
        if self.expert_of(name) is not None:
            return len(shape) == 2
        axis = self.axes.get(name)
        return axis is not None and (len(shape) == 3 or (len(shape) == 2 and axis.rows > 1))

    @property
    def layers(self) -> list[int]:
        """Numbers of the layers with routed experts, ascending."""
        return sorted({layer for name in [*self.axes, *self.single] if (layer := layer_of(name)) is not None})


def layer_of(name: str) -> int | None:
    """The number of the decoder layer in a tensor's or module's name."""
    found = LAYER.search(f"{name}.")
    return int(found[1]) if found else None


def without_number(name: str) -> str:
    """A tensor's name with the number of its expert replaced by '#'."""
    return ONE_EXPERT.sub("experts.#.", name)


def renumbered(name: str, expert: int) -> str:
    """A tensor's name with another number of its expert."""
    return ONE_EXPERT.sub(f"experts.{expert}.", name)


def read_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """The checkpoint's transformers config; BadInput if transformers does not know it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(
            f"download.source: {folder / 'config.json'} is not a model transformers can load: {reason}"
        ) from error


def read_routing(config: Any) -> Routing:
    """Experts, top-k and groups of a model; BadInput if it has no routed experts."""
    model_type = getattr(config, "model_type", "?")
    experts = _first(config, EXPERT_COUNT_KEYS)
    top_k = _first(config, TOP_K_KEYS)
    if not experts or not top_k:
        raise BadInput(
            f"download.source: model type '{model_type}' is not a Mixture-of-Experts model "
            "(its config names no routed experts): give one that is"
        )
    groups = _first(config, GROUP_KEYS) or 1
    if getattr(config, "topk_method", None) == "greedy":  # deepseek_v2 then ignores its groups
        groups = 1
    return Routing(experts, top_k, groups, (_first(config, ("topk_group",)) or 1) if groups > 1 else 1)


def _first(config: Any, keys: tuple[str, ...]) -> int | None:
    for owner in [config, *(getattr(config, part, None) for part in NESTED)]:
        for key in keys:
            if isinstance(value := getattr(owner, key, None), int):
                return value
    return None


def with_expert_count(config: Any, experts: int) -> Any:
    """A copy of the config with another number of routed experts, equal in all layers."""
    changed = copy.deepcopy(config)
    for owner in [changed, *(getattr(changed, part, None) for part in NESTED)]:
        for key in EXPERT_COUNT_KEYS:
            if isinstance(getattr(owner, key, None), int):
                setattr(owner, key, experts)
    return changed


def edited_config(config: dict[str, Any], before: int, after: int) -> dict[str, Any]:
    """A copy of a raw config.json with the expert count changed wherever it is named, and nothing else.

    Every name present is set: which of two aliases wins differs between families. Raises BadInput if none is there.
    """
    changed = copy.deepcopy(config)
    hits = 0
    for owner in [changed, *(changed.get(part) or {} for part in NESTED)]:
        for key in EXPERT_COUNT_KEYS:
            if owner.get(key) == before:
                owner[key] = after
                hits += 1
    if not hits:
        raise BadInput(
            f"config.json names no expert count of {before} under any of {', '.join(EXPERT_COUNT_KEYS)}: "
            "add the one its family uses"
        )
    return changed


def read_plan(config: Any, trust_remote_code: bool = False) -> Plan:
    """The plan of a model, from its config alone; no memory is allocated for weights."""
    routing = read_routing(config)
    larger = routing.experts + routing.groups
    few = _shapes(with_expert_count(config, routing.experts), trust_remote_code)
    many = _shapes(with_expert_count(config, larger), trust_remote_code)
    axes = {
        name: _axis(name, shape, many[name], routing.experts, larger)
        for name, shape in few.items()
        if name in many and many[name] != shape
    }
    single = frozenset(without_number(name) for name in many.keys() - few.keys())
    if not axes:
        raise BadInput(
            f"download.source: model type '{config.model_type}' keeps its experts in a form that cannot be "
            "pruned: no tensor has an axis of experts"
        )
    return Plan(routing.experts, axes, single)


def _shapes(config: Any, trust_remote_code: bool) -> dict[str, Shape]:
    """Shapes of every tensor by name, in memory and as `save_pretrained` would write them."""
    from transformers import AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    memory = model.state_dict()
    disk = revert_weight_conversion(model, dict(memory))
    return {name: tuple(tensor.shape) for name, tensor in [*memory.items(), *disk.items()]}


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
