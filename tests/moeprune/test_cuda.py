"""What is computed on a GPU against the same on the CPU."""

import copy
import io
from dataclasses import replace

import families
import pytest
import tiny
import torch
from observed import corpus_of
from quantised_kinds import KINDS
from reconstructed import KEEP, admissible
from torch import Tensor, nn
from transformers import PreTrainedModel

from moeprune import criteria, selection
from moeprune.agreement import kendall_tau, rank_biased_overlap
from moeprune.checkpoint import open_checkpoint
from moeprune.combining import COMBINATIONS, combine
from moeprune.configs import read_routing
from moeprune.corpus import Corpus
from moeprune.distillation import Distillation, Point, Settings
from moeprune.footprint import measure
from moeprune.interface import experts_of, routers_of
from moeprune.learning_curve import learning_curves
from moeprune.likelihood import log_likelihoods
from moeprune.models import load_model
from moeprune.observation import observe_chunk
from moeprune.observer import Observer
from moeprune.perplexity import document_nll
from moeprune.protection import protect
from moeprune.reconstruction import LayerLoss, batches
from moeprune.routing import Routing
from moeprune.schema import read_plan
from moeprune.selection import uniform
from moeprune.sensitivity import sensitivity
from moeprune.sequential import sequential_energies
from moeprune.skipping import skipping
from moeprune.slicing import sliced
from moeprune.stability import places
from moeprune.statistics import DEPLOYED, GATE_MODES, GROUPS, Statistics
from moeprune.trained import trained_contents
from moeprune.weight_masks import parse_pattern

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that CUDA can use")
TOLERANCE = 1e-4
"""Of the largest: on either device logits are up to 6e-6 off those in double precision, sums of few tokens more."""
SEQUENCES = tiny.token_ids(14, 9, 15, 7, 16, 11)
"""None longer than the 16 tokens sparse attention looks at: which of equally good ones it takes differs by device."""
CHUNKS = [0, 0, 1, 1, 2, 2]
IDS = torch.stack(tiny.token_ids(16, 16))
explained = pytest.mark.parametrize("family", tiny.EXPLAINED)
every_family = pytest.mark.parametrize("family", [family for family in families.discovered() if family != "doge"])
WITHOUT_INTERFACE = ("dbrx", "jetmoe", "llama4_text", "longcat_flash")


def observe(model: nn.Module, corpus: Corpus, groups: tuple[str, ...] = tuple(GROUPS)) -> Statistics:
    """All gate modes of which the family shows what they need, chunk by chunk."""
    modes = GATE_MODES if len(routers_of(model, experts_of(model))) == len(experts_of(model)) else (DEPLOYED,)
    with Observer(model, groups, modes) as observer:
        parts = [observe_chunk(model, observer, corpus, chunk, 4) for chunk in range(corpus.chunks)]
    return sum(parts[1:], parts[0])


def on(statistics: Statistics, device: str) -> Statistics:
    return replace(
        statistics,
        **{name: getattr(statistics, name).to(device) for name in ("layer", "tokens", "count", "moments")},
        other_gates={mode: value.to(device) for mode, value in statistics.other_gates.items()},
        sums={name: value.to(device) for name, value in statistics.sums.items()},
    )


def all_sums(statistics: Statistics) -> dict[str, Tensor]:
    own = {"tokens": statistics.tokens, "count": statistics.count, "moments": statistics.moments}
    return own | statistics.other_gates | statistics.sums


def assert_close(found: Statistics, expected: Statistics) -> None:
    """Counts are equal, sums but for rounding relative to the largest: of a layer's experts, or of a vector."""
    assert torch.equal(found.count, expected.count) and torch.equal(found.tokens, expected.tokens)
    assert all_sums(found).keys() == all_sums(expected).keys()
    for name, value in all_sums(expected).items():
        if name == "gate_ratio":  # a ratio at the edge of a bin may fall to either side
            apart = (all_sums(found)[name].cumsum(-1) - value.cumsum(-1)).abs()
            assert float(apart.max()) <= 1 and int((apart > 0).sum()) <= 2, name
            continue
        other = all_sums(found)[name]
        if value.dim() == 5:  # moments: experts last
            value, other = (sums.movedim(2, -1) for sums in (value, other))
        assert torch.equal(other.isfinite(), value.isfinite()), name  # -inf for an expert without tokens
        assert distance(*(sums.where(sums.isfinite(), 0) for sums in (other, value))) < TOLERANCE, name


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest along the last axis."""
    return float(((found - expected).abs() / expected.abs().amax(-1, keepdim=True).clamp_min(1e-30)).max())


@pytest.fixture
def exact_convolutions(monkeypatch):
    """Convolutions in float32: by default a GPU multiplies eleven bits of them."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("family", WITHOUT_INTERFACE)
def test_load_model_elsewhere_of_a_family_without_the_grouped_kernel_is_loaded(family, tmp_path):
    families.tiny_model(family).save_pretrained(tmp_path)
    assert load_model(tmp_path, "float32", "meta").device.type == "meta"


@on_gpu
@every_family
def test_family_on_a_gpu_is_observed_as_on_the_cpu_and_twice_the_same(family, tmp_path, exact_convolutions):
    model = families.tiny_model(family)
    model.save_pretrained(tmp_path)
    there, corpus = load_model(tmp_path, "float32", "cuda"), corpus_of(SEQUENCES, CHUNKS)
    groups = tuple(GROUPS) if all(one.shows_inner for one in experts_of(model).values()) else ("core", "vectors")
    found = observe(there, corpus, groups=groups)
    assert_close(found, observe(model, corpus, groups=groups))
    again = all_sums(observe(there, corpus, groups=groups))
    assert all(torch.equal(again[name], value) for name, value in all_sums(found).items())


@on_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.loads])
def test_quantised_checkpoint_on_a_gpu_is_unpacked_as_on_the_cpu(kind, dtype, quantised):
    here, there = (load_model(quantised(kind), dtype, device) for device in ("cpu", "cuda"))
    for name, parameter in here.named_parameters():
        other = there.get_parameter(name)
        assert other.is_cuda and other.dtype == parameter.dtype and torch.equal(other.cpu(), parameter), name


@on_gpu
@explained
def test_observed_on_a_gpu_in_bfloat16_is_within_what_rounding_can_do(family):
    model = tiny.new_model(family).to("cuda", torch.bfloat16)
    given: dict[int, tuple[Tensor, ...]] = {}
    for number, block in tiny.moe_blocks(model).items():
        block.experts.register_forward_pre_hook(lambda _, inputs, number=number: given.update({number: inputs}))
    statistics = observe(model, corpus_of(list(IDS), [0, 0]))
    for row, (number, (hidden, expert, gate)) in enumerate(given.items()):
        for one in range(tiny.EXPERTS):
            token, slot = (expert == one).nonzero(as_tuple=True)
            output, error = rounded(tiny.moe_blocks(model)[number].experts, one, hidden[token])
            length, off, weight = output.norm(dim=1), error.norm(dim=1), gate[token, slot].double()
            assert statistics.count[0, row, one] == len(token)
            for power, factor in enumerate((torch.ones_like(weight), weight, weight.square())):
                found = float(statistics.moments[0, row, one, power, 1])
                allowed = float((factor * off).sum())
                assert abs(found - float((factor * length).sum())) <= allowed
                assert allowed <= 0.1 * found, "the bound says nothing"
            sums = statistics.sum_of("output_sum")[row, one].cuda()
            assert ((sums - output.sum(0)).abs() <= error.sum(0)).all()


@torch.no_grad()
def rounded(experts: nn.Module, number: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """f_e(h) of bfloat16 weights and inputs in float64, and how far it may be off if each step rounds to bfloat16.

    The steps are gate and up projections, silu, product and down projection; products are added up in float32.
    """
    unit, single, slope = 2**-9, 2**-23, 1.1  # of both formats; no slope of silu is larger
    h = hidden.double()
    up, down = experts.gate_up_proj[number].double(), experts.down_proj[number].double()
    (a, b), (wide_a, wide_b) = (h @ up.T).chunk(2, 1), (h.abs() @ up.abs().T).chunk(2, 1)
    off_a, off_b = (
        unit * value.abs() + h.shape[1] * single * wide for value, wide in ((a, wide_a), (b, wide_b))
    )  # fmt: skip
    active = nn.functional.silu(a)
    off_active = slope * off_a
    off_active = off_active + unit * (active.abs() + off_active)
    inner = active * b
    off = active.abs() * off_b + b.abs() * off_active + off_active * off_b
    off = off + unit * (inner.abs() + off)
    output = inner @ down.T
    off = off @ down.abs().T + inner.shape[1] * single * ((inner.abs() + off) @ down.abs().T)
    return output, off + unit * (output.abs() + off)


@on_gpu
@explained
def test_criteria_on_a_gpu_give_the_same_masks(family):
    model = tiny.shared_model(family)
    corpus, routing = corpus_of(SEQUENCES, CHUNKS), read_routing(model.config)
    here, there = observe(model, corpus), observe(copy.deepcopy(model).cuda(), corpus)
    for word in criteria.words():
        if (found := criteria.find(word)).reads == "statistics":
            expected = uniform.select(found.score(here.total()), 4, routing)
            for statistics in (there, on(there, "cuda")):
                assert torch.equal(uniform.select(found.score(statistics.total()), 4, routing).cpu(), expected), word


@on_gpu
@pytest.mark.parametrize("word", [word for word in selection.words() if "model" not in selection.find(word).reads])
@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_selection_rule_on_a_gpu_keeps_the_same_experts(word, family):
    model, rule = tiny.shared_model(family), selection.find(word)
    statistics = [observe(model, corpus_of(SEQUENCES, CHUNKS)), observe(model, corpus_of(list(IDS), [0, 1]))]

    def kept(device: str) -> list[list[int]]:
        there = [on(corpus, device) for corpus in statistics]
        scores, per_corpus = combine(criteria.find("reap").score, there, "pooled")
        given = {
            "scores": protect(scores, there[0], "all"),
            "per_corpus": per_corpus,
            "statistics": there,
            "candidate": None,
            "keep": 4,
            "routing": read_routing(model.config),
        }
        return [row.tolist() for row in rule.select(**{name: given[name] for name in rule.reads})]

    assert kept("cuda") == kept("cpu")


@on_gpu
# Not by ranks: their means are often equal, and how they were rounded decides which is larger.
@pytest.mark.parametrize("how", [how for how in COMBINATIONS if how != "rank"])
def test_audit_of_statistics_on_a_gpu_is_that_on_the_cpu(how):
    corpora = {
        name: observe(tiny.shared_model("olmoe"), corpus_of(tiny.token_ids(*range(9, 21), seed=seed), [*range(12)]))
        for seed, name in enumerate(("one", "other"))
    }
    there = {name: on(statistics, "cuda") for name, statistics in corpora.items()}
    # Not frequency: of two equal weighted counts rounding makes one the larger.
    asked = ({word: criteria.find(word).score for word in ("reap", "easy_ep")}, [4, 6], Routing(8, 2))
    expected, found = (sensitivity(data, *asked, resamples=50, how=how) for data in (corpora, there))
    for name, one in expected.criteria.items():
        other = found.criteria[name]
        for end in ("scores", "lower", "upper"):
            torch.testing.assert_close(getattr(other, end).cpu(), getattr(one, end), rtol=1e-9, atol=1e-9)
        for keep, mask in one.masks.items():
            assert torch.equal(other.masks[keep].kept.cpu(), mask.kept)
            torch.testing.assert_close(other.masks[keep].halves.cpu(), mask.halves)
            for part in ("probability", "index", "influence", "jaccard"):
                ours = getattr(other.masks[keep].stability, part)
                torch.testing.assert_close(ours.cpu(), getattr(mask.stability, part))
    whole, parts = (
        learning_curves(asked[0], data, *asked[1:], repeats=5, how=how)["reap"][4] for data in (corpora, there)
    )
    for curve, other in ((whole.full, parts.full), (whole.disjoint, parts.disjoint)):
        for name, value in vars(curve).items():
            torch.testing.assert_close(getattr(other, name).cpu(), value, equal_nan=True)


@on_gpu
def test_agreement_of_rankings_on_a_gpu_is_that_on_the_cpu():
    a, b = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(kendall_tau(a.cuda(), b.cuda()).cpu(), kendall_tau(a, b))
    here, there = (
        rank_biased_overlap(*(places(x.to(device), Routing(16, 2)).long() for x in (a, b)), 0.9).cpu()
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(there, here)


@on_gpu
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_evaluation_on_a_gpu_is_that_on_the_cpu(family):
    model = tiny.shared_model(family)
    there = copy.deepcopy(model).cuda()
    documents = [ids.tolist() for ids in SEQUENCES]
    nll = [document_nll(one, documents, prefix=1, sequence_length=8, batch_size=4) for one in (model, there)]
    torch.testing.assert_close(nll[1], nll[0], rtol=TOLERANCE, atol=0)
    pairs = [(ids[:-2], then) for ids in documents for then in (ids[-2:], ids[:3], ids[1:2])]
    here, found = (log_likelihoods(one, pairs, 12, batch_size=4) for one in (model, there))
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in here], abs=2e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in here]


def halved(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with half of its experts' weights zero."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for experts in experts_of(model).values():
            for weight in experts.module.parameters():
                weight[weight.abs() < weight.abs().median()] = 0
    return model


def distillation(teacher: PreTrainedModel, student: PreTrainedModel) -> Distillation:
    settings = Settings(epochs=2, learning_rate=1e-3, batch_size=2, expert_weight=None, seed=0)
    return Distillation(teacher, student, None, [corpus_of(SEQUENCES, CHUNKS)], settings, hold_zeros=True)


def run(training: Distillation) -> list[Point]:
    with training:
        while training.done < training.steps:
            training.advance()
    return training.curve


@on_gpu
@explained
def test_distillation_on_a_gpu_is_that_on_the_cpu(family):
    teacher = tiny.shared_model(family)
    here, there = (
        run(distillation(copy.deepcopy(teacher).to(device), halved(teacher).to(device))) for device in ("cpu", "cuda")
    )
    assert len(here) == 6 and abs(here[-1].expert_loss / here[0].expert_loss - 1) > 1e-2
    assert vars(there[0]) == pytest.approx(vars(here[0]), rel=1e-5)
    # AdamW moves a weight whose gradient is nothing but rounding as far as any other.
    assert vars(there[-1]) == pytest.approx(vars(here[-1]), rel=1e-3)


@on_gpu
@explained
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_distillation_on_a_gpu_again_or_taken_up_again_gives_the_same_bits(family, dtype):
    teacher = copy.deepcopy(tiny.shared_model(family)).to("cuda", dtype)
    whole, again, first, rest = (halved(teacher) for _ in range(4))
    curve = run(distillation(teacher, whole))
    assert run(distillation(teacher, again)) == curve
    with distillation(teacher, first) as training:
        for _ in range(3):
            training.advance()
        state = io.BytesIO()
        torch.save(training.state(), state)
    going_on = distillation(teacher, rest)
    state.seek(0)
    going_on.restore(torch.load(state, map_location="cpu", weights_only=True))
    assert run(going_on) == curve
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)) and torch.equal(parameter, rest.get_parameter(name))


@on_gpu
@explained
def test_trained_weights_on_a_gpu_are_written_as_those_on_the_cpu(family, tmp_path):
    tiny.shared_model(family).save_pretrained(tmp_path)
    source = open_checkpoint(tmp_path)
    trained = tiny.new_model(family, seed=7)
    here, there = (trained_contents(copy.deepcopy(trained).to(device), source) for device in ("cpu", "cuda"))
    assert here.keys() == there.keys()
    for name, (_, value) in here.items():
        assert torch.equal(there[name][1](), value())


@on_gpu
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_experts_removed_in_memory_on_a_gpu_leave_what_they_leave_on_the_cpu(family):
    model, plan = tiny.new_model(family), read_plan(tiny.shared_model(family).config)
    there = copy.deepcopy(model).cuda()
    kept = dict.fromkeys(plan.layers, admissible(family)[1])
    with sliced(model, plan, kept), sliced(there, plan, kept):
        torch.testing.assert_close(tiny.logits(there, IDS.cuda()).cpu(), tiny.logits(model, IDS), rtol=0, atol=2e-5)
    for layer in plan.layers:
        here, found = (LayerLoss(one, plan, layer, batches([corpus_of(SEQUENCES, CHUNKS)])) for one in (model, there))
        assert found(kept[layer]) == pytest.approx(here(kept[layer]), rel=TOLERANCE)
        assert found(kept[layer]) == found(kept[layer])
        best = [min(admissible(family, KEEP), key=loss) for loss in (here, found)]
        assert best[0] == best[1]


@on_gpu
@explained
def test_skipping_on_a_gpu_is_that_on_the_cpu(family):
    model = tiny.shared_model(family)
    there = copy.deepcopy(model).cuda()
    beta = dict.fromkeys(experts_of(model), 0.5)
    with skipping(model, beta) as here, skipping(there, beta) as found:
        torch.testing.assert_close(tiny.logits(there, IDS.cuda()).cpu(), tiny.logits(model, IDS), rtol=0, atol=2e-5)
    assert found.experts_per_token == here.experts_per_token


@on_gpu
@explained
def test_energies_layer_by_layer_on_a_gpu_are_those_on_the_cpu(family):
    model = tiny.new_model(family)
    there = copy.deepcopy(model).cuda()
    before = {name: parameter.clone() for name, parameter in there.named_parameters()}
    found = criteria.find("moe_pruner")
    here, energies = (
        sequential_energies(
            one, [corpus_of(SEQUENCES, CHUNKS)], found.energy, found.score, parse_pattern("2:4"), batch_size=4
        )
        for one in (model, there)
    )
    for part in ("up", "down"):
        assert distance(getattr(energies, part), getattr(here, part)) < TOLERANCE
    assert all(torch.equal(parameter, before[name]) for name, parameter in there.named_parameters())


@on_gpu
def test_footprint_on_a_gpu_holds_the_parameters(tmp_path):
    model = tiny.new_model("olmoe", hidden_size=256, head_dim=64, intermediate_size=512)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    found, size = measure(tmp_path, "float32", "cuda", 16), 4 * model.num_parameters()
    assert size <= found["load_peak_device"] < 2 * size
    assert size <= found["forward_peak_device"] < size + 2**26  # with cuBLAS's workspace, 32 MiB on an H100
