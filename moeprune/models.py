"""Loading a checkpoint's model."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from moeprune import loader
from moeprune.checkpoint import open_checkpoint
from moeprune.configs import read_config
from moeprune.dequantised import dequantising
from moeprune.errors import BadInput
from moeprune.meta import fixed_dtype, model_class


def load_model(
    folder: Path, dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model in evaluation mode, in `dtype` ("auto": as stored); quantised weights are unpacked.

    Through `from_pretrained(dtype=...)`, which keeps in float32 what a family demands. Raises BadInput if quantised
    weights cannot be loaded on this machine, or if a weight is missing, left over or of the wrong shape: transformers
    itself would only warn and draw random ones.
    """
    logging.disable_progress_bar()  # a stage has one of its own
    uneven = loader.is_uneven(folder)
    config = read_config(folder, trust_remote_code)
    kind = loader.model_class(folder) if uneven else model_class(config)
    with dequantising(config, open_checkpoint(folder)) as options:
        loaded: Any = kind.from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told below, by name
            # Of transformers' implementations the plain loop is fastest for long batches on a CPU; elsewhere its own
            # choice is the grouped kernel, where a family has it.
            experts_implementation="eager" if device == "cpu" else None,
            # Straight to an accelerator: on the way the machine's own memory need not hold the whole model.
            device_map=None if device == "cpu" else device,
            **options,
        )
    model, info = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise BadInput(
                f"{folder}: {len(info[kind])} {kind.replace('_', ' ')} on loading, such as "
                f"{sorted(map(str, info[kind]))[0]}: the checkpoint does not fit its config"
            )
    if options:
        _bring_to_dtype(model)
    return model.to(device).eval()


def _bring_to_dtype(model: PreTrainedModel) -> None:
    """Unpacked weights, and those beside them, come in the precision of their file or format: not in that asked for."""
    dtype: Any = model.config.dtype
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(fixed_dtype(model, dtype, name) or dtype)


def pick_device(device: str) -> str:
    """ "auto" is the first accelerator there is, else the CPU."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


@lru_cache(maxsize=1)
def cached_model(folder: Path, dtype: str, device: str, trust_remote_code: bool) -> PreTrainedModel:
    """`load_model`, remembering the last one: several corpora are observed with one load."""
    return load_model(folder, dtype, device, trust_remote_code)
