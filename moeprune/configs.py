"""What a model's config says of its experts: read by transformers, and edited as the raw JSON it is."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moeprune.errors import BadInput, one_line
from moeprune.loader import is_uneven, stock_config
from moeprune.routing import FIXED_TOP_K, Routing

EXPERT_COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K_KEYS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "moe_top_k")
GROUP_KEYS = ("n_group", "num_expert_group")
HEAD_COUNT_KEYS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "mtp_num_layers")
NESTED = ("ffn_config", "text_config", "thinker_config")
"""Where configs hide the keys above, one within another too: dbrx, and the text towers of multimodal models."""


def read_config(source: Path, trust_remote_code: bool = False) -> Any:
    """The transformers config in a checkpoint's folder, or a config file; BadInput if transformers does not know it."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    wrong = (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, StrictDataclassError)
    try:
        if is_uneven(source):
            return stock_config(source)
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except wrong as error:
        if "trust_remote_code" in str(error):
            raise BadInput(
                f"download.source: {source} is loaded by code of its own, which has not been run: read its *.py files, "
                "and set download.trust_remote_code: true if you trust them"
            ) from error
        file = source if source.is_file() else source / "config.json"
        raise BadInput(f"download.source: {file} is not a model transformers can load: {one_line(error)}") from error


def read_routing(config: Any) -> Routing:
    """Experts, top-k and groups of a model.

    Raises BadInput if it has no routed experts, or if its config gives layers different numbers.
    """
    model_type = getattr(config, "model_type", "?")
    experts = _first(config, EXPERT_COUNT_KEYS)
    top_k = _first(config, TOP_K_KEYS)
    if not experts or not top_k:
        raise BadInput(
            f"download.source: model type '{model_type}' is not a Mixture-of-Experts model "
            "(its config names no routed experts): give one that is"
        )
    top_k = FIXED_TOP_K.get(model_type, top_k)
    groups = _first(config, GROUP_KEYS)
    method = getattr(config, "topk_method", None)
    if groups is None or method == "greedy":  # deepseek_v2 then ignores its groups
        return Routing(experts, top_k)
    ranked_by = (
        1 if method == "group_limited_greedy" else 2
    )  # deepseek_v2 by a group's best, all others by its best two
    return Routing(experts, top_k, groups, min(_first(config, ("topk_group",)) or groups, groups), ranked_by)


def with_expert_count(config: Any, experts: int) -> Any:
    """A copy of the config with another number of routed experts, equal in all layers."""
    changed = copy.deepcopy(config)
    for owner in _owners(changed, lambda parent, part: getattr(parent, part, None)):
        for key in EXPERT_COUNT_KEYS:
            if _numbers(value := getattr(owner, key, None)):
                setattr(owner, key, _like(value, experts))
    return changed


def edited_config(config: dict[str, Any], before: int, after: int) -> dict[str, Any]:
    """A copy of a raw config.json with the expert count changed wherever it is named, and nothing else.

    Every name present is set: which of two aliases wins differs between families. Raises BadInput if none is there.
    """
    changed = copy.deepcopy(config)
    hits = 0
    for owner in _owners(changed, dict.get):
        for key in EXPERT_COUNT_KEYS:
            if set(_numbers(value := owner.get(key))) == {before}:
                owner[key] = _like(value, after)
                hits += 1
    if not hits:
        raise BadInput(
            f"config.json names no expert count of {before} under any of {', '.join(EXPERT_COUNT_KEYS)}: "
            "add the one its family uses"
        )
    return changed


def without_heads(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a raw config.json that counts no prediction heads, under whatever name it counts them."""
    changed = copy.deepcopy(config)
    for owner in _owners(changed, dict.get):
        owner |= {key: 0 for key in HEAD_COUNT_KEYS if owner.get(key)}
    return changed


def head_layers(config: dict[str, Any]) -> range:
    """The numbers of the layers after the last one of the model, by a raw config.json: its prediction heads."""
    for owner in _owners(config, dict.get):
        heads = next((count for key in HEAD_COUNT_KEYS if (count := owner.get(key))), 0)
        if heads and (layers := owner.get("num_hidden_layers")):
            return range(layers, layers + heads)
    return range(0)


def quantisation(config: dict[str, Any]) -> dict[str, Any] | None:
    """How a raw config.json says the weights are quantised, or None."""
    return next((found for owner in _owners(config, dict.get) if (found := owner.get("quantization_config"))), None)


def _owners(config: Any, part_of: Callable[[Any, str], Any]) -> Iterator[Any]:
    """The config, and every config nested in it."""
    yield config
    for part in NESTED:
        if nested := part_of(config, part):
            yield from _owners(nested, part_of)


def _first(config: Any, keys: tuple[str, ...]) -> int | None:
    """The number under the first of the keys that holds one, or one for each layer."""
    for owner in _owners(config, lambda parent, part: getattr(parent, part, None)):
        for key in keys:
            numbers = _numbers(getattr(owner, key, None))
            if len(set(numbers)) > 1:
                own = getattr(owner, "attribute_map", {}).get(key, key)
                raise BadInput(
                    f"download.source: config.json gives layers different {own} ({', '.join(map(str, numbers))}): only "
                    "a model whose layers have the same can be pruned"
                )
            if numbers:
                return numbers[0]
    return None


def _numbers(value: Any) -> list[int]:
    """A number, or those of the layers, as a list; empty if it is neither."""
    numbers = value if isinstance(value, list) else [value]
    return numbers if all(isinstance(number, int) for number in numbers) else []


def _like(value: Any, number: int) -> Any:
    """The number in the form of a value that `_numbers` reads."""
    return [number] * len(value) if isinstance(value, list) else number
