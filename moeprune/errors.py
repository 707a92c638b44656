"""The one kind of error a user can mend."""

from collections.abc import Iterable
from difflib import get_close_matches


class BadInput(ValueError):
    """Input that cannot be worked with; the message says what, where and what to do, in one line."""


def one_line(error: BaseException) -> str:
    """What an error says, in one line: its first, and the next if that is where it says it."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first


def known_word(word: str, words: Iterable[str], what: str) -> str:
    """Return `word` if it is one of `words`; raise BadInput naming the nearest one otherwise."""
    words = sorted(words)
    if word in words:
        return word
    near = get_close_matches(word, words, n=1, cutoff=0.0)
    hint = f"did you mean '{near[0]}'?" if near else "none is known"
    choice = f" choose from {', '.join(words)}" if len(words) <= 30 else ""
    raise BadInput(f"{what} '{word}' is unknown: {hint}{choice}")
