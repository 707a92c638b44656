"""Quantised checkpoints as models of plain numbers: what transformers is told on loading them.

Its modules of packed weights compute by functions of their own, which cannot be observed, and whether it takes them
depends on the machine: weights are unpacked on loading wherever it knows how.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig

from moeprune.checkpoint import Checkpoint
from moeprune.errors import BadInput, one_line

LEFT_OUT = ("weight_zero_point", "weight_global_scale")
"""What transformers does not read of experts in compressed-tensors' formats: it would unpack other numbers."""


@contextmanager
def dequantising(config: Any, files: Checkpoint) -> Iterator[dict[str, Any]]:
    """Give what `from_pretrained` is to be told besides, by a checkpoint's transformers config, to load plain numbers.

    That is nothing unless the config is of quantised weights. Then, what transformers refuses or stumbles over, of the
    method on this machine or within the block, becomes a BadInput that says what to do instead; what its headers show
    to be beyond transformers is refused at once.
    """
    text = config.get_text_config(decoder=True)
    found = getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None)
    if found is None:
        yield {}
        return
    try:
        asked: Any = AutoQuantizationConfig.from_dict(found)
        if hasattr(asked, "dequantize"):  # others are left as they are
            asked.dequantize = True
        AutoHfQuantizer.from_config(asked).validate_environment(device_map=None, weights_only=True)
        _check_parts(files)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You passed `quantization_config`")  # it is the checkpoint's own
            yield {"quantization_config": asked}
    except torch.OutOfMemoryError:
        raise
    except (ImportError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(
            f"download.source: weights quantised by '{found.get('quant_method')}' cannot be loaded here "
            f"({one_line(error)}): choose a weight-only criterion and leave evaluate out, or give an unquantised "
            "checkpoint"
        ) from error


def _check_parts(files: Checkpoint) -> None:
    for name, info in files.tensors.items():
        scale = files.tensors.get(f"{name}_scale_inv")
        blocks = scale.shape[-2:] if scale else ()
        # transformers infers the size of a block from the number of blocks.
        if len(blocks) == 2 and any(size % count for size, count in zip(info.shape[-2:], blocks, strict=True)):
            raise ValueError(f"{name} of shape {list(info.shape)} is not made of whole blocks")
        if ".experts." in name and name.endswith(LEFT_OUT):
            raise ValueError(f"transformers would leave out {name}")


def check_loadable(config: Any, files: Checkpoint) -> None:
    """Raise BadInput if quantised weights cannot be loaded on this machine, as far as config and headers tell."""
    with dequantising(config, files):
        pass
