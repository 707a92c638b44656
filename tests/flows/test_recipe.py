"""Recipes: changes from the command line, and sweeps."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from flows.audit.recipe import read_audit
from flows.recipe import expand, parse_recipe, read_recipe, read_yaml, to_yaml
from flows.sweep.rows import Row, told_apart, without_seeds
from moeprune.errors import BadInput
from tasks.mask import BUDGETS

PARAMS = Path(__file__).parents[2] / "params"
BASE = {
    "download": {"source": "model"},
    "calibrate": {"corpora": [{"name": "wiki", "source": "a"}, {"name": "code", "source": "b"}]},
    "mask": {"ratio": 0.25},
}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return path


def test_read_recipe_changes_are_yaml_values(recipe):
    changes = ("calibrate.seed=3", "score.options={b: 0}", "score.criterion=unified", "observe.sums=[pairs]")
    read = read_recipe(recipe, changes)
    assert (read.calibrate.seed, read.score.options, read.score.criterion) == (3, {"b": 0}, "unified")
    assert read.observe.sums == ("core", "pairs")


@pytest.mark.parametrize("change", ["mask.keep=4", "mask.bytes=9MB", "mask.ratio=0.5"])
def test_read_recipe_another_budget_takes_the_place_of_the_first(change: str, recipe):
    budget = {name: getattr(read_recipe(recipe, (change,)).mask, name) for name in BUDGETS}
    given = {"mask.keep=4": ("keep", 4), "mask.bytes=9MB": ("bytes", 9_000_000), "mask.ratio=0.5": ("ratio", 0.5)}
    assert {name: value for name, value in budget.items() if value is not None} == dict([given[change]])


def test_to_yaml_is_the_same_recipe_with_every_default(recipe):
    read = read_recipe(recipe)
    written = yaml.safe_load(to_yaml(read))
    assert parse_recipe(written, "again") == read
    assert written["observe"]["sums"] == ["core", "vectors"] and written["runtime"]["batch_size"] == 16


def test_to_yaml_leaves_the_store_to_whoever_reads_it(recipe, monkeypatch):
    monkeypatch.setenv("MOEPRUNE_STORE", "/theirs")
    written = [to_yaml(read_recipe(recipe)), to_yaml(read_recipe(recipe, ("runtime.store=/theirs",)))]
    assert written[0] == written[1] and "theirs" not in written[0]
    monkeypatch.setenv("MOEPRUNE_STORE", "ours")
    assert parse_recipe(yaml.safe_load(written[0]), "again").runtime.store == Path("ours")


@pytest.mark.parametrize("path", sorted(PARAMS.glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_that_come_with_the_project_are_valid(path):
    if path.name.startswith("audit"):
        assert read_audit(path)
    else:
        assert [parse_recipe(one, path.name) for one in expand(read_yaml(path))]


def test_expand_recipe_without_lists_is_one():
    assert list(expand(BASE)) == [BASE]


def test_expand_lists_of_values_are_every_combination_and_corpora_stay_together():
    content = BASE | {"mask": {"ratio": [0.25, 0.5]}, "score": {"criterion": ["reap", "frequency", "ean"]}}
    found = [(one["mask"]["ratio"], one["score"]["criterion"]) for one in expand(content)]
    assert sorted(found) == sorted((r, c) for r in (0.25, 0.5) for c in ("reap", "frequency", "ean"))
    assert all(one["calibrate"] == BASE["calibrate"] for one in expand(content))
    assert all(parse_recipe(one, "sweep") for one in expand(content))


def test_expand_list_of_sections_with_a_list_inside():
    content = BASE | {
        "score": [{"criterion": "reap"}, {"criterion": "uniform_random", "options": {"seed": [0, 1]}}],
    }
    assert [one["score"] for one in expand(content)] == [
        {"criterion": "reap"},
        {"criterion": "uniform_random", "options": {"seed": 0}},
        {"criterion": "uniform_random", "options": {"seed": 1}},
    ]


def test_expand_lists_that_a_recipe_has_anyway_are_no_axes():
    content = BASE | {"observe": {"sums": ["core", "pairs"]}, "evaluate": {"tasks": ["arc_easy", "piqa"]}}
    assert len(list(expand(content))) == 1


def test_expand_variants_change_sections_together_and_a_budget_takes_the_place_of_another():
    content = BASE | {
        "score": {"criterion": "reap", "combine": "mean"},
        "mask": {"ratio": [0.25, 0.5]},
        "variants": [
            {},
            {"score": {"criterion": ["man", "ean"]}},
            {"score": {"criterion": "wanda"}, "mask": {"sparsity": "2:4"}},
        ],
    }
    found = [(one["score"], one["mask"]) for one in expand(content)]
    assert found == [
        *(({"criterion": "reap", "combine": "mean"}, {"ratio": ratio}) for ratio in (0.25, 0.5)),
        *(({"criterion": c, "combine": "mean"}, {"ratio": ratio}) for ratio in (0.25, 0.5) for c in ("man", "ean")),
        ({"criterion": "wanda", "combine": "mean"}, {"sparsity": "2:4"}),
    ]
    assert not any("variants" in one for one in expand(content))


def test_read_recipe_sparsity_takes_the_place_of_a_ratio(recipe):
    changes = ("mask.sparsity=0.5", "score.criterion=wanda", "observe.sums=[inputs]")
    read = read_recipe(recipe, changes)
    assert read.mask.ratio is None and read.mask.sparsity == 0.5 and read.sparse


@pytest.mark.parametrize("variants", [None, {"score": {}}, [None], ["wanda"]], ids=str)
def test_expand_variants_that_are_no_list_of_sections_are_refused(variants):
    with pytest.raises(BadInput, match="variants: give a list of sections"):
        list(expand(BASE | {"variants": variants}))


def test_table_of_a_sweep_tells_recipes_apart_that_differ_in_more_than_seeds():
    def row(**score: object) -> Row:
        recipe = parse_recipe(BASE | {"score": {"criterion": "reap", **score}}, "sweep")
        delta = {"log_perplexity/wiki": {"value": 0.1, "stderr": 0.01, "n": 3}}
        return Row("25%", recipe.method, without_seeds(recipe), False, delta, 1, 1, 1.0, 1)

    seeds = [
        parse_recipe(BASE | {"score": {"criterion": "uniform_random", "options": {"seed": s}}}, "") for s in (0, 1)
    ]
    assert without_seeds(seeds[0]) == without_seeds(seeds[1])
    alike = told_apart([row(), row()])
    assert [found.method for found in alike] == ["reap", "reap"]
    corpora = parse_recipe(BASE | {"calibrate": BASE["calibrate"] | {"tokens": 64}}, "sweep")
    other = replace(row(), recipe=without_seeds(corpora))
    assert [found.method for found in told_apart([row(), other])] == [
        "reap calibrate.tokens=32768",
        "reap calibrate.tokens=64",
    ]
