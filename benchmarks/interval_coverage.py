"""How often a 90% interval of `moeprune.sensitivity` holds the truth, for sums whose distribution is known.

    python benchmarks/interval_coverage.py [--trials 500] [--repeats 4] [--resamples 1000]

A trial is a layer with one expert. "ratio" is REAP's sum of contributions over tokens, "sum" the frequency; their sums
over a chunk are normal, or lognormal with the sigma given. Studentised intervals are what pooled corpora get, BCa ones
all others.
"""

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor

from moeprune.criteria import frequency, reap
from moeprune.routing import Routing
from moeprune.sensitivity import sensitivity
from moeprune.statistics import Statistics

CHUNKS = (8, 16, 32, 64, 128)


def normal_ratio(noise: Tensor) -> tuple[Tensor, Tensor, float]:
    """Contributions, tokens and the truth: normal sums."""
    tokens = 100 + 20 * noise[0]
    return 2 * tokens + 30 * noise[1], tokens, 2.0


def lognormal_ratio(sigma: float) -> Callable[[Tensor], tuple[Tensor, Tensor, float]]:
    """Lognormal sums whose logarithms correlate by a half."""
    return lambda noise: (
        (sigma * (0.5 * noise[0] + math.sqrt(0.75) * noise[1])).exp(),
        (sigma * noise[0]).exp(),
        1.0,
    )


def lognormal_sum(sigma: float) -> Callable[[Tensor], tuple[Tensor, Tensor, float]]:
    """Lognormal numbers of tokens; the truth is that of one chunk."""
    return lambda noise: (noise[0], (sigma * noise[0]).exp(), math.exp(sigma**2 / 2))


CASES = {
    "ratio, normal": (reap.score, normal_ratio),
    "ratio, lognormal 0.5": (reap.score, lognormal_ratio(0.5)),
    "ratio, lognormal 1": (reap.score, lognormal_ratio(1.0)),
    "sum, lognormal 0.5": (frequency.score, lognormal_sum(0.5)),
    "sum, lognormal 1": (frequency.score, lognormal_sum(1.0)),
}


def coverage(case: str, chunks: int, how: str, given: argparse.Namespace) -> float:
    """Share of all trials whose interval holds the truth."""
    score, make = CASES[case]
    shares = []
    for seed in range(given.repeats):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(2, chunks, given.trials, 1, generator=generator, dtype=torch.float64)
        contribution, tokens, truth = make(noise)
        moments = torch.zeros(*tokens.shape, 3, 3, dtype=torch.float64)
        moments[..., 0, 0], moments[..., 1, 1] = tokens, contribution
        statistics = Statistics(torch.arange(given.trials), torch.ones(chunks), tokens, moments)
        truth *= chunks if score is frequency.score else 1
        found = sensitivity(
            {"": statistics}, {"": score}, [1], Routing(1, 1), resamples=given.resamples, seed=seed, how=how
        ).criteria[""]
        shares.append(float(((found.lower <= truth) & (truth <= found.upper)).double().mean()))
    return sum(shares) / len(shares)


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--resamples", type=int, default=1000)
    given = parser.parse_args()
    columns = ["interval", "scores", *(f"{chunks} chunks" for chunks in CHUNKS)]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, how in (("studentised", "pooled"), ("BCa", "max")):
        for case in CASES:
            row = [f"{100 * coverage(case, chunks, how, given):.1f}%" for chunks in CHUNKS]
            print(f"| {name} | {case} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
