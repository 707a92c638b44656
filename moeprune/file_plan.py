"""The plan of a checkpoint: what the library would write, reconciled with what its files hold.

Files may hold experts one by one or stacked, under other names than the library writes, quantised with scales beside
the weights, and prediction heads that the library does not load. What has to do with experts and is not understood is
refused: copied, it would speak of experts that are no longer there.
"""

import re
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

from moeprune import loader
from moeprune.checkpoint import Checkpoint, TensorInfo
from moeprune.configs import head_layers, quantisation, read_config
from moeprune.errors import BadInput
from moeprune.file_names import names_in_memory, turned_names, with_counts, with_names
from moeprune.meta import meta_model
from moeprune.schema import LAYER, ONE_EXPERT, Axis, Plan, layer_of, read_plan, without_number

INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")
"""Quantised weights packed into these have other shapes than the model's."""

NAMED_EXPERT = re.compile(r"(?<![a-z_])experts\W{1,2}\d")


def read_file_plan(checkpoint: Checkpoint, trust_remote_code: bool = False) -> Plan:
    """The plan of a checkpoint's files; only its config and headers are read.

    Raises BadInput, naming the tensor, if one is not of the shape its config gives it, if experts are missing or too
    many, or if one has to do with experts and nothing explains it; and if the quantisation config names experts by
    number.
    """
    _check_quantisation(quantisation(checkpoint.config))
    config = read_config(checkpoint.folder, trust_remote_code)
    plan = with_counts(read_plan(config, trust_remote_code), loader.counts(checkpoint.config) or {})
    plan = _with_turned(plan, checkpoint, config, trust_remote_code)
    found, unknown = _explained(plan, checkpoint)
    if unknown and (names := names_in_memory(unknown, meta_model(config, trust_remote_code))):
        plan = _with_turned(with_names(plan, names, checkpoint), checkpoint, config, trust_remote_code)
        found, unknown = _explained(plan, checkpoint)
    dropped = _heads(found, unknown, head_layers(checkpoint.config))
    for name in sorted(unknown.keys() - dropped):
        _refuse_of_experts(found, name, unknown[name])
    _refuse_missing_experts(found, checkpoint)
    return replace(found, dropped=dropped)


def _with_turned(plan: Plan, checkpoint: Checkpoint, config: Any, trust_remote_code: bool) -> Plan:
    """The plan with the tensors of the files that lie with two dimensions exchanged."""
    files = checkpoint.tensors.items()
    other = {name: info.shape for name, info in files if plan.shapes.get(name, info.shape) != info.shape}
    if not other:
        return plan
    return replace(plan, turned=turned_names(other, plan, meta_model(config, trust_remote_code)))


def _explained(plan: Plan, checkpoint: Checkpoint) -> tuple[Plan, dict[str, TensorInfo]]:
    """The plan with the tensors that lie beside weights of experts, and the tensors that have no place in it."""
    modules = {pattern.rpartition(".")[0]: pattern for pattern in sorted(plan.single)}  # of two, .weight comes last
    axes, parts, unknown = dict(plan.axes), dict[str, str](), dict[str, TensorInfo]()
    for name, info in checkpoint.tensors.items():
        if name in plan.shapes:
            _check_shape(plan, name, info)
        elif weight := _of_one_expert(name, modules):
            _check_number(plan, name, weight, info)
            parts[without_number(name)] = weight
        elif weight := _beside(name, plan.axes):
            parts[name] = weight
            if axis := _axis_beside(plan, name, weight, info):
                axes[name] = axis
        elif weight := _beside_other(plan, name):
            parts[name] = weight
        else:
            unknown[name] = info
    single = plan.single | {name for name in parts if "#" in name}
    return replace(plan, axes=axes, single=single, parts=parts), unknown


def _of_one_expert(name: str, modules: Mapping[str, str]) -> str | None:
    """The weight, with '#' for its expert, of the module in which a tensor lies."""
    path = without_number(name)
    while "#" in path:
        path = path.rpartition(".")[0]
        if path in modules:
            return modules[path]
    return None


def _beside(name: str, known: Container[str]) -> str | None:
    """The known tensor whose name this one's continues: x_scale is beside x, x.weight_scale beside x.weight."""
    ends = (mark.start() for mark in re.finditer(r"[._]", name))
    return next((name[:end] for end in ends if name[:end] in known), None)


def _beside_other(plan: Plan, name: str) -> str | None:
    """The tensor beside which, or in whose module, one lies, if that has nothing to do with experts."""
    weights = (_beside(name, plan.shapes), f"{name.rpartition('.')[0]}.weight")
    return next((weight for weight in weights if weight in plan.shapes and weight not in plan.axes), None)


def _check_shape(plan: Plan, name: str, info: TensorInfo) -> None:
    expected, axis = plan.shapes[name], plan.axes.get(name)
    if info.shape == expected or name in plan.turned:
        return
    if info.dtype in INTEGERS and (axis is None or info.shape[axis.dimension :][:1] == expected[axis.dimension :][:1]):
        return
    raise BadInput(
        f"download.source: {info.file} holds {name} of shape {list(info.shape)}, by its config it has "
        f"{list(expected)}: mend config.json, or download the checkpoint again"
    )


def _check_number(plan: Plan, name: str, weight: str, info: TensorInfo) -> None:
    found = ONE_EXPERT.search(name)
    assert found is not None
    if weight.replace("#", found[1]) not in plan.shapes:
        raise BadInput(
            f"download.source: {info.file} holds {name}, but by its config it has {plan.experts} experts a layer: "
            "mend config.json, or download the checkpoint again"
        )


def _axis_beside(plan: Plan, name: str, weight: str, info: TensorInfo) -> Axis | None:
    """Where experts lie in what is beside a tensor that has an axis of them; None if it is the same for all."""
    axis = plan.axes[weight]
    size = plan.shapes[weight][axis.dimension]
    along = info.shape[axis.dimension] if len(info.shape) > axis.dimension else 1
    if along == size:
        return axis
    if along == 1 and size not in info.shape:
        return None
    raise BadInput(
        f"download.source: {info.file} holds {name} of shape {list(info.shape)} beside {weight}, which has {size} rows "
        f"of experts in dimension {axis.dimension}: which rows of it belong to which expert is not known"
    )


def _heads(plan: Plan, unknown: Mapping[str, TensorInfo], layers: Container[int]) -> frozenset[str]:
    """The tensors of prediction heads that have experts.

    Heads are what the library leaves out when it loads, and the layers that the config counts as such. Their experts
    were never observed, and other engines read one number of experts for a model and its heads.
    """
    tails = {_tail(name) for name in plan.axes}
    dropped: set[str] = set()
    heads = [{name for name in unknown if re.search(pattern, name)} for pattern in plan.ignored]
    heads.append({name for name in unknown if layer_of(name) in layers})
    for head in heads:
        if any(
            ONE_EXPERT.search(name) or _tail(name) in tails or _is_stack(plan, name, unknown[name]) for name in head
        ):
            dropped |= head
    return frozenset(dropped)


def _is_stack(plan: Plan, name: str, info: TensorInfo) -> bool:
    return ".experts." in name and plan.experts in info.shape


def _tail(name: str) -> str:
    """A tensor's name within its layer."""
    found = LAYER.search(name)
    return name[found.end() :] if found else name


def _refuse_of_experts(plan: Plan, name: str, info: TensorInfo) -> None:
    """BadInput if a tensor that has no place in the plan has to do with experts."""
    if ONE_EXPERT.search(name):
        problem = "belongs to one expert"
    elif name.startswith(tuple(plan.blocks)) and _has_rows(plan, name, info):
        problem = f"of shape {list(info.shape)} may have rows of experts"
    else:
        return
    raise BadInput(
        f"download.source: {info.file} holds {name}, which {problem}, but transformers does not say how: this "
        "checkpoint cannot be pruned"
    )


def _has_rows(plan: Plan, name: str, info: TensorInfo) -> bool:
    """Whether a dimension is as long as one along which experts lie in that layer."""
    axes = [axis for other, axis in plan.axes.items() if layer_of(other) == layer_of(name)]
    return not {plan.experts, *(axis.rows * plan.experts + axis.rest for axis in axes)}.isdisjoint(info.shape)


def _refuse_missing_experts(plan: Plan, checkpoint: Checkpoint) -> None:
    """BadInput if a layer has no weights of experts in the files, or not those of all experts."""
    found: dict[int | None, dict[str, set[int]]] = {}
    for name in checkpoint.tensors:
        if weight := plan.weight_of(name):
            experts = found.setdefault(layer_of(name), {}).setdefault(without_number(weight), set())
            experts |= set(range(plan.experts)) if (one := plan.expert_of(name)) is None else {one}
    for layer in plan.layers:
        all_of_them = set(range(plan.counts.get(layer, plan.experts)))
        for weight, experts in found.get(layer, {"the weights of experts": set[int]()}).items():
            if missing := sorted(all_of_them - experts):
                raise BadInput(
                    f"download.source: {checkpoint.folder} lacks {weight.replace('#', str(missing[0]))} in layer "
                    f"{layer}, and so those of {len(missing)} of {len(all_of_them)} experts: download it again"
                )


def _check_quantisation(config: object) -> None:
    """BadInput if a quantisation config names an expert by its number, which pruning would change."""
    if isinstance(config, str) and NAMED_EXPERT.search(config):
        raise BadInput(
            f"config.json: quantization_config names {config}, an expert by its number, which pruning changes: "
            "quantise all experts of a layer alike"
        )
    inner = [*config, *config.values()] if isinstance(config, dict) else config if isinstance(config, list) else ()
    for value in inner:
        _check_quantisation(value)
