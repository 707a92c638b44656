"""Expert-wise knowledge distillation: a pruned model learns from the dense one it was made of, expert by expert.

    L = L_CE + lambda * sum over layers l and experts j of MSE_lj        MoE-Pruner (Xie et al. 2024, arXiv:2410.12013)
    MSE_lj = mean over tokens t of expert j and over dimensions of (f'_lj(x'_t) - f_l,kept(j)(x_t))^2

f and x are the teacher's expert and hidden state, f' and x' the student's. lambda is L_CE / L_expert on the first
batch and stays. All parameters are trained, by AdamW under a cosine learning rate. What the paper leaves open is
decided here:

- Each model's expert reads its own hidden state of the same token. On a common input the experts that pruning kept
  would equal the teacher's to begin with: nothing to learn from, and lambda undefined.
- An expert is compared on the tokens the STUDENT routes to it. They are what it has to answer for, and a removed
  expert's tokens reach the kept ones through the student's router only.
- The teacher's hidden states come from a forward pass of its own over the same batch; both experts' outputs are taken
  without their gate, so a token that the teacher sent elsewhere has a target too.
- Only routed experts are compared. One without a token in a batch adds nothing; padding counts in neither loss.
- Both models are in evaluation mode (no dropout, no router noise), there is no weight decay and no warm-up: the paper
  names none, and training is then a function of its inputs alone.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from moeprune.corpus import Corpus
from moeprune.distilled_experts import ExpertPairs
from moeprune.errors import BadInput

UNPREDICTED = -100


@dataclass(frozen=True)
class Settings:
    """How to train. `batch_size` counts blocks; `expert_weight` is lambda, None: L_CE / L_expert on the first batch."""

    epochs: int
    learning_rate: float
    batch_size: int
    expert_weight: float | None
    seed: int


@dataclass(frozen=True)
class Point:
    """A step of the loss curve: the losses are those before the step, in nats and in squared units of the output."""

    step: int
    learning_rate: float
    loss: float
    cross_entropy: float
    expert_loss: float
    expert_weight: float


class Distillation:
    """`with Distillation(...) as training:` call `advance` until `training.done == training.steps`.

    `kept` says for each layer which of the teacher's experts the student's are; None: the same ones. With `hold_zeros`
    entries of the experts' matrices that are zero at the start stay exactly zero. The blocks of all corpora are dealt
    into batches anew in each epoch, in an order that follows from seed and epoch alone; `state` and `restore` carry a
    training over to another process, which then gives the same bytes as one that was never interrupted.

    The student is changed in place. Raises BadInput if the models do not fit each other or the corpora hold nothing to
    predict.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        kept: Mapping[int, Sequence[int]] | None,
        corpora: Sequence[Corpus],
        settings: Settings,
        hold_zeros: bool,
    ) -> None:
        self.teacher, self.student, self.settings = teacher.eval(), student.eval(), settings
        self.pairs = ExpertPairs(teacher, student, kept)
        self.blocks = _blocks(corpora)
        order = torch.Generator().manual_seed(settings.seed)
        self.batches = [
            batch
            for _ in range(settings.epochs)
            for batch in torch.randperm(len(self.blocks), generator=order).split(settings.batch_size)
        ]
        matrices = [p for pair in self.pairs.student.values() for p in pair.experts.module.parameters() if p.dim() == 3]
        self.held = [(matrix, matrix == 0) for matrix in matrices] if hold_zeros else []
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        self.curve: list[Point] = []
        self._undo = ExitStack()

    def __enter__(self) -> "Distillation":
        with ExitStack() as undo:
            undo.enter_context(self.pairs)
            undo.callback(
                torch.use_deterministic_algorithms,
                torch.are_deterministic_algorithms_enabled(),
                warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            )
            # On a GPU gradients of lookups and of attention are otherwise summed in whatever order its threads come.
            torch.use_deterministic_algorithms(True, warn_only=True)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    @property
    def done(self) -> int:
        """Steps taken."""
        return len(self.curve)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return len(self.batches)

    def advance(self) -> Point:
        """Take a step; BadInput if the loss is not finite, or lambda is undefined because the models do not differ."""
        settings = self.settings
        cross_entropy, expert_loss = self.losses(self.batches[self.done])
        weight = self.curve[0].expert_weight if self.curve else settings.expert_weight
        if weight is None:
            if not expert_loss:
                raise BadInput(
                    "distill.expert_weight: every expert of the pruned model gives what the base's gives, so that "
                    "L_CE / L_expert is undefined: distil a model that pruning changed, or set the weight"
                )
            weight = cross_entropy.item() / expert_loss.item()
        loss = cross_entropy + weight * expert_loss
        if not loss.isfinite():
            raise BadInput(
                f"distill.learning_rate: the loss is {loss.item()} at step {self.done} of {self.steps} (cross-entropy "
                f"{cross_entropy.item()}, experts {expert_loss.item()}): lower it"
            )
        rate = settings.learning_rate * (1 + math.cos(math.pi * self.done / self.steps)) / 2
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        for matrix, zero in self.held:
            # AdamW then never moves these: without decay a step is made of past gradients only.
            if matrix.grad is not None:
                matrix.grad.masked_fill_(zero, 0)
        self.optimizer.step()
        self.curve.append(Point(self.done, rate, loss.item(), cross_entropy.item(), expert_loss.item(), weight))
        return self.curve[-1]

    def losses(self, batch: Tensor) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """(L_CE, L_expert) of the blocks with these numbers, with gradient."""
        blocks = [self.blocks[number] for number in batch.tolist()]
        device = next(self.student.parameters()).device
        ids = nn.utils.rnn.pad_sequence(blocks, batch_first=True).to(device)
        targets = nn.utils.rnn.pad_sequence(blocks, batch_first=True, padding_value=UNPREDICTED).to(device)
        valid = targets != UNPREDICTED
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": valid.long(), "use_cache": False}
        with torch.no_grad():
            self.teacher.get_decoder()(**arguments)  # the head is not needed
        logits = self.student(**arguments).logits
        cross_entropy = nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), targets[:, 1:].flatten(), ignore_index=UNPREDICTED
        )
        return cross_entropy, self.pairs.take(valid).sum()

    def state(self) -> dict[str, Any]:
        """What `restore` needs: references, to be written before the next step. `torch.save` can."""
        return {
            "student": {name: parameter.detach() for name, parameter in self.student.named_parameters()},
            "optimizer": self.optimizer.state_dict(),
            "curve": [asdict(point) for point in self.curve],
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of a training with the same arguments."""
        for name, parameter in self.student.named_parameters():
            parameter.copy_(state["student"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.curve = [Point(**point) for point in state["curve"]]


def _blocks(corpora: Sequence[Corpus]) -> list[Tensor]:
    """The corpora's blocks without padding; not those of one token, which predict nothing."""
    blocks = [
        ids[:length].long()
        for corpus in corpora
        for ids, length in zip(corpus.input_ids, corpus.length.tolist(), strict=True)
        if length > 1
    ]
    if not blocks:
        raise BadInput("calibrate.sequence_length: no block has two tokens, so there is nothing to predict: raise it")
    return blocks
