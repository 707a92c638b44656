"""What an audit of one corpus costs: seconds and peak memory on made-up statistics of a large model.

    python benchmarks/audit_speed.py [--resamples 1000] [--layers 48] [--experts 128] [--chunks 64] [--threads 2]

The peak is that of the whole process, libraries and the statistics themselves included. "resampling" is
`moeprune.sensitivity`; "audit" adds learning curves and the agreement of criteria: all that `moeprune audit` computes.
"""

import argparse
import resource
import time

import torch

from moeprune.auditing import Design, audit
from moeprune.criteria import find
from moeprune.routing import Routing
from moeprune.sensitivity import sensitivity
from moeprune.statistics import Statistics

COUNTS, NORMS = ("frequency", "seer", "unified"), ("ean", "man", "msan")
CRITERIA = (*COUNTS, *NORMS, "gate_weighted_ean", "squared_gate_energy", "reap", "easy_ep")
RATIOS = (0.25, 0.5, 0.75)


def made_up(chunks: int, layers: int, experts: int) -> Statistics:
    """Sums that vary between chunks by a lognormal factor, as those of specialised experts do."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    count = (4 + noise(layers, experts) + 0.5 * noise(chunks, layers, experts)).exp().round()
    norm, gate = (0.3 * noise(layers, experts)).exp(), 0.1 * (0.3 * noise(layers, experts)).exp()
    per_token = torch.stack([gate**a * norm**c for a in range(3) for c in range(3)], -1)
    wobble = (0.2 * noise(chunks, layers, experts, 9)).exp()
    wobble[..., 0] = 1
    moments = (count[..., None] * per_token * wobble).reshape(chunks, layers, experts, 3, 3)
    sums = {"easy_ep": moments[..., 1, 1] * 0.1, "max_activation": noise(chunks, layers, experts)}
    tokens = torch.full((chunks,), 8192)
    return Statistics(torch.arange(layers), tokens, count.long(), moments, {}, sums)


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    corpora = {"made up": made_up(given.chunks, given.layers, given.experts)}
    criteria = {word: find(word).score for word in CRITERIA}
    routing = Routing(given.experts, 8)
    keeps = {ratio: given.experts - int(ratio * given.experts) for ratio in RATIOS}
    print(
        f"{given.resamples} resamples x {len(CRITERIA)} criteria x {len(keeps)} ratios, {given.layers} layers, "
        f"{given.experts} experts, {given.chunks} chunks, {given.threads} threads; {peak():.2f} GiB before"
    )
    work = {
        "resampling": lambda: sensitivity(corpora, criteria, list(keeps.values()), routing, resamples=given.resamples),
        "audit": lambda: audit(corpora, Design(criteria, keeps, routing, resamples=given.resamples)),
    }
    for name, run in work.items():
        wall, used = time.perf_counter(), time.process_time()
        run()
        wall, used = time.perf_counter() - wall, time.process_time() - used
        print(f"{name}: {wall:.1f} s ({used:.1f} s of CPU), peak {peak():.2f} GiB", flush=True)


def peak() -> float:
    """GiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
