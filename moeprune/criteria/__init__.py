"""Importance criteria. The word in a recipe is the file's name; the folder is the registry.

A criterion is one function `score` whose first parameter says what it reads:

    score(statistics, ...)  the sums of one corpus        -> [L, E]
    score(experts, ...)     the weights of one layer      -> [E]
    score(shape, ...)       nothing but (L, E)            -> [L, E]

Higher means keep. Further parameters are keyword-only with a default: they are the recipe's `score.options`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from moeprune.errors import BadInput, known_word


@dataclass(frozen=True)
class Criterion:
    """A criterion found by its word: `reads` is "statistics", "experts" or "shape"."""

    word: str
    reads: str
    score: Callable[..., Tensor]
    defaults: dict[str, Any]

    @property
    def module(self) -> str:
        """The full name of its module."""
        return f"{__name__}.{self.word}"

    def options(self, given: dict[str, Any]) -> dict[str, Any]:
        """All options with their values; BadInput for an unknown one or one of another type."""
        for name, value in given.items():
            if not self.defaults:
                raise BadInput(f"score.options.{name}: criterion '{self.word}' takes no options: remove it")
            known_word(name, self.defaults, f"score.options of criterion '{self.word}':")
            if type(value) is not type(self.defaults[name]):
                kind = type(self.defaults[name]).__name__
                raise BadInput(
                    f"score.options.{name}: {value!r} is not of type {kind}: give one like {self.defaults[name]!r}"
                )
        return self.defaults | given


def words() -> list[str]:
    """Every criterion there is."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def find(word: str) -> Criterion:
    """The criterion of that name; BadInput with the nearest name if there is none."""
    known_word(word, words(), "score.criterion")
    score = import_module(f"{__name__}.{word}").score
    reads, *options = inspect.signature(score).parameters.values()
    return Criterion(word, reads.name, score, {option.name: option.default for option in options})
