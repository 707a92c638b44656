"""Experts that are a list of ordinary MLPs, as in models that bring their own code: found by shape, checked when run.

The gated sum is no module of its own there: a block asks its gate, calls its experts and adds up. With experts that
return nothing the block computes all but that sum, so a function can take their place. What the block does with the
gate's answer cannot be seen; whether it is one of the usual readings is tried on the first batch.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moeprune.errors import BadInput
from moeprune.interface.base import Experts, ExpertsFunction, forward_replaced
from moeprune.interface.readings import READINGS, Reading

ROUNDING = 4
"""How many times the dtype's precision the sum of experts may be off; at least 1e-4, for matrix products differ."""


class ModuleListExperts(Experts):
    """An `nn.ModuleList` of MLPs beside a gate, called by the block that holds both.

    Raises BadInput on the first batch that it is run in place if no reading of what the gate returns reproduces what
    the block computes; a reading found is kept.
    """

    def __init__(self, module: nn.Module, block: nn.Module) -> None:
        found = _parts(block)
        assert found is not None, "found_in was not asked"
        super().__init__(found[0], block)
        self.gate = found[1]
        # The last `nn.Linear` of an expert to run is its down projection.
        self.shows_inner = len(_linears(self.module[0])) == len(_matrices(self.module[0]))
        self.reading: Reading | None = None

    @staticmethod
    def found_in(module: nn.Module) -> bool:
        """Whether a module is a block that holds such a list and its gate."""
        return _parts(module) is not None

    @property
    def count(self) -> int:
        """See Experts."""
        return len(self.module)

    def outputs(
        self, hidden: Float[Tensor, "N D"], expert: Int[Tensor, "N"], gate: Float[Tensor, "N"], grouped: bool = False
    ) -> Float[Tensor, "N D"]:
        """See Experts."""
        return self._each(hidden, expert, lambda one, part: one(part))

    def outputs_and_inner(
        self, hidden: Float[Tensor, "N D"], expert: Int[Tensor, "N"], gate: Float[Tensor, "N"]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N I"]]:
        """See Experts."""

        def both(one: nn.Module, part: Tensor) -> Tensor:
            last: list[Tensor] = []
            with ExitStack() as undo:
                for linear in _linears(one):
                    undo.callback(linear.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0])).remove)
                output = one(part)
            return torch.cat([output, last[-1]], -1)

        found = self._each(hidden, expert, both)
        return found[:, : hidden.shape[1]], found[:, hidden.shape[1] :]

    def _each(
        self, hidden: Float[Tensor, "N D"], expert: Int[Tensor, "N"], run: Callable[[nn.Module, Tensor], Tensor]
    ) -> Float[Tensor, "N W"]:
        """What `run` makes of an expert and its rows, put back in order; 0 for experts held elsewhere."""
        order = expert.argsort(stable=True)
        sizes = torch.bincount(expert, minlength=self.count)[: self.count].tolist()
        own = order[: sum(sizes)]
        parts = hidden[own].split(sizes)
        found = [run(one, part) for one, part in zip(self.module, parts, strict=True) if len(part)]
        made = torch.cat(found or [run(self.module[0], hidden[:0])])
        return made.new_zeros(len(hidden), made.shape[1]).index_copy(0, own, made)

    @contextmanager
    def in_place(self, function: ExpertsFunction) -> Iterator[None]:
        """See Experts."""

        def forward(*arguments: Any, **named: Any) -> Any:
            hidden: Tensor = arguments[0] if arguments else next(iter(named.values()))
            rows = hidden.reshape(-1, hidden.shape[-1])
            rest, answer, slots = self._without_experts(len(rows), arguments, named)
            if self.reading is None:
                with torch.no_grad():
                    whole = type(self.block).forward(self.block, *arguments, **named)
                    self.reading = self._reproducing(_first(whole), _first(rest), rows, answer, slots)
            routed = self.reading(answer, slots)
            assert routed is not None, "the gate's answer is of another form than before"
            expert, gate = routed
            output = _first(rest)
            output = output + function(rows, expert, gate).reshape(output.shape).to(output.dtype)
            return (output, *rest[1:]) if isinstance(rest, tuple) else output

        with forward_replaced(self.block, forward):
            yield

    def _without_experts(self, tokens: int, arguments: Any, named: Any) -> tuple[Any, Any, int]:
        """What the block returns if its experts return 0, what its gate does, and how many experts a token has."""
        answers: list[Any] = []
        rows = 0

        def nothing(hidden: Tensor) -> Tensor:
            nonlocal rows
            rows += hidden.numel() // hidden.shape[-1]
            return torch.zeros_like(hidden)

        with ExitStack() as undo:
            undo.callback(self.gate.register_forward_hook(lambda _, __, output: answers.append(output)).remove)
            for one in self.module:
                undo.enter_context(forward_replaced(one, nothing))
            rest = type(self.block).forward(self.block, *arguments, **named)
        if len(answers) != 1 or rows % tokens or not rows:
            raise self._unlike(
                f"calls its gate {len(answers)} times and its experts on {rows} rows for {tokens} tokens"
            )
        return rest, answers[0], rows // tokens

    def _reproducing(self, whole: Tensor, rest: Tensor, rows: Float[Tensor, "T D"], answer: Any, slots: int) -> Reading:
        """The reading of the gate's answer with which experts and rest add up to the whole."""
        apart: list[tuple[float, float, Reading]] = []
        for reading in READINGS:
            routed = reading(answer, slots)
            if routed is not None and len(routed[0]) == len(rows) and rest.numel() == rows.numel():
                expert, gate = routed
                total = self.total(rows, expert, gate).reshape(rest.shape)
                precision = torch.finfo(rows.dtype).eps
                allowed = max(ROUNDING * precision, 1e-4) * _length(total) + precision * _length(whole)
                apart.append((_length(whole - rest - total), allowed, reading))
        if not apart:
            raise self._unlike("has a gate that returns neither experts [T, K] with their gates nor logits [T, E]")
        distance, allowed, best = min(apart, key=lambda each: each[0])
        if not distance <= allowed:
            raise self._unlike(
                f"does not add up its experts as its {type(self.gate).__name__} says "
                f"(off by {distance:.2g}, where rounding explains {allowed:.2g})"
            )
        return best

    def _unlike(self, what: str) -> BadInput:
        return BadInput(
            f"download.source: the {type(self.block).__name__} {what}: its experts cannot be observed, searched, "
            "distilled or skipped; choose a weight-only criterion, such as aimer, to prune it"
        )


def _parts(block: nn.Module) -> tuple[nn.ModuleList, nn.Module] | None:
    """(list of experts, gate) of a block that has them: MLPs of one shape, and a matrix with a row for each of them."""
    children = list(block.children())
    lists = [child for child in children if isinstance(child, nn.ModuleList) and _alike(child)]
    if len(lists) != 1:
        return None
    widths = {matrix.shape[1] for matrix in _matrices(lists[0][0])}
    shapes = {(len(lists[0]), width) for width in widths}
    gates = [
        child
        for child in children
        if child is not lists[0] and any(tuple(matrix.shape) in shapes for matrix in _matrices(child))
    ]
    return (lists[0], min(gates, key=_size)) if gates else None


def _alike(modules: nn.ModuleList) -> bool:
    kinds = {(type(one), tuple((name, weight.shape) for name, weight in one.named_parameters())) for one in modules}
    return len(modules) > 1 and len(kinds) == 1 and len(_matrices(modules[0])) > 1


def _matrices(module: nn.Module) -> list[Tensor]:
    return [weight for weight in module.parameters() if weight.dim() == 2]


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _first(answer: Any) -> Any:
    return answer[0] if isinstance(answer, tuple) else answer


def _length(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float32))
