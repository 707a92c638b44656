"""Selection rules: how scores become a mask. The word in a recipe is the file's name.

A rule is one function `select` whose positional parameters say what it reads; it is given them by name:

    scores      [L, E]      the importance of each expert
    per_corpus  [S, L, E]   the same by each corpus alone, in the recipe's order
    statistics              the sums of each corpus
    model, plan, corpora    what is needed to run the model on the calibration corpora; `progress` is told of layers
    candidate   [L, keep]   what another rule keeps, or None
    keep, routing           how many experts stay in each layer, and what the router demands of them

It returns the experts each layer keeps, [L, keep], ascending; or, if the constant `UNEVEN` is true, one row for each
layer, `keep` long on average. Keyword-only parameters are the recipe's `mask.options`. A constant `SUMS` names the
groups of `observe.sums` the rule needs beside core. A function `check(keep, routing, corpora, options)`, if there is
one, refuses before any work what `select` would refuse.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from moeprune import options
from moeprune.errors import known_word
from moeprune.routing import Routing


@dataclass(frozen=True)
class Rule:
    """A selection rule found by its word.

    `reads` are the names of what it must be given; an `uneven` one may keep more experts in one layer than in another.
    """

    word: str
    reads: tuple[str, ...]
    select: Callable[..., Tensor | list[Tensor]]
    defaults: dict[str, Any]
    sums: tuple[str, ...]
    uneven: bool

    @property
    def module(self) -> str:
        """The full name of its module."""
        return f"{__name__}.{self.word}"

    def check(self, keep: int, routing: Routing, corpora: Sequence[str], given: dict[str, Any]) -> None:
        """Raise BadInput if the rule cannot do what is asked; nothing is computed, `corpora` are names."""
        routing.check(keep)
        if refuse := getattr(import_module(self.module), "check", None):
            refuse(keep, routing, corpora, self.options(given))

    def options(self, given: dict[str, Any]) -> dict[str, Any]:
        """All options with their values; BadInput for an unknown one or one of another type."""
        return options.complete(self.select, given, "mask.options", f"selection '{self.word}'")


def words() -> list[str]:
    """Every selection rule there is."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def find(word: str) -> Rule:
    """The rule of that name; BadInput with the nearest name if there is none."""
    known_word(word, words(), "mask.selection")
    module = import_module(f"{__name__}.{word}")
    select, sums, uneven = module.select, getattr(module, "SUMS", ()), getattr(module, "UNEVEN", False)
    return Rule(word, options.positional(select), select, options.defaults(select), sums, uneven)
