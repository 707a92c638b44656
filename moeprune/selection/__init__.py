"""Selection rules: how scores become a mask. The word in a recipe is the file's name.

A rule is one function `select` whose parameters say what it reads; each rule is given those by name.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from torch import Tensor

from moeprune.errors import known_word


def words() -> list[str]:
    """Every selection rule there is."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")


def find(word: str) -> Callable[..., Tensor]:
    """The rule of that name; BadInput with the nearest name if there is none."""
    known_word(word, words(), "mask.selection")
    return import_module(f"{__name__}.{word}").select
