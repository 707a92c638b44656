"""A teacher's and a student's experts side by side in ordinary forward passes, with no code per architecture.

As in `moeprune.observer` every (token, slot) is a row of its own, one expert and weight 1, so that each row is
f_e(x_t), not multiplied by the gate; a layer's output is put together again from its rows, here with gradient.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moeprune.errors import BadInput
from moeprune.interface import Experts, experts_of, in_place
from moeprune.slicing import whole_numbers


class ExpertPairs:
    """`with ExpertPairs(teacher, student, kept) as pairs:` forward passes of both leave their experts' distances.

    Run the teacher on a batch, then the student on the same one, then `take` the distances. `kept` says for each layer
    which of the teacher's experts the student's are, in order; None: the same ones.

    Raises BadInput if a model has no experts interface, or if `kept` does not fit the two.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, kept: Mapping[int, Sequence[int]] | None) -> None:
        whole, less = experts_of(teacher), experts_of(student)
        _check(whole, less, kept)
        self.teacher = {layer: TeacherLayer(experts) for layer, experts in whole.items()}
        self.student = {
            layer: StudentLayer(experts, self.teacher[layer], kept[layer] if kept else range(experts.count))
            for layer, experts in less.items()
        }
        self._undo = ExitStack()

    def __enter__(self) -> "ExpertPairs":
        both: list[TeacherLayer | StudentLayer] = [*self.teacher.values(), *self.student.values()]
        self._undo.enter_context(in_place({layer.experts: layer.run for layer in both}))
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def take(self, valid: Bool[Tensor, "B t"]) -> Float[Tensor, "L"]:
        """The distance of each layer in the last forward passes, with gradient; padding (False) does not count.

        Raises RuntimeError if a layer was not run.
        """
        if silent := [number for number, layer in self.student.items() if layer.seen is None]:
            raise RuntimeError(f"layers {silent} were not compared: a model does not call its experts' interface")
        return torch.stack([layer.take(valid.reshape(-1)) for layer in self.student.values()])


class TeacherLayer:
    """A layer of the teacher, which remembers what entered its experts."""

    def __init__(self, experts: Experts) -> None:
        self.experts = experts
        self.hidden: Float[Tensor, "T D"] | None = None

    def run(self, hidden: Tensor, expert: Tensor, gate: Tensor) -> Tensor:
        """The layer's own output [T, D]."""
        self.hidden = hidden
        # Not the library's own sum: where nothing differs, a student's output must be equal to the last bit.
        return _together(_outputs(self.experts, hidden, expert, gate), gate)


class StudentLayer:
    """A layer of the student, which remembers how far its experts were from the teacher's on the tokens it chose."""

    def __init__(self, experts: Experts, teacher: TeacherLayer, kept: Sequence[int]) -> None:
        self.experts, self.teacher = experts, teacher
        self.kept = kept
        self.seen: tuple[Float[Tensor, "T K"], Int[Tensor, "T K"], Bool[Tensor, "T K"]] | None = None

    def run(self, hidden: Tensor, expert: Tensor, gate: Tensor) -> Tensor:
        """The layer's own output [T, D]."""
        if self.teacher.hidden is None:
            raise RuntimeError("the teacher must read a batch before the student does")
        rows = _outputs(self.experts, hidden, expert, gate)
        with torch.no_grad():
            same = whole_numbers(expert, self.kept, self.teacher.experts.count)
            wanted = _outputs(self.teacher.experts, self.teacher.hidden, same, gate)
        self.teacher.hidden = None
        # zaya writes "skip" as (expert 0, gate 0): no visit. Nor is one of longcat_flash's identity experts.
        visited = (gate != 0) & (expert < self.experts.count)
        self.seen = (rows.float() - wanted.float()).square().mean(-1), expert, visited
        return _together(rows, gate)

    def take(self, valid: Bool[Tensor, "T"]) -> Float[Tensor, ""]:
        """The sum over experts of the mean over their tokens of the mean squared difference; then forget it.

        Written as one weighted sum of rows, each weighing one over the tokens of its expert, so that it needs no sum
        by index, which is not deterministic on every device. An expert without tokens adds nothing.
        """
        assert self.seen is not None
        (distance, expert, visited), self.seen = self.seen, None
        counted = visited & valid[:, None]
        routed = expert.clamp_max(self.experts.count - 1)
        tokens = torch.bincount(routed[counted], minlength=self.experts.count)
        return (distance * (counted / tokens.clamp_min(1)[routed])).sum()


def _outputs(
    experts: Experts, hidden: Float[Tensor, "T D"], expert: Int[Tensor, "T K"], gate: Float[Tensor, "T K"]
) -> Float[Tensor, "T K D"]:
    """f_e(x_t) of each token for each of its experts.

    By the grouped implementation on every device: the gradient of the plain loop, which is the fastest on a CPU without
    one, writes a whole stack of weights for each expert.
    """
    tokens, slots = expert.shape
    repeated = hidden[:, None].expand(-1, slots, -1).reshape(tokens * slots, -1)
    rows = experts.outputs(repeated, expert.reshape(-1), gate.reshape(-1), grouped=True)
    return rows.reshape(tokens, slots, -1)


def _together(rows: Float[Tensor, "T K D"], gate: Float[Tensor, "T K"]) -> Float[Tensor, "T D"]:
    return (rows * gate[..., None]).sum(1).to(rows.dtype)


def _check(whole: Mapping[int, Experts], less: Mapping[int, Experts], kept: Mapping[int, Sequence[int]] | None) -> None:
    base = {layer: experts.count for layer, experts in whole.items()}
    pruned = {layer: experts.count for layer, experts in less.items()}
    wanted = {layer: len(experts) for layer, experts in kept.items()} if kept else base
    if pruned != wanted or pruned.keys() != base.keys():
        raise BadInput(
            f"distill: by layer the mask keeps {wanted} experts, the pruned model has {pruned} and the base {base}: "
            "give the mask and the base that the pruned model was made from"
        )
