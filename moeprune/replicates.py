"""How often each chunk of calibration text counts in each replicate of a data set: weights [R, C].

A chunk holds whole documents, so chunks are what is drawn independently; tokens of one document are not. Corpora are
strata: each is resampled within itself, and every function returns one matrix of weights for each corpus, whose rows
add up to its number of chunks, so that sums keep their scale.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from moeprune.errors import BadInput

Replicates = list[Tensor]
"""One [R, C] in float64 for each corpus; replicate r of the data is row r of all of them."""


def bootstrap(chunks: Sequence[int], resamples: int, seed: int) -> Replicates:
    """Weights of bootstrap resamples; `chunks` are the numbers of chunks of the corpora.

        w = C / (C - 1) m,    m ~ Multinomial(C - 1, (1/C, ..., 1/C))

    The rescaling bootstrap with C - 1 draws (Rao & Wu 1988, JASA 83:231-241): the variance of a resampled sum is then
    the unbiased estimate of its variance, where C draws would give (C - 1) / C of it in each corpus.
    Raises BadInput for a corpus of one chunk.
    """
    check(chunks)
    generator = torch.Generator().manual_seed(seed)
    return [_drawn(size, resamples, generator) for size in chunks]


def _drawn(chunks: int, resamples: int, generator: torch.Generator) -> Float64[Tensor, "R C"]:
    drawn = torch.randint(chunks, (resamples, chunks - 1), generator=generator)
    counts = torch.zeros(resamples, chunks, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64)) * (chunks / (chunks - 1))


def leave_one_out(chunks: Sequence[int]) -> Replicates:
    """Weights of the jackknife: one replicate for each chunk of each corpus in turn, without it.

    The chunks left of its corpus count C / (C - 1) each.
    """
    check(chunks)
    ends = torch.tensor(chunks).cumsum(0).tolist()
    weights = [torch.ones(sum(chunks), size, dtype=torch.float64) for size in chunks]
    for weight, end in zip(weights, ends, strict=True):
        size = weight.shape[1]
        weight[end - size : end] = (1 - torch.eye(size, dtype=torch.float64)) * (size / (size - 1))
    return weights


def halves(chunks: Sequence[int], splits: int, seed: int) -> tuple[Replicates, Replicates]:
    """Weights of pairs of data sets that share no chunk, each with half of every corpus.

    Of an odd number of chunks one is in neither. Complementary pairs are those of stability selection (Shah &
    Samworth 2013, JRSS B 75:55-80).
    """
    check(chunks)
    orders, sizes = random_orders(chunks, splits, seed), [size // 2 for size in chunks]
    return subsets(orders, sizes, [0] * len(sizes)), subsets(orders, sizes, sizes)


def random_orders(chunks: Sequence[int], repeats: int, seed: int) -> list[Tensor]:
    """For each corpus the place of each of its chunks in random orders, [R, C]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(repeats, size, generator=generator).argsort(1) for size in chunks]


def subsets(orders: Sequence[Tensor], sizes: Sequence[int], skip: Sequence[int]) -> Replicates:
    """Weights of data sets with `sizes` chunks of each corpus, those that follow the first `skip` of the orders."""
    return [
        _counting((order >= start) & (order < start + size))
        for order, size, start in zip(orders, sizes, skip, strict=True)
    ]


def once(chunks: Sequence[int]) -> Replicates:
    """The data themselves as the only replicate."""
    return [torch.ones(1, size, dtype=torch.float64) for size in chunks]


def stacked(kinds: Mapping[str, Replicates]) -> tuple[Replicates, dict[str, slice]]:
    """Several kinds of replicates as one, and which rows are which."""
    ends = torch.tensor([len(matrices[0]) for matrices in kinds.values()]).cumsum(0).tolist()
    rows = {name: slice(end - len(matrices[0]), end) for (name, matrices), end in zip(kinds.items(), ends, strict=True)}
    return [torch.cat(matrices) for matrices in zip(*kinds.values(), strict=True)], rows


def _counting(chosen: Tensor) -> Float64[Tensor, "R C"]:
    return chosen.double() * (chosen.shape[1] / chosen.sum(1, keepdim=True))


def check(chunks: Sequence[int]) -> None:
    """Raise BadInput for a corpus that cannot be resampled."""
    if min(chunks) < 2:
        raise BadInput("calibrate.chunks: a corpus of one chunk cannot be resampled: set it to 2 or more, better 32")
