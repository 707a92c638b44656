"""Per-expert sums of any MoE model in one ordinary forward pass, with no code per architecture.

In place of its experts a layer calls the library's own with every (token, slot) as a row of its own, one expert and
weight 1: each row of the result is exactly f_e(x_t), whatever the layout of the weights. The layer's output is put
together again from these rows, so the model computes what it always computes, with the same number of operations.

Rows are sorted by expert first, so that the rows of an expert are one segment and their sums are deterministic on
every device.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from moeprune.errors import BadInput
from moeprune.interface import Experts, Logits, experts_of, in_place, routers_of
from moeprune.rows import Rows
from moeprune.schema import layer_of
from moeprune.statistics import DEPLOYED, RATIO_BINS, merge


class Observer:
    """`with Observer(model, groups, gate_modes) as observer:` the model's forward passes are observed.

    Before each forward pass set `observer.valid` to its attention mask (None: every position counts); after some,
    `take` returns the sums and starts again from nothing. Hooks are gone when the block ends, however it ends.

    Raises BadInput if the family has no experts interface, or no router logits where a gate mode needs them.
    """

    def __init__(self, model: nn.Module, groups: tuple[str, ...], gate_modes: tuple[str, ...]) -> None:
        self.model = model
        found = experts_of(model)
        if "inputs" in groups and not all(experts.shows_inner for experts in found.values()):
            raise BadInput(
                f"observe.sums: {type(model).__name__} does not show the inputs of its experts' down projections: "
                "leave 'inputs' out, and choose no criterion that zeroes weights by them"
            )
        self.layers = {layer: LayerObserver(experts, groups, gate_modes) for layer, experts in found.items()}
        self.routers = routers_of(model, found)
        if set(gate_modes) - {DEPLOYED} and (unseen := sorted(self.layers.keys() - self.routers.keys())):
            raise BadInput(
                f"observe.gate_modes: {type(model).__name__} does not show its router logits in layers {unseen}: "
                f"only '{DEPLOYED}' can be observed"
            )
        self._undo = ExitStack()

    def __enter__(self) -> "Observer":
        with ExitStack() as undo:
            undo.enter_context(in_place({observer.experts: observer.run for observer in self.layers.values()}))
            for layer, observer in self.layers.items():
                if layer in self.routers:
                    router, logits = self.routers[layer]
                    undo.callback(router.register_forward_hook(observer.keep_logits(logits)).remove)
                decoder = _decoder_layer(self.model, observer.experts.module)
                for norm in _perhaps_norms(decoder):
                    undo.callback(norm.register_forward_hook(observer.keep_residual).remove)
                undo.callback(decoder.register_forward_hook(observer.forget_residuals).remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    @property
    def valid(self) -> Tensor | None:
        """The attention mask of the coming forward pass [B, T], or None."""
        return next(iter(self.layers.values())).valid

    @valid.setter
    def valid(self, mask: Tensor | None) -> None:
        valid = None if mask is None else mask.reshape(-1).bool()
        for observer in self.layers.values():
            observer.valid = valid

    def take(self) -> dict[str, Tensor]:
        """The sums since the last call, by the names of `Statistics`, with a leading axis of layers, on the CPU.

        Raises RuntimeError if a layer saw no token: an observer that counts nothing would be believed otherwise.
        """
        if silent := [layer for layer, observer in self.layers.items() if not observer.sums]:
            raise RuntimeError(f"layers {silent} were not observed: the model does not call its experts' interface")
        names = set.intersection(*(set(observer.sums) for observer in self.layers.values()))
        taken = {
            name: _stacked([observer.sums[name] for observer in self.layers.values()]).cpu() for name in sorted(names)
        }
        for observer in self.layers.values():
            observer.sums = {}
        return taken


def _stacked(sums: list[Tensor]) -> Tensor:
    """Sums of layers with a leading axis; where a layer holds fewer experts than another, zeros fill it up."""
    stacked = sums[0].new_zeros(len(sums), *map(max, zip(*(part.shape for part in sums), strict=True)))
    for layer, part in zip(stacked, sums, strict=True):
        layer[tuple(slice(size) for size in part.shape)] = part
    return stacked


class LayerObserver:
    """The sums of one layer. Sums are kept on the device of the model, in float64."""

    def __init__(self, experts: Experts, groups: tuple[str, ...], gate_modes: tuple[str, ...]) -> None:
        self.experts = experts
        self.groups, self.gate_modes = groups, gate_modes
        self.sums: dict[str, Tensor] = {}
        self.valid: Bool[Tensor, "T"] | None = None
        self.logits: Float[Tensor, "T V"] | None = None
        self.residuals: dict[int, tuple[Tensor, Tensor]] = {}
        self.probabilities: bool | None = None
        self.rule: str | None = None

    def keep_logits(self, logits: Logits) -> Callable[..., None]:
        """A hook that keeps a router's logits, those of further classes too, until the experts of the layer run."""

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found = logits(module, inputs, output).detach().float()
            self.logits = found.reshape(-1, found.shape[-1])
            if self.probabilities is None:  # what a router returns is told by the first batch
                self.probabilities = _are_probabilities(self.logits)
            if self.probabilities:  # gemma4; its deployed gates are scaled once more for each expert
                self.logits, self.rule = self.logits.log(), "softmax"

        return hook

    def keep_residual(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """A hook that keeps what a norm was given, by the address of what it returned."""
        if isinstance(output, Tensor) and inputs and isinstance(inputs[0], Tensor) and inputs[0].shape == output.shape:
            # The output is kept too: were it freed, its address would soon be that of another tensor.
            self.residuals[output.data_ptr()] = inputs[0], output

    def forget_residuals(self, *_: object) -> None:
        """A hook that lets go of what the norms of a decoder layer were given, once it is done."""
        self.residuals = {}

    def run(self, hidden: Float[Tensor, "T D"], expert: Int[Tensor, "T K"], gate: Float[Tensor, "T K"]) -> Tensor:
        """The experts function of an observed layer."""
        slots = expert.shape[-1]
        sorted_expert, order = expert.reshape(-1).sort(stable=True)
        token, sorted_gate = order // slots, gate.reshape(-1)[order]
        inner = None
        if "inputs" in self.groups:
            output, inner = self.experts.outputs_and_inner(hidden[token], sorted_expert, sorted_gate)
        else:
            output = self.experts.outputs(hidden[token], sorted_expert, sorted_gate)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        weighted = (output * sorted_gate[:, None])[back].reshape(len(hidden), slots, -1).sum(1).to(hidden.dtype)
        rows = Rows(self.experts.count, sorted_expert, token, sorted_gate, output, len(hidden), self.valid)
        self.record(rows, hidden, weighted, inner)
        return weighted

    def record(
        self,
        rows: Rows,
        hidden: Float[Tensor, "T D"],
        total: Float[Tensor, "T D"],
        inner: Float[Tensor, "N I"] | None = None,
    ) -> None:
        """Add the rows of one forward pass of the layer from `hidden` to `total`.

        `inner` are the inputs of their down projections, where they are asked for.
        """
        contribution = rows.gate * rows.norm * rows.counted
        new = {"moments": rows.moments(rows.gate), **self._router_sums(rows)}
        if (kept := self.residuals.get(hidden.data_ptr())) is not None:
            turn = _turn(kept[0].reshape(hidden.shape).double(), total.double())
            new["easy_ep"] = rows.per_expert(contribution * turn.clamp_min(0)[rows.token])
        new["max_activation"] = rows.largest(rows.output.amax(-1))
        new["max_abs_activation"] = rows.largest(torch.linalg.vector_norm(rows.output, ord=torch.inf, dim=-1))
        if "vectors" in self.groups:
            new["output_sum"] = rows.weighted(rows.output, rows.counted)
        if "pairs" in self.groups:
            for name, values in (("pair_count", rows.counted), ("pair_contribution", contribution)):
                table = rows.by_token(values)
                new[name] = table.T @ table
        if "ratios" in self.groups:
            new["gate_ratio"] = rows.gate_ratios(RATIO_BINS)
        if inner is not None:
            for name, values in (("up", hidden[rows.token]), ("down", inner)):
                energy = values.double().square()
                new[f"input_energy.{name}"] = rows.weighted(energy, rows.gate.square() * rows.counted)
                new[f"input_energy.{name}.ungated"] = rows.weighted(energy, rows.counted)
        for name, value in new.items():
            self.sums[name] = merge(name)(self.sums[name], value) if name in self.sums else value
        self.logits = None

    def _router_sums(self, rows: Rows) -> dict[str, Tensor]:
        """Sums that need the router's logits: probabilities of all experts, and moments of other gates.

        Of the rules in use (softmax, sigmoid, and deepseek_v4's square root of softplus) a layer's is the one its gates
        are nearest to. phimoe's sparsemixer is none of them: its probabilities are those of the nearest.
        """
        if self.logits is None:
            return {}
        # A softmax is over all classes; beyond the routed experts there may be shared or identity ones, or a skip.
        softmax = self.logits.softmax(-1)[:, : self.experts.count]
        logits = self.logits[:, : self.experts.count]
        by_rule = {
            "softmax": softmax,
            "sigmoid": logits.sigmoid(),
            "sqrtsoftplus": nn.functional.softplus(logits).sqrt(),
        }
        self.rule = self.rule or min(by_rule, key=lambda rule: rows.distance(by_rule[rule]))
        probability = by_rule[self.rule]
        if self.valid is not None:
            probability = probability * self.valid.to(probability.device)[:, None]
        sums = {"probability": probability.sum(0, dtype=torch.float64)}
        if set(self.gate_modes) - {DEPLOYED}:
            full = rows.chosen(softmax)
            gates = {"softmax_full": full, "softmax_topk": full / rows.by_token(full).sum(1)[rows.token]}
            sums |= {f"moments.{mode}": rows.moments(gates[mode]) for mode in self.gate_modes if mode != DEPLOYED}
        return sums


def _are_probabilities(found: Float[Tensor, "T V"]) -> bool:
    return bool((found >= 0).all()) and torch.allclose(found.sum(-1), torch.ones_like(found[:, 0]), atol=1e-3)


def _turn(residual: Float64[Tensor, "T D"], added: Float64[Tensor, "T D"]) -> Float64[Tensor, "T"]:
    """1 - cos(x, x + y): how far the routed experts turn the residual stream, often too little for float32."""
    after = residual + added
    lengths = torch.linalg.vector_norm(residual, dim=-1) * torch.linalg.vector_norm(after, dim=-1)
    return 1 - torch.linalg.vecdot(residual, after) / lengths.clamp_min(1e-20)


def _decoder_layer(model: nn.Module, experts: nn.Module) -> nn.Module:
    """The decoder layer that holds `experts`."""
    name = next(name for name, module in model.named_modules() if module is experts)
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return model.get_submodule(next(prefix for prefix in prefixes if layer_of(prefix) is not None))


def _perhaps_norms(decoder: nn.Module) -> list[nn.Module]:
    """Modules of a decoder layer that may be norms: its own, and all with a one-dimensional weight."""
    own = set(decoder.children())
    return [
        module
        for module in decoder.modules()
        if module in own or (isinstance(weight := getattr(module, "weight", None), Tensor) and weight.dim() == 1)
    ]
