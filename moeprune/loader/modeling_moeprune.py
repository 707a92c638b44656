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

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

PREFIX = "Uneven"
MODEL_TYPE = "moeprune_uneven_"


def __getattr__(name):
    """The class `UnevenX`, made of transformers' X when it is first asked for."""
    stock = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if not isinstance(stock, type):
        raise AttributeError(f"module {__name__} has no class {name}: this version of transformers may not know it")
    made = _config_class(name, stock) if issubclass(stock, PreTrainedConfig) else _model_class(name, stock)
    globals()[name] = made
    return made


def _config_class(name, stock):
    """transformers' config class with another name of its model type in files, so that none of its models loads it."""

    def get_config_dict(cls, *args, **kwargs):
        content, rest = super(made, cls).get_config_dict(*args, **kwargs)
        return content | {"model_type": stock.model_type}, rest

    def to_dict(self):
        return stock.to_dict(self) | {"model_type": MODEL_TYPE + stock.model_type}

    made = type(
        name, (stock,), {"__module__": __name__, "get_config_dict": classmethod(get_config_dict), "to_dict": to_dict}
    )
    return made


def _model_class(name, stock):
    """transformers' model class with layers of different numbers of experts."""

    def __init__(self, config, *args, **kwargs):
        stock.__init__(self, config, *args, **kwargs)
        for count in sorted(set(config.moeprune["experts"].values())):
            other = stock(_with_count(config, count), *args, **kwargs)
            for path, own in config.moeprune["experts"].items():
                if own == count:
                    layers, _, number = path.rpartition(".")
                    self.get_submodule(layers)[int(number)] = other.get_submodule(path)

    config_class = globals().get(PREFIX + stock.config_class.__name__) or __getattr__(
        PREFIX + stock.config_class.__name__
    )
    made = type(stock)(
        name,
        (stock,),
        {
            "__module__": __name__,
            "__init__": __init__,
            "config_class": config_class,
            # transformers looks for a decorator in the source text of a class' module: it is in that of the stock one.
            "_can_set_experts_implementation": classmethod(lambda cls: stock._can_set_experts_implementation()),
        },
    )
    # A class that is not transformers' own is given no names of tensors in files but those registered: without them
    # nothing in the files would match, and the experts would stay random.
    for known, own in ((stock.__name__, name), (stock.config_class.model_type, stock.config_class.model_type)):
        if mapping := get_checkpoint_conversion_mapping(known):
            register_checkpoint_conversion_mapping(own, mapping, overwrite=True)
    return made


def _with_count(config, count):
    """A copy of the config with that number of experts in all layers."""
    changed = copy.deepcopy(config)
    for key in config.moeprune["count_keys"]:
        *owners, last = key.split(".")
        setattr(operator.attrgetter(".".join(owners))(changed) if owners else changed, last, count)
    return changed
