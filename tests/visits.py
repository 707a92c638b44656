"""What each expert does to each token in every family, sharing nothing with moeprune.

What an expert computes is told by running the plain loop of its own module on one token with one expert of weight 1.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from brute_force import RouterLogits, layer_of, routers_of
from families import EXPERTS
from tiny import logits
from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Visit:
    """One token at one expert; `output` is not multiplied by the gate."""

    token: int
    expert: int
    gate: float
    output: Tensor


@dataclass(frozen=True)
class LayerTruth:
    """All visits of a layer; of each token its router's logits, the gated sum of its experts, and the residual stream.

    `residual` is None where the input of the experts is not the norm of anything.
    """

    visits: list[Visit]
    logits: Tensor
    total: Tensor
    residual: Tensor | None

    @property
    def turn(self) -> Tensor:
        """[T]: 1 - cos(x, x + y) of the residual stream x and what its experts add to it."""
        return 1 - torch.cosine_similarity(self.residual, self.residual + self.total, dim=1)

    def sums(self, of: Callable[[Visit], float | Tensor]) -> Tensor:
        """[E, ...] in float64: the sum over the visits of each expert of what `of` makes of one."""
        found = [
            [torch.as_tensor(of(visit)).double() for visit in self.visits if visit.expert == e] for e in range(EXPERTS)
        ]
        zero = torch.zeros_like(next(each[0] for each in found if each))
        return torch.stack([sum(each, zero) for each in found])

    @property
    def rule(self) -> tuple[str, str]:
        """(function of the router's logits that gives the gates up to a factor, what that factor is).

        The function is one of `PROBABILITIES`, or "other". A softmax over the experts chosen is the same as one over
        all of them that is renormalised.
        """
        token, expert = (torch.tensor([getattr(visit, name) for visit in self.visits]) for name in ("token", "expert"))
        gate = torch.tensor([visit.gate for visit in self.visits], dtype=torch.float64)
        sums = torch.zeros(len(self.logits), dtype=torch.float64).index_add_(0, token, gate)[token.unique()]
        for name, probability in PROBABILITIES.items():
            factor = (gate / probability(self.logits.double())[token, expert]).log()
            if _explained(factor):
                return name, _times(factor[0].exp())
            if _explained(factor, token) and _explained(sums.log()):
                return name, f", renormalised{_times(sums[0])}"
            if _explained(factor, token):
                return name, ", a factor for each token"
            if _explained(factor, token, expert):
                return name, ", a factor for each token and one for each expert"
        return "other", ""


def _times(factor: Tensor) -> str:
    return "" if abs(factor - 1) < 1e-4 else f", times {float(factor):.4g}"


def _explained(values: Tensor, *groups: Tensor) -> bool:
    """Whether values are sums of a number for all, and one for each group that a row belongs to."""
    columns = [torch.ones(len(values), 1), *(nn.functional.one_hot(group) for group in groups)]
    design = torch.cat([column.double() for column in columns], 1)
    free = len(values) - int(torch.linalg.matrix_rank(design))
    rest = values - design @ torch.linalg.pinv(design) @ values
    return free > 0 and float(rest.abs().max()) < 1e-4


PROBABILITIES = {
    "softmax": lambda z: z.softmax(-1),
    "sigmoid": lambda z: z.sigmoid(),
    "sqrt(softplus)": lambda z: nn.functional.softplus(z).sqrt(),
}


@torch.no_grad()
def truth(model: PreTrainedModel, sequences: list[Tensor]) -> dict[int, LayerTruth]:
    """What happens in each layer, each sequence read alone: no padding, no batch.

    Slots of gate 0 are no visits (zaya writes so that a token skips the experts), nor are those of identity experts,
    whose numbers are beyond those of the experts (longcat_flash).
    """
    visits: dict[int, list[Visit]] = {}
    routed: dict[int, list[Tensor]] = {}
    totals: dict[int, list[Tensor]] = {}
    residual: dict[int, list[Tensor]] = {}
    first = 0
    for ids in sequences:
        with _inputs_of_experts(model) as seen, RouterLogits(routers_of(model), {}) as routers:
            logits(model, ids[None])
        for layer, (module, inputs, before) in seen.items():
            residual.setdefault(layer, []).extend(before)
            total = torch.zeros_like(inputs[0].flatten(0, -2), dtype=torch.float64)
            totals.setdefault(layer, []).append(total)
            for token, expert, gate, output in _one_by_one(module, *inputs):
                total[token] += gate * output.double().flatten()
                if gate and expert < EXPERTS:
                    visits.setdefault(layer, []).append(Visit(first + token, expert, gate, output.double().flatten()))
        for name, parts in routers.seen.items():
            if "attn" not in name and "attention" not in name:  # jetmoe has experts of attention
                routed.setdefault(layer_of(name), []).extend(parts)
        first += len(ids)
    return {
        layer: LayerTruth(
            visits[layer],
            torch.cat(routed[layer]),
            torch.cat(totals[layer]),
            torch.cat(residual[layer]).double() if residual[layer] else None,
        )
        for layer in sorted(visits)
    }


Seen = dict[int, tuple[nn.Module, tuple[Tensor, ...], list[Tensor]]]


@contextmanager
def _inputs_of_experts(model: PreTrainedModel) -> Iterator[Seen]:
    """By layer: the module of the experts, what it is given, and what that is the norm of; of the next forward pass."""
    seen: Seen = {}
    made: list[tuple[Tensor, Tensor]] = []
    handles = []

    def keep_norm(module: nn.Module, given: Any, output: Any) -> None:
        if given and isinstance(output, Tensor) and output.shape == getattr(given[0], "shape", None):
            made.append((given[0].flatten(0, -2), output.flatten(0, -2)))

    for name, module in model.named_modules():
        parameters = list(inspect.signature(module.forward).parameters)
        usual = len(parameters) == 3 and parameters[1] in ("top_k_index", "router_indices")
        if usual or type(module).__name__ in ("Llama4TextMoe", "JetMoeMoE"):

            def keep(module: nn.Module, given: Any, named: Any, layer: int = layer_of(name)) -> None:
                inputs = (*given, *named.values())
                hidden = inputs[0].flatten(0, -2)
                before = [x for x, norm in made if torch.equal(norm, hidden) and not torch.equal(x, hidden)]
                seen[layer] = (module, inputs, before[:1])

            handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        elif "norm" in name:
            handles.append(module.register_forward_hook(keep_norm))
    yield seen
    for handle in handles:
        handle.remove()


def _one_by_one(module: Any, hidden: Tensor, *routing: Tensor) -> Iterator[tuple[int, int, float, Tensor]]:
    """(token, expert, gate, output of the expert before the gate), one at a time."""
    hidden = hidden.flatten(0, -2)
    if type(module).__name__ == "Llama4TextMoe":  # the gate multiplies the input; what it contributes is f(g x) = g n
        gates = module.router(hidden)[0]
        for t, e in gates.nonzero().tolist():
            a, b = ((gates[t, e] * hidden[t]) @ module.experts.gate_up_proj[e]).chunk(2)
            yield t, e, float(gates[t, e]), (b * module.experts.act_fn(a)) @ module.experts.down_proj[e] / gates[t, e]
    elif type(module).__name__ == "JetMoeMoE":
        values, chosen = module.router.layer(hidden).topk(module.router.top_k, 1)
        for t, gates in enumerate(values.softmax(1).tolist()):
            for e, gate in zip(chosen[t].tolist(), gates, strict=True):
                a, b = (module.input_linear.weight[e] @ hidden[t]).chunk(2)
                yield t, e, gate, module.output_linear.weight[e] @ (module.activation(a) * b)
    else:
        loop = inspect.unwrap(type(module).forward)
        expert, gate = routing
        for t, s in gate.nonzero().tolist():
            # A second slot of weight 0, because longcat_flash cannot run with one.
            one = torch.tensor([[1.0, 0.0]])
            yield (
                t,
                int(expert[t, s]),
                float(gate[t, s]),
                loop(module, hidden[t : t + 1], expert[t, s].expand(1, 2), one),
            )
