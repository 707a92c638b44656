"""Loads a checkpoint whose layers hold different numbers of routed experts. Written by moeprune, copied unchanged.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

transformers' own classes read one number of experts for all layers and cannot load such a checkpoint, nor can vLLM or
llama.cpp. The class here is transformers' own class of the model but for its layers: config.json names the layers and
their counts under `moeprune`, and each of them is built with its own count. Names, shapes and values in the files are
those of a checkpoint that transformers would write for each layer alone; the count in config.json is the largest.

`UnevenX` is transformers' class X. Needs torch and transformers (5.23 was tested), nothing else. Limits: with
`output_router_logits` a model cannot add up its routers' losses, as their numbers of experts differ; a change of the
attention or experts implementation after loading does not reach the layers: give it to `from_pretrained`.
"""

import copy
import operator
from typing import Any

import transformers
from transformers import PreTrainedConfig
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

PREFIX = "Uneven"
MODEL_TYPE = "moeprune_uneven_"


def __getattr__(name: str) -> Any:
    """The class `UnevenX`, made of transformers' X when it is first asked for."""
    stock = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if not isinstance(stock, type):
        raise AttributeError(f"module {__name__} has no class {name}: this version of transformers may not know it")
    made = globals()[name] = _config_class(stock) if issubclass(stock, PreTrainedConfig) else _model_class(stock)
    return made


def _named(stock: Any) -> Any:
    """Our class of a class of transformers."""
    name = PREFIX + stock.__name__
    return globals().get(name) or __getattr__(name)


def _config_class(stock: Any) -> Any:
    """A config class of transformers, but written with a model type that none of its own models has.

    In memory it keeps its type: by that transformers chooses the tokenizer and much else.
    """

    def get_config_dict(cls: Any, *args: Any, **kwargs: Any) -> Any:
        content, rest = super(made, cls).get_config_dict(*args, **kwargs)
        return content | {"model_type": stock.model_type}, rest

    def to_dict(self: Any) -> dict[str, Any]:
        return stock.to_dict(self) | {"model_type": MODEL_TYPE + stock.model_type}

    members = {"__module__": __name__, "get_config_dict": classmethod(get_config_dict), "to_dict": to_dict}
    made: Any = type(PREFIX + stock.__name__, (stock,), members)
    return made


def _model_class(stock: Any) -> Any:
    """A model class of transformers, but the layers named in its config are each of a model with that layer's count."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)
        counts = config.moeprune["experts"]
        for count in sorted(set(counts.values())):
            other = stock(_with_count(config, count), *args, **kwargs)
            for path in (path for path, own in counts.items() if own == count):
                layers, _, number = path.rpartition(".")
                self.get_submodule(layers)[int(number)] = other.get_submodule(path)

    members = {
        "__module__": __name__,
        "__init__": __init__,
        "config_class": _named(stock.config_class),
        # transformers looks for a decorator in the source text of a class' module: it is in that of its own class.
        "_can_set_experts_implementation": classmethod(lambda cls: stock._can_set_experts_implementation()),
    }
    made = type(PREFIX + stock.__name__, (stock,), members)
    # For a class that is not transformers' own only registered names of tensors in files are translated: without them
    # some families would find no weights for what lies outside the inner model, and draw random ones.
    for known, own in ((stock.__name__, made.__name__), (stock.config_class.model_type,) * 2):
        if mapping := get_checkpoint_conversion_mapping(known):
            register_checkpoint_conversion_mapping(own, mapping, overwrite=True)
    return made


def _with_count(config: Any, count: int) -> Any:
    """A copy of the config with that number of experts in all layers."""
    changed = copy.deepcopy(config)
    for key in config.moeprune["count_keys"]:
        owner, _, last = key.rpartition(".")
        setattr(operator.attrgetter(owner)(changed) if owner else changed, last, count)
    return changed
