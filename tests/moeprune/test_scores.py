"""Every criterion against per-token lists; what holds for any criterion holds for every file of the folder."""

import math

import pytest
import tiny
import torch
from observed import observed, relative_error
from safetensors.torch import save_file
from torch import Tensor

from moeprune import criteria
from moeprune.checkpoint import open_checkpoint
from moeprune.criteria import aimer, magnitude, reap, unified
from moeprune.errors import BadInput
from moeprune.experts import LayerExperts
from moeprune.schema import read_config, read_plan
from moeprune.statistics import Statistics

FOUND = {word: criteria.find(word) for word in criteria.words()}
reading = {kind: [word for word, found in FOUND.items() if found.reads == kind] for kind in ("statistics", "experts")}


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


# From (gate, norm) of each token routed to the expert.
SLOW = {
    "frequency": lambda visits: len(visits),
    "seer": lambda visits: sum(g for g, n in visits),
    "ean": lambda visits: sum(n for g, n in visits),
    "gate_weighted_ean": lambda visits: sum(g * n for g, n in visits),
    "squared_gate_energy": lambda visits: sum((g * n) ** 2 for g, n in visits),
    "reap": lambda visits: mean([g * n for g, n in visits]),
    "unified": lambda visits: mean([g * n for g, n in visits]),
    "man": lambda visits: mean([n for g, n in visits]),
    "msan": lambda visits: mean([n**2 for g, n in visits]),
}


@pytest.mark.parametrize("mode", ["deployed", "softmax_full", "softmax_topk"])
@pytest.mark.parametrize("word", SLOW)
@pytest.mark.parametrize("family", tiny.EXPLAINED)
def test_score_equals_brute_force_over_tokens(family, word, mode):
    case = observed(family)
    found = FOUND[word].score(case.statistics.in_gate_mode(mode))
    expected = case.expected(lambda layer, e: SLOW[word]([(v.gates[mode], v.norm) for v in layer.of(e)]))
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize(
    ("b", "a", "c"), [(b, a, c) for b in (0, 1) for a in range(3) for c in range(3) if (b, a, c) != (1, 0, 0)]
)
def test_unified_every_exponent_equals_brute_force(b, a, c):
    case = observed("deepseek_v3")

    def slow(layer: tiny.LayerTruth, expert: int) -> float:
        visits = layer.of(expert)
        return sum(v.gates["deployed"] ** a * v.norm**c for v in visits) / max(len(visits), 1) ** b

    assert relative_error(unified.score(case.statistics, b=b, a=a, c=c), case.expected(slow)) < 1e-5


def statistics_of(visits: list[tuple[int, float, float]], experts: int) -> Statistics:
    """One layer, one chunk, from (expert, gate, norm) of each visit."""
    moments = torch.zeros(1, 1, experts, 3, 3, dtype=torch.float64)
    for expert, g, n in visits:
        moments[0, 0, expert] += torch.tensor([[g**a * n**c for c in range(3)] for a in range(3)], dtype=torch.float64)
    return Statistics(torch.tensor([0]), torch.tensor([2]), moments[..., 0, 0].long(), moments)


def test_reap_worked_example():
    # Tokens go to experts 0 and 1 with gates .6 and .4, and to 0 and 2 with .5 and .5; norms 3, 2 and 1, 4.
    # Expert 0: (.6 * 3 + .5 * 1) / 2 = 1.15; expert 1: .4 * 2 = .8; expert 2: .5 * 4 = 2; expert 3 saw no token.
    statistics = statistics_of([(0, 0.6, 3), (1, 0.4, 2), (0, 0.5, 1), (2, 0.5, 4)], experts=4)
    torch.testing.assert_close(reap.score(statistics), torch.tensor([[1.15, 0.8, 2.0, 0.0]], dtype=torch.float64))


def test_unified_constant_member_and_other_exponents_are_refused():
    statistics = statistics_of([(0, 0.5, 1)], experts=2)
    with pytest.raises(BadInput, match="every expert alike"):
        unified.score(statistics, b=1, a=0, c=0)
    for exponents in ({"b": 2}, {"a": 3}, {"c": -1}):
        with pytest.raises(BadInput, match="exponents"):
            unified.score(statistics, **exponents)


def test_criterion_unknown_word_or_option_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'reap'"):
        criteria.find("reep")
    with pytest.raises(BadInput, match="did you mean 'seed'"):
        criteria.find("uniform_random").options({"sede": 1})
    with pytest.raises(BadInput, match="takes no options"):
        criteria.find("reap").options({"seed": 1})
    with pytest.raises(BadInput, match="not of type int"):
        criteria.find("uniform_random").options({"seed": "1"})
    assert criteria.find("unified").options({"c": 2}) == {"b": 1, "a": 1, "c": 2}


# ------------------------------------------------------------------------------------- of any file of the folder


def permuted(statistics: Statistics, order: Tensor) -> Statistics:
    """The same observation of a model whose experts are numbered in another order."""
    experts_last = {"probability", "easy_ep", "max_activation", "max_abs_activation"}

    def moved(name: str, value: Tensor) -> Tensor:
        if name.startswith("pair_"):
            return value[:, order][:, :, order]
        return value[..., order] if name in experts_last else value[:, order]

    return Statistics(
        statistics.layer,
        statistics.tokens,
        statistics.count[:, :, order],
        statistics.moments[:, :, order],
        {mode: value[:, :, order] for mode, value in statistics.other_gates.items()},
        {name: moved(name, value) for name, value in statistics.sums.items()},
    )


ORDER = torch.tensor([3, 7, 0, 2, 6, 1, 5, 4])


@pytest.mark.parametrize("word", reading["statistics"])
def test_statistics_criterion_permuting_experts_permutes_scores(word):
    statistics = observed("deepseek_v3").statistics
    plain, moved = FOUND[word].score(statistics), FOUND[word].score(permuted(statistics, ORDER))
    torch.testing.assert_close(moved, plain[:, ORDER], rtol=1e-12, atol=0)
    assert not torch.allclose(moved, plain)


def expert_weights(layer: int) -> list[list[Tensor]]:
    experts = tiny.moe_blocks(tiny.shared_model("qwen3_moe"))[layer].experts
    return [[experts.gate_up_proj[e].detach(), experts.down_proj[e].detach()] for e in range(tiny.EXPERTS)]


@pytest.mark.parametrize("word", reading["experts"])
def test_weight_criterion_permuting_experts_permutes_scores(word):
    weights = expert_weights(0)
    plain, moved = FOUND[word].score(weights), FOUND[word].score([weights[i] for i in ORDER])
    torch.testing.assert_close(moved, plain[ORDER], rtol=1e-12, atol=0)
    assert not torch.allclose(moved, plain)


@pytest.mark.parametrize("word", FOUND)
def test_criterion_gives_a_finite_number_for_each_expert(word):
    if FOUND[word].reads == "statistics":
        scores = FOUND[word].score(observed("olmoe").statistics)
    elif FOUND[word].reads == "experts":
        scores = torch.stack([FOUND[word].score(expert_weights(layer)) for layer in (0, 1)])
    else:
        scores = FOUND[word].score((2, tiny.EXPERTS))
    assert scores.shape == (2, tiny.EXPERTS) and scores.dtype == torch.float64
    assert scores.isfinite().all()


@pytest.mark.parametrize("word", reading["statistics"])
def test_statistics_criterion_expert_without_tokens_never_beats_all_others(word):
    statistics = observed("olmoe").statistics
    silent = torch.arange(tiny.EXPERTS) == 5
    emptied = Statistics(
        statistics.layer,
        statistics.tokens,
        statistics.count.masked_fill(silent, 0),
        statistics.moments.masked_fill(silent[:, None, None], 0),
        sums={
            name: value.masked_fill(silent, 0) if name in ("probability", "easy_ep") else value
            for name, value in statistics.sums.items()
            if name in ("probability", "easy_ep", "max_activation", "max_abs_activation")
        },
    )
    scores = FOUND[word].score(emptied)
    assert not scores.isnan().any()
    assert torch.all(scores[:, 5] <= scores[:, ~silent].amin(1)), "a silent expert is pruned first"


@pytest.mark.parametrize("word", FOUND)
def test_criterion_says_what_it_reads_and_that_higher_is_kept(word):
    assert FOUND[word].reads in ("statistics", "experts", "shape")
    docstring = FOUND[word].score.__doc__
    assert "higher = keep" in docstring or FOUND[word].reads == "shape"


def test_uniform_random_seed_decides():
    score = FOUND["uniform_random"].score
    assert torch.equal(score((4, 8), seed=1), score((4, 8), seed=1))
    assert not torch.equal(score((4, 8), seed=1), score((4, 8), seed=2))
    # 16000 experts: each quarter of [0, 1) gets a quarter of them, within five standard deviations
    quarters = torch.histc(score((1000, 16)).float(), bins=4, min=0, max=1) / 16000
    assert torch.all((quarters - 0.25).abs() < 5 * math.sqrt(0.25 * 0.75 / 16000))


# ------------------------------------------------------------------------------------------------- weights alone


def gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("matrix", "ratio"),
    [
        (gaussian(1000, 1000), 0.79788),
        (torch.rand(1000, 1000, generator=torch.Generator().manual_seed(0)) * 2 - 1, 0.86603),
    ],
    ids=["gaussian", "uniform"],
)
def test_aimer_known_distributions_of_a_million_weights(matrix, ratio):
    assert aimer.score([[matrix]]).item() == pytest.approx(-ratio, abs=1e-3)


def test_aimer_constant_weights_score_minus_one_and_a_single_one_the_best_possible():
    one_hot = torch.zeros(10, 10)
    one_hot[3, 4] = -2.5
    scores = aimer.score([[torch.full((10, 10), -0.3)], [one_hot]])
    torch.testing.assert_close(scores, torch.tensor([-1, -1 / math.sqrt(100)], dtype=torch.float64))


def test_aimer_matrices_of_an_expert_are_one_vector_not_averaged():
    # |w|: 3, 4, 0, 0 -> (7/4) / sqrt(25/4) = 0.7; per matrix it would be the mean of 1, 1 and 0
    matrices = [torch.tensor([[3.0]]), torch.tensor([[-4.0]]), torch.tensor([[0.0, 0.0]])]
    assert aimer.score([matrices]).item() == pytest.approx(-0.7, rel=1e-12)


def test_aimer_does_not_change_with_scale_or_layout():
    up, down = gaussian(48, 32), gaussian(32, 24)
    plain, scaled, moved = aimer.score([[up, down], [up * 8, down * 8], [down.T, up[torch.randperm(48)]]])
    torch.testing.assert_close(scaled, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(moved, plain, rtol=1e-12, atol=0)
    (other,) = aimer.score([[up * 8, down]])
    assert abs(float(other - plain)) > 1e-2


@pytest.mark.parametrize("criterion", [aimer, magnitude])
def test_weight_criterion_dead_expert_scores_minus_infinity(criterion):
    dead, alive = criterion.score([[torch.zeros(4, 4), torch.zeros(4, 2)], [gaussian(4, 4), torch.zeros(4, 2)]])
    assert dead == -torch.inf and alive.isfinite()


def test_magnitude_is_the_mean_over_all_matrices_together():
    # (1 + 2 + 3 + 10) / 4; the mean of the matrices' means would be 6
    assert magnitude.score([[torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[-10.0]])]]).item() == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("word", reading["experts"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_weight_criterion_on_files_equals_that_in_memory(family, word, dtype, tmp_path):
    model = tiny.new_model(family).to(dtype)
    model.save_pretrained(tmp_path)
    plan, checkpoint = read_plan(read_config(tmp_path)), open_checkpoint(tmp_path)
    blocks = tiny.moe_blocks(model)
    assert plan.layers == list(blocks)
    for layer, block in blocks.items():
        weights = [
            [block.experts.gate_up_proj[e].detach(), block.experts.down_proj[e].detach()] for e in range(tiny.EXPERTS)
        ]
        found = FOUND[word].score(LayerExperts(checkpoint, plan, layer))
        torch.testing.assert_close(found, FOUND[word].score(weights), rtol=1e-6, atol=0)


@pytest.mark.parametrize("word", reading["experts"])
def test_weight_criterion_on_a_fused_file_equals_that_on_single_experts(word, tmp_path):
    model = tiny.new_model("qwen3_moe")
    model.save_pretrained(tmp_path / "single")
    model.save_pretrained(tmp_path / "fused")
    save_file(dict(model.state_dict()), tmp_path / "fused" / "model.safetensors", metadata={"format": "pt"})
    single, fused = open_checkpoint(tmp_path / "single"), open_checkpoint(tmp_path / "fused")
    assert len(single.tensors) > len(fused.tensors)
    plan = read_plan(read_config(single.folder))
    for layer in plan.layers:
        one, other = (FOUND[word].score(LayerExperts(source, plan, layer)) for source in (single, fused))
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
        assert len(set(one.tolist())) == tiny.EXPERTS
