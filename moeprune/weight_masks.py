"""Weight masks: how the zeros inside experts are made, not where they are. The recipe is small and gives equal bits."""

import json
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal, get_args

from moeprune.errors import BadInput, known_word

FORMAT = "moeprune-weights/1"
Order = Literal["as_printed", "sequential"]


@dataclass(frozen=True)
class Unstructured:
    """The fraction `ratio` of each output row is zeroed, rounded down in exact decimals: int(d_in p)."""

    ratio: Decimal

    def __str__(self) -> str:
        return f"{self.ratio.normalize():f}"

    def blocks(self, inputs: int) -> tuple[int, int]:
        """(inputs in a block, how many of them are zeroed): a row is one block."""
        return inputs, int(self.ratio * inputs)


@dataclass(frozen=True)
class NOfM:
    """`keep` of every `of` consecutive inputs of an output row are kept."""

    keep: int
    of: int

    def __str__(self) -> str:
        return f"{self.keep}:{self.of}"

    def blocks(self, inputs: int) -> tuple[int, int]:
        """(inputs in a block, how many of them are zeroed); BadInput if a row is not made of whole blocks."""
        if inputs % self.of:
            raise BadInput(
                f"mask.sparsity: {self} does not fit rows of {inputs} weights, which are no whole blocks of {self.of}: "
                "choose an M that divides them, or a fraction"
            )
        return self.of, self.of - self.keep


Pattern = Unstructured | NOfM


def parse_pattern(text: str) -> Pattern:
    """'0.5' (fraction zeroed) or 'N:M' (N kept of every M); BadInput for anything else."""
    try:
        if ":" in text:
            keep, of = map(int, text.split(":"))
            if 1 <= keep < of:
                return NOfM(keep, of)
        elif 0 <= (ratio := Decimal(text)) < 1:
            return Unstructured(abs(ratio))
    except (InvalidOperation, ValueError):
        pass
    raise BadInput(
        f"mask.sparsity: '{text}' is neither a fraction of zeros, from 0 to below 1, nor N:M with 1 <= N < M for N "
        "weights kept of every M: give one, such as 0.5 or 2:4"
    )


@dataclass(frozen=True)
class WeightMask:
    """Zeros in the experts of the checkpoint with the digest `base`: by which criterion, in which pattern.

    `statistics` are the digests of what the criterion reads, in the recipe's order. `order` says from which model
    they come: `as_printed` from one dense pass (MoE-Pruner's Algorithm 1, arXiv:2410.12013), `sequential` each
    layer's from the model whose earlier layers are already sparse (the text of the paper, and Wanda's code).
    """

    base: str
    criterion: str
    pattern: str
    statistics: tuple[str, ...]
    order: Order

    def to_json(self) -> str:
        """Canonical text: equal masks are equal bytes. BadInput if the pattern is none."""
        return json.dumps({"format": FORMAT, **asdict(self), "pattern": str(parse_pattern(self.pattern))}) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "WeightMask":
        """Read what `to_json` wrote; BadInput if it is not a weight mask."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadInput(f"weight mask: not JSON ({error}): give a mask.json") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise BadInput(f"weight mask: not in the format {FORMAT}: give a mask.json written by moeprune")
        statistics = content.pop("statistics", None)
        if content.keys() != {"base", "criterion", "pattern", "order"} or not isinstance(statistics, list):
            raise BadInput("weight mask: it needs base, criterion, pattern, statistics and order, no more: restore it")
        if not all(isinstance(word, str) and word for word in [*content.values(), *statistics]):
            raise BadInput("weight mask: base, criterion, pattern, order or a digest is not a word: restore it")
        known_word(content["order"], get_args(Order), "weight mask: order")
        return cls(**content | {"pattern": str(parse_pattern(content["pattern"])), "statistics": tuple(statistics)})
