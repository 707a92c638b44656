"""What the config of a checkpoint says whose layers hold different numbers of experts.

transformers' classes know one number for all layers, so such a checkpoint carries the class that loads it (see
moeprune/loader) and names it under `auto_map`. Its model type and architecture are unknown elsewhere on purpose: what
would load it by the name of its family would leave experts without weights, or find them in the wrong places.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from moeprune.configs import edited_config
from moeprune.errors import BadInput
from moeprune.loader import FILE, FORMAT
from moeprune.loader.modeling_moeprune import MODEL_TYPE, PREFIX
from moeprune.schema import LAYER, Plan, layer_of

ABOUT = (
    "Layers hold different numbers of experts: load with trust_remote_code=True, by the class in "
    f"{FILE.name}; vLLM and llama.cpp cannot read this checkpoint."
)


def check_uneven(model: Any, config: dict[str, Any]) -> None:
    """Raise BadInput if layers of a model (its tensors may lie on the meta device) must hold equally many experts.

    `config` is the raw config.json of its checkpoint.
    """
    if config["model_type"] != model.config.model_type:
        raise BadInput(
            f"mask.selection: different numbers of experts are not for the {model.config.model_type} within a "
            f"{config['model_type']}: choose a rule that keeps equally many, such as uniform"
        )
    kind = type(model)
    if not kind.__module__.startswith("transformers.") or "CausalLM" not in kind.__name__:
        raise BadInput(
            f"mask.selection: different numbers of experts are for causal language models of transformers' own, and "
            f"{kind.__name__} is none: choose a rule that keeps equally many, such as uniform"
        )


def loader_keys(config: dict[str, Any], model: Any, plan: Plan, counts: Mapping[int, int]) -> dict[str, Any]:
    """What a raw config.json must say for layers that keep `counts` experts, beside the largest count.

    Its model type, the loader, the layers by their modules with their counts, and the keys under which `config`, that
    of the original, holds the count. `model` is the original model, on the meta device. Raises BadInput as
    `check_uneven` does.
    """
    check_uneven(model, config)
    name, settings = type(model).__name__, type(model.config).__name__
    paths = _layers(model, plan)
    return {
        "model_type": MODEL_TYPE + model.config.model_type,
        "architectures": [PREFIX + name],
        "auto_map": {
            "AutoConfig": f"{FILE.stem}.{PREFIX}{settings}",
            "AutoModelForCausalLM": f"{FILE.stem}.{PREFIX}{name}",
        },
        "moeprune": {
            "format": FORMAT,
            "about": ABOUT,
            "count_keys": list(_changed(config, edited_config(config, plan.experts, -1))),
            "experts": {paths[layer]: counts[layer] for layer in sorted(counts)},
        },
    }


def _changed(before: dict[str, Any], after: dict[str, Any], path: str = "") -> Iterator[str]:
    """Dotted names of the keys whose values differ."""
    for key, value in before.items():
        if isinstance(value, dict):
            yield from _changed(value, after[key], f"{path}{key}.")
        elif value != after[key]:
            yield path + key


def _layers(model: Any, plan: Plan) -> dict[int, str]:
    """The paths in memory of the layers with experts."""
    found = {}
    for name in model.state_dict():
        if name in plan.axes and (layer := layer_of(name)) is not None:
            place = LAYER.search(name)
            assert place is not None
            found[layer] = name[: place.end() - 1]
    return found
