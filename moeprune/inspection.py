"""What a model is, what pruning would leave of it and which methods it allows: from its config and its files' headers.

No weight is read. If there is only a config, everything is of the files that `save_pretrained` would write: the library
builds the model with its tensors on the meta device.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from moeprune.checkpoint import DTYPES, Checkpoint, TensorInfo
from moeprune.configs import quantisation, read_routing
from moeprune.errors import BadInput
from moeprune.file_plan import read_file_plan
from moeprune.masks import number_kept
from moeprune.meta import fixed_dtype, meta_model
from moeprune.methods import Method, observing_refused, possible_methods
from moeprune.routing import Routing
from moeprune.schema import LAYER, Plan, read_plan
from moeprune.sizes import parameters, pruned_bytes

RATIOS = (0.25, 0.5, 0.75)

_SHARED = re.compile(r"shared?_(experts?|mlp)\.")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Size:
    """Parameters in total and active for a token, and bytes of all tensors."""

    parameters: int
    active: int
    bytes: int


@dataclass(frozen=True)
class Pruned:
    """What is left if every layer loses the fraction `ratio` of its experts.

    If that cannot be done, `refusal` says why, and `keep` is the nearest number of experts that a layer can keep; None
    if there is none. `size` is that with `keep` experts.
    """

    ratio: float
    keep: int | None
    size: Size | None
    refusal: str = ""


@dataclass(frozen=True)
class Inspection:
    """What there is to know of a model before anything is run.

    `layers` counts decoder layers, `expert_layers` are the numbers of those with routed experts; `counts` are the
    experts of each, if they have different numbers. `shared_experts` is what the config counts, else 1 if there are
    any. `in_experts` are the parameters of all routed experts. `dtype` is the one the config names; `dtypes` are bytes
    by safetensors dtype; `computed` says that they were computed from the config, there being no files. `quantised` is
    the config's own description, or None. `heads` are the bytes of prediction heads with experts, which pruning leaves
    out. `unobservable` says why it cannot be observed, or is "".
    """

    model_type: str
    architecture: str
    layers: int
    expert_layers: tuple[int, ...]
    routing: Routing
    counts: Mapping[int, int]
    shared_experts: int
    size: Size
    in_experts: int
    dtype: str | None
    dtypes: Mapping[str, int]
    computed: bool
    quantised: Mapping[str, Any] | None
    heads: int
    unobservable: str
    pruned: tuple[Pruned, ...]
    methods: tuple[Method, ...]


def inspect(
    config: Any, folder: Path, tensors: Mapping[str, TensorInfo] | None, trust_remote_code: bool = False
) -> Inspection:
    """Inspect a model by its transformers config and its files' tensors, or None if there is only a config.

    `folder` holds config.json. Raises BadInput for a model without routed experts, or whose experts cannot be told.
    """
    routing = read_routing(config)
    plan = read_plan(config, trust_remote_code)
    model = meta_model(config, trust_remote_code)
    library = Checkpoint(folder, written(model))
    files = library if tensors is None else Checkpoint(folder, tensors)
    counted, refusal = library, ""
    if tensors is not None:
        try:
            plan, counted = read_file_plan(files, trust_remote_code), files
        except BadInput as error:
            refusal = str(error)
    total, active = parameters(counted, plan, routing.experts, routing.top_k)
    _, of_no_expert = parameters(counted, plan, routing.experts, 0)
    unobservable = observing_refused(model)
    return Inspection(
        model_type=config.model_type,
        architecture=type(model).__name__,
        layers=_decoder_layers(plan, library),
        expert_layers=tuple(plan.layers),
        routing=routing,
        counts=plan.counts,
        shared_experts=_shared_experts(config, library),
        size=Size(total, active, files.weight_bytes),
        in_experts=total - of_no_expert,
        dtype=None if config.dtype is None else str(config.dtype).removeprefix("torch."),
        dtypes=_bytes_by_dtype(files),
        computed=tensors is None,
        quantised=quantisation(config.to_dict()),
        heads=sum(files.tensors[name].bytes for name in plan.dropped),
        unobservable=unobservable,
        pruned=tuple(_pruned(files, plan, routing, ratio, refusal) for ratio in RATIOS),
        methods=tuple(possible_methods(model, files, plan, routing, unobservable, refusal, trust_remote_code)),
    )


def written(model: Any) -> dict[str, TensorInfo]:
    """The tensors that `save_pretrained` would write of a model loaded in its dtype, by name; `file` is empty."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    memory = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    for name, tensor in memory.items():
        if tensor.is_floating_point():
            memory[name] = tensor.to(fixed_dtype(model, model.dtype, name) or tensor.dtype)
    return {name: _info(tensor) for name, tensor in revert_weight_conversion(model, memory).items()}


def _info(tensor: Tensor) -> TensorInfo:
    return TensorInfo("", _NAMES[tensor.dtype], tuple(tensor.shape), tensor.nbytes)


def _bytes_by_dtype(files: Checkpoint) -> dict[str, int]:
    found: dict[str, int] = {}
    for info in files.tensors.values():
        found[info.dtype] = found.get(info.dtype, 0) + info.bytes
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _decoder_layers(plan: Plan, library: Checkpoint) -> int:
    """The layers of the tower that has experts: a composite model has others."""
    towers = {name[: found.start()] for name in [*plan.axes, *plan.single] if (found := LAYER.search(name))}
    places = [(name, found) for name in library.tensors if (found := LAYER.search(name))]
    return len({found[1] for name, found in places if name[: found.start()] in towers})


def _shared_experts(config: Any, library: Checkpoint) -> int:
    if not any(_SHARED.search(name) for name in library.tensors):
        return 0
    counts = (value for key, value in config.get_text_config().to_dict().items() if key.endswith("shared_experts"))
    return next((value for value in counts if isinstance(value, int) and value > 0), 1)


def _pruned(files: Checkpoint, plan: Plan, routing: Routing, ratio: float, refusal: str) -> Pruned:
    keep = number_kept(ratio, routing.experts)
    if plan.counts:
        refusal = "its layers hold different numbers of experts already: prune the checkpoint it was made from"
    if refusal:
        return Pruned(ratio, None, None, refusal)
    try:
        routing.check(keep)
    except BadInput as error:
        refusal = str(error)
        near = [other for other in routing.nearest(keep) if other < routing.experts]
        if not near:
            return Pruned(ratio, None, None, refusal)
        keep = min(near, key=lambda other: (abs(other - keep), -other))
    total, active = parameters(files, plan, keep, routing.top_k)
    return Pruned(ratio, keep, Size(total, active, pruned_bytes(files, plan, keep)), refusal)
