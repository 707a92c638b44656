"""Log-likelihoods of continuations against one plain forward pass for each pair."""

import random

import pytest
import tiny
import torch
from transformers.cache_utils import DynamicLayer

from moeprune import likelihood
from moeprune.errors import BadInput

Pairs = list[tuple[list[int], list[int]]]


def questions(seed: int = 0) -> Pairs:
    """Contexts of 1 to 60 tokens with 1 to 5 choices of 1 to 6 tokens, in no order."""
    draw = random.Random(seed)
    pairs = []
    for _ in range(12):
        context = [draw.randrange(3, tiny.VOCABULARY) for _ in range(draw.randint(1, 60))]
        for _ in range(draw.randint(1, 5)):
            pairs.append((context, [draw.randrange(3, tiny.VOCABULARY) for _ in range(draw.randint(1, 6))]))
    draw.shuffle(pairs)
    return pairs


def directly(model: torch.nn.Module, context: list[int], then: list[int], length: int) -> tuple[float, bool]:
    """The definition: the whole input by itself, the logits before each token of the continuation."""
    ids = [*context, *then][:-1][-length:]
    predicted = tiny.logits(model, torch.tensor([ids]))[0, -len(then) :].log_softmax(-1)
    return float(sum(predicted[i, token] for i, token in enumerate(then))), predicted.argmax(-1).tolist() == then


@pytest.mark.parametrize("length", [70, 40], ids=["whole", "cut"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_log_likelihoods_equal_one_pair_at_a_time(family: str, length: int):
    model, pairs = tiny.shared_model(family), questions()
    found = likelihood.log_likelihoods(model, pairs, length, batch_size=7)
    direct = [directly(model, *pair, length) for pair in pairs]
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in direct], abs=2e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in direct]


def test_log_likelihoods_greedy_is_noticed():
    model, (context, _) = tiny.shared_model("olmoe"), questions()[0]
    first = int(tiny.logits(model, torch.tensor([context]))[0, -1].argmax())
    second = int(tiny.logits(model, torch.tensor([[*context, first]]))[0, -1].argmax())
    wrong = second + 1 if second + 1 < tiny.VOCABULARY else 3
    found = likelihood.log_likelihoods(model, [(context, [first, second]), (context, [first, wrong])], 70, 4)
    assert [greedy for _, greedy in found] == [True, False]


def test_log_likelihoods_read_a_shared_context_once(monkeypatch):
    model, read = tiny.new_model("olmoe"), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda input_ids, **more: read.append(input_ids.numel()) or forward(input_ids, **more)
    )
    context = list(range(3, 44))  # 40 tokens of 41 are shared: the last one predicts
    pairs: Pairs = [(context, [token, 5]) for token in range(50, 54)]
    likelihood.log_likelihoods(model, pairs, 70, 16)
    # Looking whether the model keeps a cache; the context; the rest and one token of each choice.
    assert read == [1, 40, 4 * 2]


def test_log_likelihoods_a_model_with_another_state_reads_every_pair_whole(monkeypatch):
    class Other(DynamicLayer):
        """A layer of a cache that the module has not heard of."""

    model, pairs = tiny.new_model("olmoe"), questions()
    known = likelihood.log_likelihoods(model, pairs, 70, 7)
    forward, cached = model.forward, []

    def strange(**given):
        output = forward(**given)
        if given.get("use_cache"):
            cached.append(given["input_ids"].shape)
            output.past_key_values.layers[0].__class__ = Other
        return output

    monkeypatch.setattr(model, "forward", strange)
    found = likelihood.log_likelihoods(model, pairs, 70, 7)
    assert cached == [(1, 1)]
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in known], abs=2e-5)


def test_log_likelihoods_never_read_more_pairs_than_asked(monkeypatch):
    model, sizes = tiny.new_model("olmoe"), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda input_ids, **more: sizes.append(len(input_ids)) or forward(input_ids, **more)
    )
    many: Pairs = [(list(range(3, 30)), [token]) for token in range(40, 60)]  # one context, more choices than fit
    told: list[int] = []
    likelihood.log_likelihoods(model, [*questions(), *many], 70, 6, told.append)
    assert max(sizes) <= 6 and max(told) <= 6
    assert sum(told) == len(questions()) + 20


def test_log_likelihoods_of_what_does_not_fit_or_is_not_there_are_bad_input():
    model = tiny.shared_model("olmoe")
    with pytest.raises(BadInput, match=r"evaluate\.sequence_length: a choice has 9 tokens"):
        likelihood.log_likelihoods(model, [([5], [7] * 9)], 8, 4)
    with pytest.raises(BadInput, match="no tokens"):
        likelihood.log_likelihoods(model, [([5], [])], 8, 4)
