"""The unified family S(b, a, c) of expert scores (arXiv:2606.15716, Eq. 9 and Table 6)."""

from jaxtyping import Float64
from torch import Tensor

from moeprune.errors import BadInput
from moeprune.statistics import Statistics


def score(statistics: Statistics, *, b: int = 1, a: int = 1, c: int = 1) -> Float64[Tensor, "L E"]:
    """Sum, or mean over the tokens routed to an expert, of powers of its gate and output norm; higher = keep.

        S[l, e] = (1 / N^b) sum_t g_t^a n_t^c        g gate, n = ||f_e(x_t)||_2, N tokens routed to e

    b is 0 (sum) or 1 (mean); a and c are 0, 1 or 2. An expert that saw no token scores 0.
    Raises BadInput for other exponents, and for (1, 0, 0), which is the same for every expert.

    Good for exploring the family: the named members are its special cases.
    """
    check({"b": b, "a": a, "c": c})
    total, count = statistics.moments[..., a, c].sum(0), statistics.count.sum(0)
    return total / count.where(count > 0, 1) if b else total


def check(options: dict[str, int]) -> None:
    """Raise BadInput for exponents that are none of the family's."""
    b, a, c = options["b"], options["a"], options["c"]
    if b not in (0, 1) or a not in (0, 1, 2) or c not in (0, 1, 2):
        raise BadInput(f"score.options: exponents b={b}, a={a}, c={c}: b is 0 or 1, a and c are 0, 1 or 2")
    if (b, a, c) == (1, 0, 0):
        raise BadInput("score.options: b=1, a=0, c=0 scores every expert alike: set a or c to 1 or 2, or b to 0")
