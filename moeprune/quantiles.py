"""Quantiles of the normal and Student's distribution, and the interval of a measured mean that they give."""

from statistics import NormalDist

FEWEST = 6
"""Documents or questions that an interval needs: with fewer, Student's t is not known well enough."""


def half_width(stderr: float | None, n: int, level: float = 0.95) -> float | None:
    """From a mean over `n` documents or questions to the ends of its interval, by Student's t; None if there is none.

    There is none without a standard error, or of fewer than six.
    """
    return None if stderr is None or n < FEWEST else t_quantile(level, n - 1) * stderr


def normal_quantile(level: float) -> float:
    """The z for which a standard normal variable lies in [-z, z] with probability `level`."""
    return NormalDist().inv_cdf((1 + level) / 2)


def t_quantile(level: float, degrees: int) -> float:
    """The t for which Student's t lies in [-t, t] with probability `level`.

    By the expansion in 1 / degrees of Abramowitz & Stegun (1964), 26.7.5: within 0.1% from 5 degrees of freedom on at
    levels up to 0.95.
    """
    z, n = normal_quantile(level), degrees
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n**power for power, term in enumerate(terms, 1))
