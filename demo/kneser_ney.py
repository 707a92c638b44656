"""An interpolated Kneser-Ney trigram model: the yardstick a trained language model has to beat.

    p3(w | uv) = max(c(uvw) - D3, 0) / c(uv.) + D3 n(uv.) / c(uv.) * p2(w | v)

with c the count, n(uv.) the number of distinct words after uv, and the same form below with continuation counts: c(vw)
is the number of distinct words before vw. The last resort is uniform over the vocabulary. Each order has Ney's discount
D = n1 / (n1 + 2 n2) of the numbers of entries counted once and twice. (Kneser and Ney 1995; Chen and Goodman 1999.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Order:
    """Counts of one order; an entry's key is context * vocabulary + word."""

    keys: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    """Sum of counts after each context."""
    distinct: np.ndarray
    """Number of words after each context."""
    discount: float


def order(keys: np.ndarray, counts: np.ndarray, vocabulary: int) -> Order:
    """Sums over the words of every context, and the discount."""
    contexts, which = np.unique(keys // vocabulary, return_inverse=True)
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    discount = once / max(once + 2 * twice, 1)
    return Order(keys, counts, contexts, np.bincount(which, counts), np.bincount(which), discount)


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where it is not in the sorted `keys`."""
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def trigrams(documents: Sequence[np.ndarray]) -> np.ndarray:
    """Rows u, v, w: every token of a document but its first (the end-of-text token) with the two before it."""
    parts = []
    for document in documents:
        padded = np.concatenate([document[:1], document]).astype(np.int64)
        parts.append(np.stack([padded[:-2], padded[1:-1], padded[2:]], 1))
    return np.concatenate(parts)


@dataclass(frozen=True)
class KneserNey:
    """A fitted model of token trigrams."""

    vocabulary: int
    orders: tuple[Order, ...]
    """Unigrams, bigrams, trigrams."""

    @classmethod
    def fit(cls, documents: Sequence[np.ndarray], vocabulary: int) -> "KneserNey":
        """Count; every document begins with the end-of-text token."""
        u, v, w = trigrams(documents).T
        threes, counts = np.unique((u * vocabulary + v) * vocabulary + w, return_counts=True)
        # A lower order counts the distinct entries of the order above: their keys without the first word.
        twos, continued = np.unique(threes % vocabulary**2, return_counts=True)
        ones, begun = np.unique(twos % vocabulary, return_counts=True)
        levels = (ones, begun), (twos, continued), (threes, counts)
        return cls(vocabulary, tuple(order(keys, number, vocabulary) for keys, number in levels))

    def probabilities(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """Of every token of every document but the first, in order."""
        u, v, w = trigrams(documents).T
        p = np.full(len(w), 1 / self.vocabulary)
        for level, context in zip(self.orders, (np.zeros_like(u), v, u * self.vocabulary + v), strict=True):
            count = look_up(level.keys, level.counts, context * self.vocabulary + w)
            total = look_up(level.contexts, level.totals, context)
            after = look_up(level.contexts, level.distinct, context)
            seen = np.maximum(total, 1)
            p = np.where(total > 0, np.maximum(count - level.discount, 0) / seen + level.discount * after / seen * p, p)
        return p

    def perplexity(self, documents: Sequence[np.ndarray]) -> float:
        """Of every token of every document but the first."""
        return float(np.exp(-np.log(self.probabilities(documents)).mean()))
