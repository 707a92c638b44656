"""Log-likelihood of continuations; the beginning that the choices of a question share is read once."""

from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from moeprune.errors import BadInput

STEP = 4  # shared beginnings are cut to a multiple of it, so that questions of unlike length can be read together

Pair = tuple[list[int], list[int]]


@torch.no_grad()
def log_likelihoods(
    model: Any,
    pairs: Sequence[Pair],
    sequence_length: int,
    batch_size: int,
    progress: Callable[[int], None] = lambda pairs: None,
) -> list[tuple[float, bool]]:
    """For each (context, continuation): nats of log p(continuation | context), and whether greedy decoding writes it.

    An input longer than `sequence_length` loses its beginning. At most `batch_size` pairs are read at a time; what
    pairs of equal context have in common is read once, its keys and values serving them all. Raises BadInput for a
    continuation longer than `sequence_length`, or nothing to read.
    """
    for context, continuation in pairs:
        if not context or not continuation:
            raise BadInput("evaluate.tasks: a question or a choice has no tokens: mend the task's data")
        if len(continuation) > sequence_length:
            raise BadInput(
                f"evaluate.sequence_length: a choice has {len(continuation)} tokens: set it to at least that"
            )
    inputs = [(context + continuation)[:-1][-sequence_length:] for context, continuation in pairs]
    results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    for shared, questions in _batches(pairs, inputs, batch_size, _reads_on(model)):
        cache = None
        if shared:
            starts = torch.tensor([inputs[question[0]][:shared] for question in questions], device=model.device)
            cache = model(input_ids=starts, use_cache=True, **_last(model, 1)).past_key_values
            owners = [number for number, question in enumerate(questions) for _ in question]
            cache.batch_select_indices(torch.tensor(owners, device=model.device))
        members = [pair for question in questions for pair in question]
        found = _read(model, [inputs[pair][shared:] for pair in members], [pairs[pair][1] for pair in members], cache)
        for pair, result in zip(members, found, strict=True):
            results[pair] = result
        progress(len(members))
    return results


def _read(
    model: Any, inputs: list[list[int]], continuations: list[list[int]], cache: Any
) -> Iterator[tuple[float, bool]]:
    """The results of one batch; each input ends before the last token of its continuation."""
    longest = max(map(len, inputs))
    window = longest - min(len(ids) - len(then) for ids, then in zip(inputs, continuations, strict=True))
    # Padding is on the right, where a causal model does not look.
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in inputs], device=model.device)
    logits = model(input_ids=ids, past_key_values=cache, use_cache=cache is not None, **_last(model, window)).logits[
        :, -window:
    ]
    stops = [len(ids) - longest + window for ids in inputs]
    rows = [row for row, then in enumerate(continuations) for _ in then]
    columns = [
        column for stop, then in zip(stops, continuations, strict=True) for column in range(stop - len(then), stop)
    ]
    predicted = logits[rows, columns].float().log_softmax(-1)
    targets = torch.tensor([token for then in continuations for token in then], device=model.device)
    nats = predicted.gather(1, targets[:, None])[:, 0].double().cpu()
    right = (predicted.argmax(-1) == targets).cpu()
    lengths = [len(then) for then in continuations]
    for of_tokens, hits in zip(nats.split(lengths), right.split(lengths), strict=True):
        yield float(of_tokens.sum()), bool(hits.all())


def _batches(
    pairs: Sequence[Pair], inputs: list[list[int]], batch_size: int, reads_on: bool
) -> Iterator[tuple[int, list[list[int]]]]:
    """(length of the shared beginnings, questions as lists of pair numbers), alike lengths together."""
    of_context: dict[tuple[int, ...], list[int]] = {}
    for number, (context, _) in enumerate(pairs):
        of_context.setdefault(tuple(context), []).append(number)
    questions: list[tuple[int, int, list[int]]] = []
    for members in of_context.values():
        shared = 0
        if reads_on and len(members) > 1:
            ends = [len(inputs[pair]) - len(pairs[pair][1]) for pair in members]
            shared = min(_common([inputs[pair] for pair in members]), *ends) // STEP * STEP
        size = batch_size if shared else 1
        for start in range(0, len(members), size):
            part = members[start : start + size]
            questions.append((shared, max(len(inputs[pair]) for pair in part), part))
    questions.sort(key=lambda question: (-question[0], -question[1]))
    for shared, alike in groupby(questions, key=lambda question: question[0]):
        batch: list[list[int]] = []
        for _, _, part in alike:
            if batch and sum(map(len, batch)) + len(part) > batch_size:
                yield shared, batch
                batch = []
            batch.append(part)
        yield shared, batch


def _common(sequences: Sequence[list[int]]) -> int:
    """How many tokens all of them begin with."""
    first, last = min(sequences), max(sequences)
    differ = (number for number, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return next(differ, len(first))


def _reads_on(model: Any) -> bool:
    """Whether several tokens may follow on a cache: keys and values alone, no state of another kind."""
    cache = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True).past_key_values
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return isinstance(cache, DynamicCache) and all(type(layer) in kinds for layer in cache.layers)


def _last(model: nn.Module, positions: int) -> dict[str, int]:
    """Has a model compute logits of its last positions only, if it knows how."""
    return {"logits_to_keep": positions} if "logits_to_keep" in signature(model.forward).parameters else {}
