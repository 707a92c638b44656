"""The library's own model of a config, on tensors that hold no numbers: what there is to ask of it costs no memory."""

import re
from typing import Any

import torch
from torch import Tensor

from moeprune.errors import BadInput, one_line


def model_class(config: Any) -> Any:
    """The auto class that makes the model of a config: that of causal language models, or of composite ones.

    A composite checkpoint holds other towers beside the text's; where a family has both classes, the config's
    `architectures` tells which of them the files are of.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM
    from transformers.models.auto import modeling_auto

    composite: Any = modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.get(config.model_type)
    causal: Any = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if composite is None or (causal and causal in (config.architectures or [causal])):
        return AutoModelForCausalLM
    return AutoModelForMultimodalLM


def meta_model(config: Any, trust_remote_code: bool = False) -> Any:
    """The config's model with all tensors on the meta device: no memory for weights.

    Raises BadInput if there is none by this config, or code that comes with the checkpoint does not run.
    """
    try:
        with torch.device("meta"):
            return model_class(config).from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # what a class makes of numbers that do not fit, it may raise as whatever it likes
        reason = f"{type(error).__name__}: {one_line(error)}"
        if trust_remote_code and getattr(config, "auto_map", None):
            raise BadInput(
                f"download.source: the code that comes with model type '{config.model_type}' does not run with this "
                f"version of transformers: {reason}: give it code that does"
            ) from error
        raise BadInput(
            f"download.source: transformers cannot make a model of the config of this '{config.model_type}' "
            f"({reason}): mend config.json"
        ) from error


def fixed_dtype(model: Any, dtype: torch.dtype, name: str) -> torch.dtype | None:
    """The dtype a parameter has if the model is loaded in `dtype`, where its family demands one for it, else None."""
    plan = model._get_dtype_plan(dtype)
    return next((fixed for pattern, fixed in plan.items() if re.search(pattern.replace("*", ".*"), name)), None)


def meta_tensors(model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every tensor by its name, in memory and as `save_pretrained` would write it."""
    from transformers.core_model_loading import revert_weight_conversion

    memory = model.state_dict()
    return memory, revert_weight_conversion(model, dict(memory))
