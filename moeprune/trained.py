"""Trained weights in the layout of the checkpoint they came from."""

from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from moeprune.checkpoint import Checkpoint
from moeprune.errors import BadInput
from moeprune.writing import Contents


@torch.no_grad()
def trained_contents(model: PreTrainedModel, source: Checkpoint) -> Contents:
    """Every tensor of `source`, from which `model` was loaded, with the values its parameters have now.

    Names, shapes and precisions are the source's. What is not a parameter (a correction bias, layers that transformers
    does not load) is copied byte for byte. Raises BadInput if a parameter has no place in the source.
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters(remove_duplicate=False)}
    trained = revert_weight_conversion(model, parameters)
    stored = {tensor.data_ptr() for name, tensor in trained.items() if name in source.tensors}
    # Of tied weights a file may hold one.
    lost = [name for name, tensor in trained.items() if name not in source.tensors and tensor.data_ptr() not in stored]
    if lost:
        raise BadInput(
            f"{source.folder}: it has no {lost[0]}, which transformers would write: "
            "save the model again with save_pretrained and begin with that"
        )

    def value(name: str) -> Tensor:
        tensor, before = trained[name], source.read(name)
        # Where the library loads a stack either way, it saves it the way it is in memory.
        return (tensor if tensor.shape == before.shape else tensor.mT).to(before.dtype).cpu()

    return {
        name: (info, partial(value if name in trained else source.read, name)) for name, info in source.tensors.items()
    }
