"""Parts of statistics: some layers, some sums, the chunks of several corpora."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from moeprune.statistics import Statistics


def only(statistics: Statistics, names: Collection[str]) -> Statistics:
    """Of the sums beside the moments, and of other gates, those of these names alone."""
    return replace(
        statistics,
        other_gates={mode: value for mode, value in statistics.other_gates.items() if mode in names},
        sums={name: value for name, value in statistics.sums.items() if name in names},
    )


def layers_of(statistics: Statistics, where: slice) -> Statistics:
    """Some of the layers of statistics all of whose sums are kept per chunk."""
    return replace(
        statistics,
        layer=statistics.layer[where],
        count=statistics.count[:, where],
        moments=statistics.moments[:, where],
        other_gates={mode: value[:, where] for mode, value in statistics.other_gates.items()},
        sums={name: value[:, where] for name, value in statistics.sums.items()},
    )


def joined(corpora: Sequence[Statistics]) -> Statistics:
    """The chunks of all corpora, one corpus after another; all their sums must be kept per chunk."""
    first = corpora[0]
    return Statistics(
        layer=first.layer,
        tokens=torch.cat([corpus.tokens for corpus in corpora]),
        count=torch.cat([corpus.count for corpus in corpora]),
        moments=torch.cat([corpus.moments for corpus in corpora]),
        other_gates={mode: torch.cat([corpus.other_gates[mode] for corpus in corpora]) for mode in first.other_gates},
        sums={name: torch.cat([corpus.sums[name] for corpus in corpora]) for name in first.sums},
    )
