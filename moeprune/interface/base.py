"""What the routed experts of a layer can be asked and told, however a family's modules are made."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

ExpertsFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden [T, D], expert [T, K], gate [T, K]) -> the gated sum [T, D]."""


class Experts(ABC):
    """The routed experts of one layer. `module` holds their weights, calling `block` runs router and experts.

    Experts numbered `count` and beyond have no weights: identity experts, and experts held on another device.
    """

    gates_input = False
    """Whether an expert is given its input multiplied by the gate, instead of its output being multiplied."""
    shows_inner = False
    """Whether the inputs of the down projections can be seen."""

    def __init__(self, module: nn.Module, block: nn.Module) -> None:
        self.module: Any = module  # attributes of a transformers module are not typed
        self.block: Any = block

    @property
    def count(self) -> int:
        """The number of routed experts."""
        return self.module.num_experts

    @property
    def numbers(self) -> int:
        """How many numbers name something that computes: those of identity experts follow the routed ones."""
        return self.count

    @abstractmethod
    def outputs(
        self, hidden: Float[Tensor, "N D"], expert: Int[Tensor, "N"], gate: Float[Tensor, "N"], grouped: bool = False
    ) -> Float[Tensor, "N D"]:
        """f_e(x) of each row, not multiplied by its gate.

        Where the gate multiplies the input it is f_e(g x) / g, so that the gate times it is the contribution as ever.
        `grouped` asks for the grouped kernel also where it is not the fastest.
        """

    def outputs_and_inner(
        self, hidden: Float[Tensor, "N D"], expert: Int[Tensor, "N"], gate: Float[Tensor, "N"]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N I"]]:
        """`outputs`, and of each row the input of the down projection; only where `shows_inner`."""
        raise NotImplementedError

    def total(
        self, hidden: Float[Tensor, "T D"], expert: Int[Tensor, "T K"], gate: Float[Tensor, "T K"]
    ) -> Float[Tensor, "T D"]:
        """The gated sum, as the model itself computes it."""
        tokens, slots = expert.shape
        rows = hidden.repeat_interleave(slots, 0)
        weighted = self.outputs(rows, expert.reshape(-1), gate.reshape(-1)) * gate.reshape(-1, 1)
        return weighted.reshape(tokens, slots, -1).sum(1).to(hidden.dtype)

    @abstractmethod
    def in_place(self, function: ExpertsFunction) -> AbstractContextManager[None]:
        """Within this block the layer runs `function` instead of its experts.

        Blocks may be nested: the innermost function counts. All is as before when a block ends, however it ends.
        """


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within this block calls of the module run `forward`, which is not given the module."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
