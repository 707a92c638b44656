"""Searching the experts to keep against full passes of the masked model, one sequence and one subset at a time."""

import logging
from functools import lru_cache
from itertools import combinations

import pytest
import tiny
import torch
from observed import corpus_of
from torch import Tensor, nn

from moeprune.corpus import Corpus
from moeprune.errors import BadInput
from moeprune.reconstruction import LayerLoss, batches, whole_numbers
from moeprune.routing import Routing
from moeprune.schema import read_plan, read_routing
from moeprune.selection import find
from moeprune.selection.reconstruction import best, select

TOLERANCE = 1e-5
KEEP = 6
ALL = tuple(range(tiny.EXPERTS))
SEQUENCES = tiny.token_ids(14, 9)
CORPUS = corpus_of(SEQUENCES, [0, 0])
ROUTINGS = ["olmoe", "olmoe-renormalised", "qwen2_moe", "deepseek_v3", "gpt_oss"]
"""Softmax with and without renormalisation, with shared experts, sigmoid in two groups, softmax over the chosen."""
routings = pytest.mark.parametrize("family", ROUTINGS)
forms = pytest.mark.parametrize("form", ["layerwise", "progressive"])

Kept = dict[int, tuple[int, ...]]


def admissible(family: str, keep: int = KEEP) -> list[tuple[int, ...]]:
    """Every subset; with two groups of four those that take equally many of each."""
    subsets = list(combinations(ALL, keep))
    if family == "deepseek_v3":
        subsets = [kept for kept in subsets if sum(expert < 4 for expert in kept) == keep // 2]
    return subsets


def routed(model: nn.Module, ids: Tensor, layer: int, kept: Kept) -> Tensor:
    """What the routed experts of a layer put out in a full pass in which all others cannot be chosen."""
    found: list[Tensor] = []
    blocks = tiny.moe_blocks(model)
    handle = blocks[layer].experts.register_forward_hook(lambda _, inputs, output: found.append(output.double()))
    tiny.masked_logits(model, ids[None], dict.fromkeys(blocks, ALL) | kept)
    handle.remove()
    return found[0].reshape(len(ids), -1)


def brute_force(model: nn.Module, layer: int, earlier: Kept, kept: tuple[int, ...]) -> float:
    """The sum over sequences of || F'(X, C) - F(X) ||_F; F is of the dense model, whatever was pruned earlier."""
    return sum(
        float((routed(model, ids, layer, earlier | {layer: kept}) - routed(model, ids, layer, {})).norm())
        for ids in SEQUENCES
    )


@lru_cache
def losses(family: str, form: str) -> dict[int, dict[tuple[int, ...], float]]:
    """By layer the brute-force loss of each subset; in the progressive form earlier layers keep their best."""
    model = tiny.shared_model(family)
    found: dict[int, dict[tuple[int, ...], float]] = {}
    for layer in tiny.moe_blocks(model):
        earlier = {done: min(table, key=table.get) for done, table in found.items()} if form == "progressive" else {}
        found[layer] = {kept: brute_force(model, layer, earlier, kept) for kept in admissible(family)}
    return found


def run(family: str, keep: int = KEEP, corpora: dict[str, Corpus] | None = None, **options) -> list[list[int]]:
    model = tiny.shared_model(family)
    plan, routing = read_plan(model.config), read_routing(model.config)
    return select(model, plan, corpora or {"all": CORPUS}, keep, routing, lambda _: None, **options).tolist()


def loss_of(
    model: nn.Module, layer: int, earlier: Kept | None = None, corpora: list[Corpus] | None = None
) -> LayerLoss:
    return LayerLoss(model, read_plan(model.config), layer, batches(corpora or [CORPUS]), earlier)


@routings
@forms
def test_losses_of_all_subsets_equal_brute_force_over_full_passes(family, form):
    model, tables = tiny.shared_model(family), losses(family, form)
    earlier: Kept = {}
    for layer, table in tables.items():
        loss = loss_of(model, layer, earlier)
        for kept, expected in table.items():
            assert loss(kept) == pytest.approx(expected, rel=TOLERANCE), f"layer {layer}, experts {kept}"
        if form == "progressive":
            earlier[layer] = min(table, key=table.get)


@routings
@forms
def test_exhaustive_search_finds_the_brute_force_minimum(family, form):
    expected = [min(table, key=table.get) for table in losses(family, form).values()]
    assert run(family, search="exhaustive", form=form) == [list(kept) for kept in expected]
    assert run(family, form=form) == [list(kept) for kept in expected], "auto is exhaustive for so few subsets"


def test_losses_in_double_precision_equal_brute_force_to_nine_digits():
    model = tiny.new_model("gpt_oss").double()  # its router, unlike the others, does not fall back to float32
    model.set_experts_implementation("eager")  # the grouped one has no double precision
    loss = loss_of(model, 1, {0: ALL[2:]})
    for kept in admissible("gpt_oss")[::3]:
        assert loss(kept) == pytest.approx(brute_force(model, 1, {0: ALL[2:]}, kept), rel=1e-9)


def test_progressive_form_is_not_the_layerwise_one_beyond_the_first_layer():
    first, second = (losses("olmoe", form) for form in ("layerwise", "progressive"))
    assert first[0] == second[0]
    assert all(abs(first[1][kept] / second[1][kept] - 1) > 1e-3 for kept in first[1])


def test_loss_of_keeping_all_is_zero_and_dense_is_the_norm_of_the_output():
    model = tiny.shared_model("qwen2_moe")
    loss = loss_of(model, 1)
    assert loss(ALL) == 0
    expected = sum(float(routed(model, ids, 1, {}).norm()) for ids in SEQUENCES)
    assert loss.dense == pytest.approx(expected, rel=TOLERANCE)


@routings
def test_padding_does_not_count(family):
    wide = Corpus(nn.functional.pad(CORPUS.input_ids, (0, 9), value=5), CORPUS.length, CORPUS.document, CORPUS.chunk)
    model = tiny.shared_model(family)
    alone = [loss_of(model, 1, corpora=[corpus_of([ids], [0])]) for ids in SEQUENCES]
    for kept in admissible(family)[:5]:
        found = loss_of(model, 1, corpora=[wide])(kept)
        assert found == pytest.approx(sum(loss(kept) for loss in alone), rel=TOLERANCE)


def test_loss_is_a_sum_over_blocks_however_many_and_in_whichever_chunks_and_corpora():
    model, kept = tiny.shared_model("olmoe"), (0, 2, 3, 4, 6, 7)
    sequences = tiny.token_ids(*range(5, 16))
    together = loss_of(model, 1, corpora=[corpus_of(sequences, [0] * 11)])(kept)
    dealt = [corpus_of(sequences[:7], [0, 0, 0, 1, 1, 2, 2]), corpus_of(sequences[7:], [0] * 4)]
    assert loss_of(model, 1, corpora=dealt)(kept) == pytest.approx(together, rel=TOLERANCE)
    alone = [loss_of(model, 1, corpora=[corpus_of([ids], [0])])(kept) for ids in sequences]
    assert sum(alone) == pytest.approx(together, rel=TOLERANCE)


def test_tokens_limits_each_corpus_to_its_first_tokens():
    cut = [corpus_of([SEQUENCES[0], SEQUENCES[1][:3]], [0, 0]), corpus_of([SEQUENCES[1]], [0])]
    whole = [CORPUS, corpus_of([SEQUENCES[1]], [0])]
    found = [(ids[mask.bool()].tolist(), mask.sum(1).tolist()) for ids, mask in batches(whole, 17)]
    assert found == [(ids[mask.bool()].tolist(), mask.sum(1).tolist()) for ids, mask in batches(cut)]
    assert [mask.sum(1).tolist() for _, mask in batches(whole, 14)] == [[14], [9]], "no block without a token"
    assert run("olmoe", corpora={"all": CORPUS}, tokens=17) == run("olmoe", corpora={"all": cut[0]})


def test_corpus_names_the_one_that_is_used():
    corpora = {"a": CORPUS, "b": corpus_of(tiny.token_ids(30, seed=9), [0])}
    alone = [run("olmoe", 4, {name: corpus}) for name, corpus in corpora.items()]
    assert alone[0] != alone[1], "the corpora ask for the same experts: the comparison shows nothing"
    assert [run("olmoe", 4, corpora, corpus=name) for name in corpora] == alone
    both = corpus_of([*SEQUENCES, *tiny.token_ids(30, seed=9)], [0, 0, 1])
    assert run("olmoe", 4, corpora) == run("olmoe", 4, {"both": both})
    with pytest.raises(BadInput, match="did you mean"):
        run("olmoe", corpora=corpora, corpus="c")


def slow_greedy(loss, keep: int) -> tuple[int, ...]:
    kept = list(ALL)
    while len(kept) > keep:
        after = {expert: loss(tuple(other for other in kept if other != expert)) for expert in kept}
        kept.remove(min(kept, key=lambda expert: (after[expert], expert)))
    return tuple(kept)


@forms
def test_greedy_removes_the_expert_that_hurts_least_one_at_a_time(form):
    model = tiny.shared_model("gpt_oss")
    first = slow_greedy(lambda kept: brute_force(model, 0, {}, kept), 4)
    earlier = {0: first} if form == "progressive" else {}
    expected = [first, slow_greedy(lambda kept: brute_force(model, 1, earlier, kept), 4)]
    assert run("gpt_oss", 4, search="greedy", form=form) == [list(kept) for kept in expected]
    assert run("gpt_oss", 4, subsets=69, form=form) == [list(kept) for kept in expected], "auto: 70 are too many"


def test_greedy_of_equal_losses_removes_the_lower_id():
    found = best(lambda kept: 1.0, Routing(8, 2), 5, "greedy", 1, torch.Generator())
    assert (found.kept, found.loss, found.tried) == ((3, 4, 5, 6, 7), 1.0, 8 + 7 + 6)
    for search in ("exhaustive", "auto"):
        assert best(lambda kept: 1.0, Routing(8, 2), 5, search, 99, torch.Generator()).kept == (3, 4, 5, 6, 7)


@pytest.mark.parametrize("seed", range(20))
def test_greedy_equals_the_slow_loop_on_any_losses(seed):
    table: dict[tuple[int, ...], float] = {}
    generator = torch.Generator().manual_seed(seed)
    for keep in range(2, 9):
        table |= {kept: float(torch.randint(9, (1,), generator=generator)) for kept in combinations(ALL, keep)}
    found = best(table.__getitem__, Routing(8, 2), 3, "greedy", 1, generator)
    assert found.kept == slow_greedy(table.__getitem__, 3) and found.loss == table[found.kept]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_exhaustive_tries_every_subset_that_takes_equally_many_of_each_group_once(groups):
    tried: list[tuple[int, ...]] = []
    found = best(lambda kept: tried.append(kept) or 0.0, Routing(8, 2, groups), 4, "exhaustive", 1, torch.Generator())
    size = 8 // groups
    expected = [
        kept
        for kept in combinations(ALL, 4)
        if all(sum(expert // size == group for expert in kept) == 4 // groups for group in range(groups))
    ]
    assert len(tried) == len(expected) == found.tried and set(tried) == set(expected)


def test_sampled_is_the_same_for_a_seed_and_never_better_than_exhaustive():
    tables = losses("olmoe", "layerwise").values()
    drawn = {seed: run("olmoe", search="sampled", subsets=4, seed=seed) for seed in range(6)}
    for seed, rows in drawn.items():
        assert run("olmoe", search="sampled", subsets=4, seed=seed) == rows
        assert all(table[tuple(row)] >= min(table.values()) for row, table in zip(rows, tables, strict=True))
    assert len({str(rows) for rows in drawn.values()}) > 1
    assert run("olmoe", search="sampled", subsets=500) == run("olmoe", search="exhaustive"), "500 of 28 are all of them"


def test_sampled_draws_equally_many_of_each_group_and_every_expert_about_as_often():
    tried: list[tuple[int, ...]] = []
    best(lambda kept: tried.append(kept) or 0.0, Routing(8, 2, 2), 6, "sampled", 400, torch.Generator().manual_seed(0))
    assert set(tried) == set(admissible("deepseek_v3"))
    assert len(tried) == len(set(tried)), "a subset drawn twice is tried once"


def test_group_limited_router_loses_equally_many_of_each_group_and_is_not_searched_greedily():
    for row in run("deepseek_v3", subsets=3):  # auto: 16 are too many, so it samples
        assert [sum(expert < 4 for expert in row), len(row)] == [3, 6]
    assert run("deepseek_v3", subsets=3) == run("deepseek_v3", subsets=3, search="sampled")
    with pytest.raises(BadInput, match="choose 'sampled'"):
        run("deepseek_v3", search="greedy")
    with pytest.raises(BadInput, match="nearest number that can"):
        run("deepseek_v3", keep=7)


@routings
@forms
def test_select_leaves_the_model_exactly_as_it_was(family, form):
    model = tiny.new_model(family)
    ids = torch.stack(tiny.token_ids(20))
    before = tiny.logits(model, ids)
    tensors = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    found = [
        select(
            model, read_plan(model.config), {"all": CORPUS}, 4, read_routing(model.config), lambda _: None, form=form
        )
        for _ in range(2)
    ]
    assert torch.equal(*found)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == tensors[name][0] and torch.equal(tensor, tensors[name][1]), name
    assert torch.equal(tiny.logits(model, ids), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_block_that_routes_otherwise_when_run_again_is_refused():
    model = tiny.new_model("olmoe")
    router, passes = model.model.layers[1].mlp.gate, []
    router.register_forward_hook(
        lambda _, inputs, output: passes.append(1) or (output[0], output[1] * len(passes), output[2])
    )
    with pytest.raises(BadInput, match="OlmoeSparseMoeBlock of layer 1 routes other than within the model"):
        loss_of(model, 1)


def test_block_that_is_not_run_as_a_module_is_refused():
    model = tiny.new_model("olmoe")
    block = model.model.layers[1].mlp
    block.__class__ = type("Direct", (type(block),), {"__call__": type(block).forward})
    with pytest.raises(BadInput, match="Direct of layer 1 is not run as a module"):
        loss_of(model, 1)


def test_loss_that_is_not_a_number_is_an_error_not_a_choice():
    model = tiny.new_model("olmoe")
    with torch.no_grad():
        model.model.layers[1].mlp.experts.down_proj[3] = torch.nan
    with pytest.raises(ValueError, match="layer 1"):
        loss_of(model, 1)(ALL)


def test_numbers_among_the_kept_become_numbers_among_all_and_those_beyond_stay_beyond():
    assert whole_numbers(torch.tensor([[0, 2], [1, 3]]), (1, 4, 6), 8).tolist() == [[1, 6], [4, 8]]


def test_select_tells_progress_each_layer_and_the_log_its_loss(caplog):
    model, told = tiny.shared_model("gpt_oss"), []
    with caplog.at_level(logging.INFO, "moeprune"):
        found = find("reconstruction").select(
            model, read_plan(model.config), {"all": CORPUS}, KEEP, read_routing(model.config), told.append
        )
    assert told == [1, 1]
    for layer, (table, row) in enumerate(zip(losses("gpt_oss", "layerwise").values(), found.tolist(), strict=True)):
        message = caplog.messages[layer]
        assert f"layer {layer}: loss {table[tuple(row)]:.4g}"[:-1] in message
        assert "the least of 28 by exhaustive search" in message


def test_select_without_corpora_or_with_senseless_numbers_is_refused():
    model = tiny.shared_model("olmoe")
    plan, routing = read_plan(model.config), read_routing(model.config)
    with pytest.raises(BadInput, match=r"calibrate\.corpora"):
        select(model, plan, {}, KEEP, routing, lambda _: None)
    for options in ({"subsets": 0}, {"tokens": -1}):
        with pytest.raises(BadInput, match=r"mask\.options"):
            run("olmoe", **options)
