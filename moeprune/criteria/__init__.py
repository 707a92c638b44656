"""Importance criteria. The word in a recipe is the file's name; the folder is the registry.

A criterion is one function `score` whose first parameter says what it reads:

    score(statistics, ...)      the sums of one corpus           -> [L, E]
    score(experts, ...)         the weights of one layer         -> [E]
    score(router, ...)          the router rows of one layer     -> [E]
    score(shape, ...)           nothing but (L, E)               -> [L, E]
    score(weight, energy, ...)  one matrix and its input energy  -> [out, in], for sparsity inside experts

Higher means keep. Further parameters are keyword-only with a default: they are the recipe's `score.options`; a
`Literal` annotation lists the words one of them may be. A constant `SUMS` names the groups of `observe.sums` the
criterion needs beside core, `ENERGY` whether its input energy is "gated" (the default) or "ungated".

A criterion of your own is such a file in a folder of yours that the environment variable MOEPRUNE_CRITERIA names
(several are separated as in PATH). Its word then works everywhere, unless a file here has the same name.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from moeprune import options
from moeprune.errors import known_word

__path__.extend(
    os.path.abspath(folder) for folder in os.environ.get("MOEPRUNE_CRITERIA", "").split(os.pathsep) if folder
)


@dataclass(frozen=True)
class Criterion:
    """A criterion found by its word.

    `reads` is "statistics", "experts", "router", "shape" or "weight"; `sums` are the groups of `observe.sums` it needs
    beside core; `energy` is the kind of input energy a criterion of weights is given.
    """

    word: str
    reads: str
    score: Callable[..., Tensor]
    defaults: dict[str, Any]
    sums: tuple[str, ...]
    energy: Literal["gated", "ungated"]

    @property
    def module(self) -> str:
        """The full name of its module."""
        return f"{__name__}.{self.word}"

    def options(self, given: dict[str, Any]) -> dict[str, Any]:
        """All options with their values; BadInput for an unknown one or one of another type."""
        whole = options.complete(self.score, given, "score.options", f"criterion '{self.word}'")
        if check := getattr(import_module(self.module), "check", None):
            check(whole)
        return whole


def words() -> list[str]:
    """Every criterion there is."""
    return sorted({path.stem for folder in __path__ for path in Path(folder).glob("*.py")} - {"__init__"})


def find(word: str) -> Criterion:
    """The criterion of that name; BadInput with the nearest name if there is none."""
    known_word(word, words(), "score.criterion")
    module = import_module(f"{__name__}.{word}")
    reads = options.positional(module.score)[0]
    energy: Any = getattr(module, "ENERGY", "gated")
    return Criterion(word, reads, module.score, options.defaults(module.score), getattr(module, "SUMS", ()), energy)
