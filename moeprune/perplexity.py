"""Negative log-likelihood of documents, and ratios of sums with their standard errors over documents."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor, nn


@dataclass(frozen=True)
class Estimate:
    """A measured value, its standard error, and how many documents or questions it rests on."""

    value: float
    stderr: float | None
    n: int


@torch.no_grad()
def document_nll(
    model: nn.Module,
    documents: Sequence[Sequence[int]],
    prefix: int,
    sequence_length: int,
    batch_size: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Float64[Tensor, "N"]:
    """Summed negative log-likelihood of every token of each document, in nats.

    A document is read in windows of `sequence_length` that begin with the last token of the one before (the first
    with `prefix`), so that each of its tokens is predicted exactly once. `progress` is told the tokens of each batch.
    """
    device = next(model.parameters()).device
    windows = [
        (number, [prefix, *ids][start : start + sequence_length + 1])
        for number, ids in enumerate(documents)
        for start in range(0, len(ids), sequence_length)
    ]
    windows.sort(key=lambda window: -len(window[1]))  # alike lengths together: little padding
    nll = torch.zeros(len(documents), dtype=torch.float64)
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        longest = max(len(ids) for _, ids in batch) - 1
        inputs = torch.zeros(len(batch), longest, dtype=torch.long)
        targets = torch.full((len(batch), longest), -100)
        for row, (_, ids) in enumerate(batch):
            inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            targets[row, : len(ids) - 1] = torch.tensor(ids[1:])
        mask = (targets != -100).long()
        logits = model(input_ids=inputs.to(device), attention_mask=mask.to(device), use_cache=False).logits
        losses = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.to(device).flatten(), ignore_index=-100, reduction="none"
        )
        sums = losses.double().reshape(len(batch), -1).sum(1).cpu()
        nll.index_add_(0, torch.tensor([number for number, _ in batch]), sums)
        progress(int(mask.sum()))
    return nll


def ratio(total: Float64[Tensor, "N"], weight: Float64[Tensor, "N"]) -> Estimate:
    """sum(total) / sum(weight) over documents, with the linearised standard error of a ratio of sums.

        r = sum x / sum y;   se = sqrt(n / (n - 1) * sum (x_i - r y_i)^2) / sum y        (Cochran 1977, Eq. 2.46)

    One document gives no standard error.
    """
    n, size = len(total), float(weight.sum())
    value = float(total.sum()) / size
    if n < 2:
        return Estimate(value, None, n)
    spread = float((total - value * weight).square().sum())
    return Estimate(value, math.sqrt(n / (n - 1) * spread) / size, n)


def perplexity(nll: Float64[Tensor, "N"], tokens: Float64[Tensor, "N"]) -> Estimate:
    """exp(summed nats / tokens); its standard error by the delta method."""
    mean = ratio(nll, tokens)
    value = math.exp(mean.value)
    return Estimate(value, None if mean.stderr is None else value * mean.stderr, mean.n)


def bits_per_byte(nll: Float64[Tensor, "N"], utf8_bytes: Float64[Tensor, "N"]) -> Estimate:
    """Summed bits / UTF-8 bytes of the text."""
    return ratio(nll / math.log(2), utf8_bytes)


def mean(values: Float64[Tensor, "N"]) -> Estimate:
    """Mean over questions with its standard error."""
    n = len(values)
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(n) if n > 1 else None, n)
