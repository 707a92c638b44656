"""Masks: which experts of each layer are kept."""

import json
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from moeprune.errors import BadInput

FORMAT = "moeprune-mask/1"


@dataclass(frozen=True)
class Mask:
    """The experts each layer keeps, ascending; their positions are their new numbers.

    `base` is the digest of the checkpoint the mask belongs to.
    """

    base: str
    experts: int
    kept: dict[int, tuple[int, ...]]

    @property
    def counts(self) -> dict[int, int]:
        """How many experts each layer keeps."""
        return {layer: len(kept) for layer, kept in self.kept.items()}

    @property
    def uneven(self) -> bool:
        """Whether layers keep different numbers of experts."""
        return len(set(self.counts.values())) > 1

    def removed(self, layer: int) -> tuple[int, ...]:
        """The experts a layer loses, ascending."""
        return tuple(sorted(set(range(self.experts)) - set(self.kept[layer])))

    def to_json(self) -> str:
        """Canonical text: equal masks are equal bytes."""
        kept = {str(layer): list(self.kept[layer]) for layer in sorted(self.kept)}
        return json.dumps({"format": FORMAT, "base": self.base, "experts": self.experts, "kept": kept}) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Mask":
        """Read what `to_json` wrote; BadInput if it is not a mask."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadInput(f"mask: not JSON ({error}): give a mask.json") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise BadInput(f"mask: not in the format {FORMAT}: give a mask.json written by moeprune")
        try:
            base, experts = str(content["base"]), int(content["experts"])
            kept = {int(layer): tuple(map(int, ids)) for layer, ids in content["kept"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadInput(f"mask: base, experts or kept is missing or malformed ({error}): restore it") from error
        for layer, ids in kept.items():
            if list(ids) != sorted(set(ids)) or not all(0 <= expert < experts for expert in ids):
                raise BadInput(f"mask: layer {layer} does not list distinct experts below {experts}, ascending")
        return cls(base, experts, kept)


def number_kept(ratio: float, experts: int) -> int:
    """Experts left when the fraction `ratio` is removed: E - floor(ratio E), in exact decimals.

    As in REAP, the number REMOVED is rounded down. Binary floating point would make 0.29 * 100 remove 28.
    """
    return experts - int(Decimal(str(ratio)) * experts)


def ratio_kept(keep: int, experts: int) -> str:
    """The ratio with at most four decimals for which `number_kept` is `keep`."""
    removed = Decimal(experts - keep) / experts
    return f"{removed.quantize(Decimal('0.0001'), ROUND_CEILING).normalize():f}"
