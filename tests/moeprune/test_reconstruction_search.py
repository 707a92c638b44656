"""Which experts a search keeps, against the best of all by brute force and an obvious greedy loop."""

import logging
from itertools import combinations

import pytest
import tiny
import torch
from observed import corpus_of
from reconstructed import ALL, CORPUS, KEEP, SEQUENCES, admissible, brute_force, forms, losses, routings

from moeprune.configs import read_routing
from moeprune.corpus import Corpus
from moeprune.errors import BadInput
from moeprune.reconstruction import batches
from moeprune.routing import Routing
from moeprune.schema import read_plan
from moeprune.selection import find
from moeprune.selection.reconstruction import best, select


def run(family: str, keep: int = KEEP, corpora: dict[str, Corpus] | None = None, **options) -> list[list[int]]:
    model = tiny.shared_model(family)
    plan, routing = read_plan(model.config), read_routing(model.config)
    return select(model, plan, corpora or {"all": CORPUS}, keep, routing, lambda _: None, **options).tolist()


@routings
@forms
def test_exhaustive_search_finds_the_brute_force_minimum(family, form):
    expected = [min(table, key=table.get) for table in losses(family, form).values()]
    assert run(family, form=form) == [list(kept) for kept in expected], "auto is exhaustive for so few subsets"


def test_corpus_names_the_one_that_is_used():
    corpora = {"a": CORPUS, "b": corpus_of(tiny.token_ids(30, seed=9), [0])}
    alone = [run("olmoe", 4, {name: corpus}, search="greedy") for name, corpus in corpora.items()]
    assert alone[0] != alone[1], "the corpora ask for the same experts: the comparison shows nothing"
    assert [run("olmoe", 4, corpora, corpus=name, search="greedy") for name in corpora] == alone
    both = corpus_of([*SEQUENCES, *tiny.token_ids(30, seed=9)], [0, 0, 1])
    assert run("olmoe", 4, corpora, search="greedy") == run("olmoe", 4, {"both": both}, search="greedy")
    with pytest.raises(BadInput, match="did you mean"):
        run("olmoe", corpora=corpora, corpus="c")


@pytest.mark.parametrize("chunks", [[0, 0], [0, 1]])
def test_tokens_limits_each_corpus_to_its_first_tokens(chunks):
    def content(corpora: list[Corpus], tokens: int = 0) -> list[tuple[list[int], list[int]]]:
        return [(ids[mask.bool()].tolist(), mask.sum(1).tolist()) for ids, mask in batches(corpora, tokens)]

    other = corpus_of([SEQUENCES[1]], [0])
    whole = [corpus_of(SEQUENCES, chunks), other]
    cut = [corpus_of([SEQUENCES[0], SEQUENCES[1][:3]], chunks), other]
    assert content(whole, 17) == content(cut)
    assert content(whole, 14) == content([corpus_of([SEQUENCES[0]], [0]), other]), "no block without a token"
    assert run("olmoe", corpora={"all": whole[0]}, tokens=17) == run("olmoe", corpora={"all": cut[0]})


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


def test_sampled_keeps_the_best_of_what_its_seed_draws():
    for seed in range(4):
        tried: dict[tuple[int, ...], float] = {}

        def loss(kept: tuple[int, ...], tried: dict[tuple[int, ...], float] = tried) -> float:
            tried[kept] = abs(sum(kept) - 17.25)
            return tried[kept]

        found = best(loss, Routing(8, 2), 4, "sampled", 20, torch.Generator().manual_seed(seed))
        assert 10 < len(tried) <= 20 and found.loss == tried[found.kept] == min(tried.values())


def test_sampled_is_the_same_for_a_seed():
    drawn = {seed: run("olmoe", search="sampled", subsets=4, seed=seed) for seed in range(6)}
    for seed, rows in drawn.items():
        assert run("olmoe", search="sampled", subsets=4, seed=seed) == rows
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
    with pytest.raises(BadInput, match="the nearest that work are 6 and 8"):
        run("deepseek_v3", keep=7)


@routings
@forms
def test_select_leaves_the_model_exactly_as_it_was(family, form):
    model = tiny.new_model(family)
    ids = torch.stack(tiny.token_ids(20))
    before = tiny.logits(model, ids)
    tensors = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    plan, routing = read_plan(model.config), read_routing(model.config)
    options = {"form": form, "search": "sampled", "subsets": 5}
    found = [select(model, plan, {"all": CORPUS}, 4, routing, lambda _: None, **options) for _ in range(2)]
    assert torch.equal(*found)
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == tensors[name][0] and torch.equal(tensor, tensors[name][1]), name
    assert torch.equal(tiny.logits(model, ids), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


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
