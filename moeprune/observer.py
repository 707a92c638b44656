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
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moeprune.errors import BadInput
from moeprune.interface import experts_modules, in_place, own_experts, router_modules
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
        self.layers = {
            layer: LayerObserver(module, groups, gate_modes) for layer, module in experts_modules(model).items()
        }
        self.routers = router_modules(model)
        if set(gate_modes) - {DEPLOYED} and self.layers.keys() - self.routers.keys():
            raise BadInput(
                f"observe.gate_modes: {type(model).__name__} does not expose its router logits: "
                f"only '{DEPLOYED}' can be observed"
            )
        self._undo = ExitStack()

    def __enter__(self) -> "Observer":
        with ExitStack() as undo:
            undo.enter_context(in_place({observer.module: observer.run for observer in self.layers.values()}))
            for layer, observer in self.layers.items():
                if layer in self.routers:
                    router, position = self.routers[layer]
                    undo.callback(router.register_forward_hook(observer.keep_logits(position)).remove)
                for norm in _norms_before(self.model, observer.module):
                    undo.callback(norm.register_forward_hook(observer.keep_residual).remove)
                if "inputs" in observer.groups:
                    observer.keep_inner(undo)
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
        for observer in self.layers.values():
            observer.valid = None if mask is None else mask.reshape(-1).bool()

    def take(self) -> dict[str, Tensor]:
        """The sums since the last call, by the names of `Statistics`, with a leading axis of layers, on the CPU.

        Raises RuntimeError if a layer saw no token: an observer that counts nothing would be believed otherwise.
        """
        if silent := [layer for layer, observer in self.layers.items() if not observer.sums]:
            raise RuntimeError(f"layers {silent} were not observed: the model does not call its experts' interface")
        names = set.intersection(*(set(observer.sums) for observer in self.layers.values()))
        taken = {
            name: torch.stack([observer.sums[name] for observer in self.layers.values()]).cpu()
            for name in sorted(names)
        }
        for observer in self.layers.values():
            observer.sums = {}
        return taken


class LayerObserver:
    """The sums of one layer. Sums are kept on the device of the model, in float64."""

    def __init__(self, module: Any, groups: tuple[str, ...], gate_modes: tuple[str, ...]) -> None:
        self.module = module  # a transformers module, whose attributes are not typed
        self.experts: int = module.num_experts
        self.groups, self.gate_modes = groups, gate_modes
        self.sums: dict[str, Tensor] = {}
        self.valid: Bool[Tensor, "T"] | None = None
        self.logits: Float[Tensor, "T E"] | None = None
        self.inner: Float[Tensor, "N I"] | None = None
        self.residuals: dict[int, Tensor] = {}
        self.router_is_sigmoid: bool | None = None

    def keep_logits(self, position: int) -> Callable[..., None]:
        """A hook that keeps a router's logits until the experts of the layer run."""

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            logits = output[position] if isinstance(output, tuple | list) else output
            self.logits = logits.detach().float().reshape(-1, logits.shape[-1])[:, : self.experts]

        return hook

    def keep_residual(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A hook that keeps what a norm was given, by the address of what it returned."""
        self.residuals[output.data_ptr()] = inputs[0]

    def keep_inner(self, undo: ExitStack) -> None:
        """Keep the input of the down projection each time the experts run."""
        module = self.module

        def keep(inner: Tensor) -> Tensor:
            self.inner = inner.detach()
            return inner

        if module.has_gate:
            gate = module._apply_gate
            module._apply_gate = lambda projected: keep(gate(projected))
            undo.callback(delattr, module, "_apply_gate")
        else:
            undo.callback(module.act_fn.register_forward_hook(lambda _, __, output: keep(output)).remove)

    def run(self, hidden: Float[Tensor, "T D"], expert: Int[Tensor, "T K"], gate: Float[Tensor, "T K"]) -> Tensor:
        """The experts function of an observed layer."""
        slots = expert.shape[-1]
        sorted_expert, order = expert.reshape(-1).sort(stable=True)
        token = order // slots
        one = torch.ones(len(order), 1, dtype=hidden.dtype, device=hidden.device)
        # Only the grouped implementation shows the input of the down projection.
        output = own_experts(self.module, hidden[token], sorted_expert[:, None], one, grouped="inputs" in self.groups)
        sorted_gate = gate.reshape(-1)[order]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        weighted = (output * sorted_gate[:, None])[back].reshape(len(hidden), slots, -1).sum(1).to(hidden.dtype)
        self.record(
            Rows(self.experts, sorted_expert, token, sorted_gate, output, len(hidden), self.valid), hidden, weighted
        )
        return weighted

    def record(self, rows: Rows, hidden: Float[Tensor, "T D"], total: Float[Tensor, "T D"]) -> None:
        """Add the rows of one forward pass of the layer from `hidden` to `total`."""
        contribution = rows.gate * rows.norm * rows.counted
        new = {"moments": rows.moments(rows.gate), **self._router_sums(rows)}
        if (residual := self.residuals.get(hidden.data_ptr())) is not None:
            turn = _turn(residual.reshape(hidden.shape).float(), total.float())
            new["easy_ep"] = rows.per_expert(contribution * turn.clamp_min(0).double()[rows.token])
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
        if "inputs" in self.groups and self.inner is not None:
            # The library sorts the rows again; repeating its sort tells where each row went.
            order = torch.sort(rows.expert).indices
            for name, values in (("up", hidden[rows.token]), ("down", self.inner[torch.argsort(order)])):
                energy = values.double().square()
                new[f"input_energy.{name}"] = rows.weighted(energy, rows.gate.square() * rows.counted)
                new[f"input_energy.{name}.ungated"] = rows.weighted(energy, rows.counted)
        for name, value in new.items():
            self.sums[name] = merge(name)(self.sums[name], value) if name in self.sums else value
        self.residuals, self.logits, self.inner = {}, None, None

    def _router_sums(self, rows: Rows) -> dict[str, Tensor]:
        """Sums that need the router's logits: probabilities of all experts, and moments of other gates."""
        if self.logits is None:
            return {}
        sigmoid, softmax = self.logits.sigmoid(), self.logits.softmax(-1)
        if self.router_is_sigmoid is None:
            self.router_is_sigmoid = rows.distance(sigmoid) < rows.distance(softmax)
        probability = sigmoid if self.router_is_sigmoid else softmax
        if self.valid is not None:
            probability = probability * self.valid.to(probability.device)[:, None]
        found = {"probability": probability.sum(0, dtype=torch.float64)}
        if set(self.gate_modes) - {DEPLOYED}:
            full = rows.chosen(softmax)
            gates = {"softmax_full": full, "softmax_topk": full / rows.by_token(full).sum(1)[rows.token]}
            found |= {f"moments.{mode}": rows.moments(gates[mode]) for mode in self.gate_modes if mode != DEPLOYED}
        return found


def _turn(residual: Float[Tensor, "T D"], added: Float[Tensor, "T D"]) -> Float[Tensor, "T"]:
    """1 - cos(x, x + y): how far the routed experts turn the residual stream."""
    after = residual + added
    lengths = torch.linalg.vector_norm(residual, dim=-1) * torch.linalg.vector_norm(after, dim=-1)
    return 1 - torch.linalg.vecdot(residual, after) / lengths.clamp_min(1e-20)


def _norms_before(model: nn.Module, experts: nn.Module) -> list[nn.Module]:
    """The norms of the decoder layer that holds `experts`: modules with a one-dimensional weight."""
    name = next(name for name, module in model.named_modules() if module is experts)
    decoder = next(prefix for prefix in _prefixes(name) if layer_of(prefix) is not None)
    return [
        module
        for module in model.get_submodule(decoder).modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.dim() == 1
    ]


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
