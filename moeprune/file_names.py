"""Plans for the names and counts of one checkpoint's files, where these are not those the library would write."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from moeprune.checkpoint import Checkpoint
from moeprune.schema import ONE_EXPERT, Plan, Shape, blocks_of, layer_of, without_number


def names_in_memory(names: Iterable[str], model: Any) -> dict[str, str]:
    """The names in memory that the library gives to tensors of a file on loading; those it gives none are left out."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state = model.state_dict()
    found = {name: rename_source_key(name, renamings, converters, model.base_model_prefix, state)[0] for name in names}
    return {name: to for name, to in found.items() if to in state}


def turned_names(shapes: Mapping[str, Shape], plan: Plan, model: Any) -> frozenset[str]:
    """Of tensors of a file that are not of the library's shape, those that it turns to that on loading."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import Transpose, WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    turns = {
        pattern: operation
        for entry in converters
        for operation in entry.operations
        if isinstance(operation, Transpose) and operation.check_dims
        for pattern in entry.source_patterns
    }
    found = set()
    for name, shape in shapes.items():
        turn = turns.get(rename_source_key(name, renamings, converters)[1] or "")
        if turn and torch.empty(shape, device="meta").transpose(turn.dim0, turn.dim1).shape == plan.shapes[name]:
            found.add(name)
    return frozenset(found)


def with_names(plan: Plan, names: Mapping[str, str], checkpoint: Checkpoint) -> Plan:
    """The plan with further names, given with their names in memory, for tensors it knows."""
    numbers = {name: int(found[1]) for name in names if (found := ONE_EXPERT.search(name))}
    single = {
        name for name, n in numbers.items() if (axis := plan.axes.get(names[name])) and n < plan.experts + axis.rest
    }
    whole = {name: to for name, to in names.items() if name not in numbers}
    shapes = {name: plan.shapes[to] for name, to in whole.items()}
    return replace(
        plan,
        axes={**plan.axes, **{name: plan.axes[to] for name, to in whole.items() if to in plan.axes}},
        single=plan.single | {without_number(name) for name in single},
        tables=plan.tables | {name for name, to in whole.items() if to in plan.tables},
        # What the library stacks on loading has no shape of its own there: the file's is taken as it is.
        shapes={**plan.shapes, **shapes, **{name: checkpoint.tensors[name].shape for name in single}},
        blocks=plan.blocks | blocks_of(name for name, to in names.items() if to in plan.axes),
    )


def with_counts(plan: Plan, experts: Mapping[str, int]) -> Plan:
    """The plan of a checkpoint whose layers, given by their paths, hold different numbers of experts."""
    counts = {layer: count for path, count in experts.items() if (layer := layer_of(path)) is not None}
    shapes = {}
    for name, shape in plan.shapes.items():
        count, axis = counts.get(layer_of(name) or 0, plan.experts), plan.axes.get(name)
        if axis is not None:
            shapes[name] = axis.resized(shape, count)
        elif (expert := plan.expert_of(name)) is None or not count <= expert < plan.experts:
            shapes[name] = shape
    return replace(plan, shapes=shapes, counts=counts)
