"""Distillation against one token at one expert at a time, and against plain autograd."""

import copy
import io
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import pytest
import tiny
import torch
from observed import corpus_of
from torch import Tensor, nn
from transformers import PreTrainedModel

from moeprune.checkpoint import open_checkpoint
from moeprune.configs import read_config
from moeprune.distillation import Distillation, Point, Settings
from moeprune.distilled_experts import ExpertPairs
from moeprune.errors import BadInput
from moeprune.masks import Mask
from moeprune.schema import read_plan
from moeprune.surgery import prune_checkpoint

TOLERANCE = 1e-5
KEPT = (1, 2, 3, 4, 6, 7)
"""Three of each half, as two router groups demand; only one of them keeps its number."""
SEQUENCES = tiny.token_ids(14, 9, 20)
explained = pytest.mark.parametrize("family", tiny.EXPLAINED)
kinds = pytest.mark.parametrize("kind", ["sparse", "pruned"])
Kept = Mapping[int, Sequence[int]] | None


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """`students(family, kind)`: a new student to change as one likes, and the experts it kept."""

    @lru_cache
    def without_experts(family: str) -> tuple[PreTrainedModel, dict[int, tuple[int, ...]]]:
        folder, target = tmp_path_factory.mktemp(family), tmp_path_factory.mktemp(f"{family}-pruned")
        tiny.shared_model(family).save_pretrained(folder)
        plan = read_plan(read_config(folder))
        mask = Mask("", tiny.EXPERTS, dict.fromkeys(plan.layers, KEPT))
        prune_checkpoint(open_checkpoint(folder), plan, mask, target, 10**9)
        return tiny.load(target), mask.kept

    def make(family: str, kind: str) -> tuple[PreTrainedModel, Kept]:
        if kind == "pruned":
            model, kept = without_experts(family)
            return copy.deepcopy(model), kept
        model = tiny.new_model(family)
        with torch.no_grad():
            for matrix in matrices(model):
                matrix[matrix.abs() < matrix.abs().median()] = 0
        return model, None

    return make


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for block in tiny.moe_blocks(model).values() for p in block.experts.parameters() if p.dim() == 3]


def settings(**given: Any) -> Settings:
    values = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 8, "expert_weight": None, "seed": 0}
    return Settings(**values | given)


def training(
    family: str, student: PreTrainedModel, kept: Kept, sequences: list[Tensor] = SEQUENCES, **given: Any
) -> Distillation:
    corpus = corpus_of(sequences, [0] * len(sequences))
    return Distillation(tiny.shared_model(family), student, kept, [corpus], settings(**given), kept is None)


def run(distillation: Distillation, steps: int | None = None) -> list[Point]:
    with distillation as under_way:
        while under_way.done < (under_way.steps if steps is None else steps):
            under_way.advance()
    return under_way.curve


def layer_losses(family: str, student: PreTrainedModel, kept: Kept, sequences: list[Tensor]) -> Tensor:
    ids, mask = tiny.padded(sequences)
    with ExpertPairs(tiny.shared_model(family), student, kept) as pairs:
        tiny.logits(tiny.shared_model(family), ids, mask)
        tiny.logits(student, ids, mask)
        return pairs.take(mask.bool())


def of_expert(experts: nn.Module, number: int, hidden: Tensor) -> Tensor:
    """f_e(x) from the weights, in the precision of x."""
    gate, up = experts.gate_up_proj[number].to(hidden.dtype).chunk(2)
    return experts.down_proj[number].to(hidden.dtype) @ (nn.functional.silu(gate @ hidden) * (up @ hidden))


def slow_cross_entropy(student: PreTrainedModel, sequences: list[Tensor]) -> float:
    """Each sequence alone; the mean over all predicted tokens."""
    total = 0.0
    for ids in sequences:
        log_p = tiny.logits(student, ids[None])[0].double().log_softmax(-1)
        total -= sum(float(log_p[i, token]) for i, token in enumerate(ids[1:]))
    return total / sum(len(ids) - 1 for ids in sequences)


@torch.no_grad()
def slow_layer_losses(
    teacher: PreTrainedModel, student: PreTrainedModel, kept: Kept, sequences: list[Tensor]
) -> list[float]:
    """Layers, experts and tokens in a loop; each sequence alone."""
    blocks = tiny.moe_blocks(teacher)
    of_teacher, of_student = tiny.truth(teacher, sequences), tiny.truth(student, sequences)
    losses = []
    for number, layer in of_student.items():
        hidden = {visit.token: visit.hidden for visit in of_teacher[number].visits}
        experts = {visit.expert for visit in layer.visits}
        loss = 0.0
        for expert in experts:
            original = kept[number][expert] if kept else expert
            squares = [
                float((visit.output - of_expert(blocks[number].experts, original, hidden[visit.token])).square().mean())
                for visit in layer.of(expert)
            ]
            loss += sum(squares) / len(squares)
        losses.append(loss)
    return losses


@kinds
@explained
def test_losses_of_padded_blocks_equal_each_token_at_each_expert_alone(family, kind, students):
    student, kept = students(family, kind)
    expected = slow_layer_losses(tiny.shared_model(family), student, kept, SEQUENCES)
    cross_entropy = slow_cross_entropy(student, SEQUENCES)
    found = layer_losses(family, student, kept, SEQUENCES)
    # Where experts were removed, the first layer's others still read and give what the teacher's do.
    assert min(expected) > 1e-4 if kind == "sparse" else expected[0] < 1e-10 < 1e-4 < min(expected[1:])
    assert found.tolist() == pytest.approx(expected, rel=TOLERANCE, abs=1e-10)
    (point,) = run(training(family, student, kept))
    assert point.cross_entropy == pytest.approx(cross_entropy, rel=TOLERANCE)
    assert point.expert_loss == pytest.approx(sum(expected), rel=TOLERANCE)
    assert point.loss == pytest.approx(2 * cross_entropy, rel=TOLERANCE)


@explained
def test_losses_removed_experts_under_a_wrong_mapping_differ(family, students):
    student, kept = students(family, "pruned")
    assert kept is not None
    first = min(kept)
    right = layer_losses(family, student, kept, SEQUENCES)
    wrong = layer_losses(family, student, kept | {first: (0, *KEPT[1:])}, SEQUENCES)
    assert right[0] == 0 and wrong[0] > 1e-4
    assert torch.equal(right[1:], wrong[1:])


def test_losses_expert_without_a_token_adds_nothing(students):
    student, _ = students("olmoe", "sparse")
    few = [SEQUENCES[0][:2]]
    visits = {number: {v.expert for v in layer.visits} for number, layer in tiny.truth(student, few).items()}
    unseen = {number: sorted(set(range(tiny.EXPERTS)) - seen) for number, seen in visits.items()}
    assert all(unseen.values())
    before = layer_losses("olmoe", student, None, few)
    with torch.no_grad():
        for number, block in tiny.moe_blocks(student).items():
            block.experts.down_proj[unseen[number]] *= 100
    assert torch.equal(layer_losses("olmoe", student, None, few), before)


def test_losses_slot_of_gate_zero_is_no_visit(students):
    teacher, (student, _) = tiny.shared_model("olmoe"), students("olmoe", "sparse")
    hidden = torch.randn(2, 3, tiny.HIDDEN, generator=torch.Generator().manual_seed(5))
    expert, gate = torch.tensor([[1, 0], [1, 2], [2, 0]]), torch.tensor([[0.5, 0.0], [0.3, 0.2], [0.4, 0.0]])
    with ExpertPairs(teacher, student, None) as pairs, torch.no_grad():
        for number in tiny.moe_blocks(student):
            pairs.teacher[number].run(hidden[0], expert, gate)
            pairs.student[number].run(hidden[1], expert, gate)
        found = pairs.take(torch.ones(1, 3, dtype=torch.bool))
    for number, loss in enumerate(found.tolist()):
        whole, less = (tiny.moe_blocks(model)[number].experts for model in (teacher, student))
        square = {}
        for token, e in [(0, 1), (1, 1), (1, 2), (2, 2)]:
            apart = of_expert(less, e, hidden[1, token]) - of_expert(whole, e, hidden[0, token])
            square[token, e] = float(apart.detach().square().mean())
        expected = (square[0, 1] + square[1, 1]) / 2 + (square[1, 2] + square[2, 2]) / 2
        assert loss == pytest.approx(expected, rel=TOLERANCE)


def plain_gradients(
    teacher: PreTrainedModel, student: PreTrainedModel, kept: Kept, sequences: list[Tensor], weight: float
) -> dict[str, Tensor]:
    """Gradients of the whole loss through the stock model, experts computed again a token at a time."""
    chosen = tiny.truth(student, sequences)
    experts = {
        number: (tiny.moe_blocks(teacher)[number].experts, b.experts) for number, b in tiny.moe_blocks(student).items()
    }
    squares: dict[tuple[int, int], list[Tensor]] = {}
    nll, offset = [], 0
    for ids in sequences:
        with torch.no_grad():
            of_teacher, _ = inputs_and_logits(teacher, ids)
        of_student, logits = inputs_and_logits(student, ids)
        nll.append(nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum"))
        for number, layer in chosen.items():
            for visit in layer.visits:
                if offset <= visit.token < offset + len(ids):
                    at, expert = visit.token - offset, visit.expert
                    whole, less = experts[number]
                    wanted = of_expert(whole, kept[number][expert] if kept else expert, of_teacher[number][at]).detach()
                    square = (of_expert(less, expert, of_student[number][at]) - wanted).square().mean()
                    squares.setdefault((number, expert), []).append(square)
        offset += len(ids)
    expert_loss = sum(torch.stack(of).mean() for of in squares.values())
    loss = sum(nll) / sum(len(ids) - 1 for ids in sequences) + weight * expert_loss
    student.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in student.named_parameters()}


def inputs_and_logits(model: PreTrainedModel, ids: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    """(what enters each layer's experts [T, D], logits [T, V]) with gradient."""
    seen: dict[int, Tensor] = {}
    handles = [
        model.model.layers[number].post_attention_layernorm.register_forward_hook(
            lambda _, __, output, number=number: seen.update({number: output[0]})
        )
        for number in tiny.moe_blocks(model)
    ]
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return seen, logits


@kinds
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_gradients_equal_those_of_plain_autograd(family, kind, students):
    student, kept = students(family, kind)
    expected = plain_gradients(tiny.shared_model(family), student, kept, SEQUENCES, weight=3.0)
    # Zeros are not held, or their gradients would be missing.
    corpus = corpus_of(SEQUENCES, [0, 0, 0])
    run(Distillation(tiny.shared_model(family), student, kept, [corpus], settings(expert_weight=3.0), hold_zeros=False))
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None
        distance, size = (parameter.grad - expected[name]).norm(), expected[name].norm()
        assert size > 0 and distance < TOLERANCE * size, name


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_advance_zeros_are_held_exactly_and_other_entries_move(family, students):
    student, _ = students(family, "sparse")
    before = [matrix.detach().clone() for matrix in matrices(student)]
    run(training(family, student, None, epochs=3, learning_rate=1e-2, batch_size=1))
    for matrix, was in zip(matrices(student), before, strict=True):
        assert torch.equal(matrix == 0, was == 0) and 0.4 < float((was == 0).float().mean()) < 0.6
        assert float((matrix != was).float().mean()) > 0.3
    free, _ = students(family, "sparse")
    corpus = corpus_of(SEQUENCES, [0, 0, 0])
    run(Distillation(tiny.shared_model(family), free, None, [corpus], settings(), hold_zeros=False))
    assert any((matrix != 0).sum() > (was != 0).sum() for matrix, was in zip(matrices(free), before, strict=True))


@kinds
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_advance_lowers_both_losses_on_what_it_trains_on(family, kind, students):
    student, kept = students(family, kind)
    curve = run(training(family, student, kept, epochs=20, learning_rate=3e-3))
    assert curve[-1].cross_entropy < 0.8 * curve[0].cross_entropy
    assert curve[-1].expert_loss < 0.8 * curve[0].expert_loss


def test_advance_weight_is_the_ratio_of_the_first_losses_and_stays(students):
    student, kept = students("olmoe", "pruned")
    curve = run(training("olmoe", student, kept, epochs=2, batch_size=2))
    assert len(curve) == 4
    assert {point.expert_weight for point in curve} == {curve[0].cross_entropy / curve[0].expert_loss}
    for point in curve:
        whole = point.cross_entropy + point.expert_weight * point.expert_loss
        assert point.loss == pytest.approx(whole, rel=1e-6)
    given = run(training("olmoe", students("olmoe", "pruned")[0], kept, expert_weight=0.25))
    assert given[0].expert_weight == 0.25
    assert given[0].loss == pytest.approx(given[0].cross_entropy + 0.25 * given[0].expert_loss, rel=1e-6)


def test_advance_learning_rate_falls_along_a_cosine(students):
    student, kept = students("olmoe", "pruned")
    curve = run(training("olmoe", student, kept, epochs=2, batch_size=1, learning_rate=2e-4))
    assert [point.step for point in curve] == list(range(6))
    expected = [1e-4 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert [point.learning_rate for point in curve] == pytest.approx(expected)


def test_advance_equals_plain_adamw(students):
    student, kept = students("olmoe", "pruned")
    other = copy.deepcopy(student)
    run(training("olmoe", student, kept, learning_rate=2e-4, expert_weight=3.0))
    gradients = plain_gradients(tiny.shared_model("olmoe"), other, kept, SEQUENCES, weight=3.0)
    for (name, moved), start in zip(student.named_parameters(), other.parameters(), strict=True):
        # The first step of Adam: its moments, corrected, are the gradient and its square.
        gradient = gradients[name]
        clear = gradient.abs() > 1e-5  # elsewhere rounding decides the direction
        expected = start - 2e-4 * gradient / (gradient.abs() + 1e-8)
        assert clear.any() and torch.allclose(moved[clear], expected[clear], rtol=0, atol=1e-7), name


def test_batches_each_epoch_deals_every_block_once_in_an_order_of_its_own(students):
    student, kept = students("olmoe", "pruned")
    sequences = tiny.token_ids(*range(2, 13))
    corpora = [corpus_of(part, [0] * len(part)) for part in (sequences[:4], sequences[4:])]

    def epochs(seed: int) -> list[list[int]]:
        given = settings(epochs=3, batch_size=4, seed=seed)
        blocks = Distillation(tiny.shared_model("olmoe"), student, kept, corpora, given, False)
        lengths = [len(blocks.blocks[i]) for batch in blocks.batches for i in batch]
        assert [len(batch) for batch in blocks.batches] == [4, 4, 3] * 3 and blocks.steps == 9
        return [lengths[start : start + 11] for start in (0, 11, 22)]

    first, *others = epochs(0)
    assert all(sorted(epoch) == list(range(2, 13)) for epoch in (first, *others))
    assert first not in others and first != list(range(2, 13))
    assert epochs(0) == [first, *others] and epochs(1) != [first, *others]


def save(distillation: Distillation) -> bytes:
    file = io.BytesIO()
    torch.save(distillation.state(), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("family", "kind"), [("olmoe", "sparse"), ("gpt_oss", "sparse"), ("deepseek_v3", "pruned"), ("mixtral", "pruned")]
)
def test_restore_after_any_step_gives_the_bytes_of_a_training_never_cut_off(family, kind, students):
    whole, kept = students(family, kind)
    given = {"epochs": 2, "batch_size": 1}
    curve = run(training(family, whole, kept, **given))
    assert len(curve) == 6
    for stop in range(len(curve) + 1):
        cut = training(family, students(family, kind)[0], kept, **given)
        run(cut, stop)
        saved = torch.load(io.BytesIO(save(cut)), weights_only=True)
        student = students(family, kind)[0]
        again = training(family, student, kept, **given)
        again.restore(saved)
        assert again.done == stop
        assert run(again) == curve
        for (name, found), expected in zip(student.named_parameters(), whole.parameters(), strict=True):
            assert torch.equal(found, expected), f"{name} after a cut at step {stop}"
    first = students(family, kind)[0]
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), whole.parameters(), strict=True))


def test_distillation_leaves_models_and_torch_as_they_were(students):
    student, kept = students("olmoe", "pruned")
    teacher, (ids, mask) = tiny.shared_model("olmoe"), tiny.padded(SEQUENCES)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    stock = tiny.logits(student, ids, mask)
    torch.use_deterministic_algorithms(False)
    with pytest.raises(ZeroDivisionError), training("olmoe", student, kept) as under_way:
        assert torch.are_deterministic_algorithms_enabled()
        tiny.logits(under_way.teacher, ids, mask)
        assert torch.allclose(tiny.logits(under_way.student, ids, mask), stock, atol=1e-5)
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(tiny.logits(student, ids, mask), stock)
    run(training("olmoe", student, kept))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_advance_student_equal_to_its_teacher_is_refused_unless_the_weight_is_given():
    with pytest.raises(BadInput, match=r"distill\.expert_weight.*undefined"):
        run(training("deepseek_v3", tiny.new_model("deepseek_v3"), None))
    (point,) = run(training("deepseek_v3", tiny.new_model("deepseek_v3"), None, expert_weight=1.0))
    assert point.expert_loss == 0 and point.loss == point.cross_entropy


def test_advance_loss_that_is_not_finite_is_refused_with_its_step(students):
    student, kept = students("olmoe", "pruned")
    with pytest.raises(BadInput, match=r"distill\.learning_rate: the loss is (nan|inf) at step 1 of 3"):
        run(training("olmoe", student, kept, batch_size=1, learning_rate=1e30))


@pytest.mark.parametrize("kept", [None, {0: KEPT}, {0: KEPT, 1: KEPT[1:]}], ids=["none", "a layer less", "fewer"])
def test_distillation_mask_that_does_not_fit_is_refused(kept, students):
    with pytest.raises(BadInput, match="give the mask and the base that the pruned model was made from"):
        training("olmoe", students("olmoe", "pruned")[0], kept)


def test_distillation_blocks_of_one_token_are_left_out(students):
    student, kept = students("olmoe", "pruned")
    one = tiny.token_ids(1, 1)
    (with_them,) = run(training("olmoe", student, kept, [*one, *SEQUENCES]))
    (without,) = run(training("olmoe", students("olmoe", "pruned")[0], kept))
    assert with_them.cross_entropy == pytest.approx(without.cross_entropy, rel=1e-6)
    assert with_them.expert_loss == pytest.approx(without.expert_loss, rel=1e-5)
    with pytest.raises(BadInput, match="no block has two tokens"):
        training("olmoe", student, kept, one)
