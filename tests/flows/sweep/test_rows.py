"""The rows of a sweep: what is one result and what are several, and beside which unpruned model."""

from collections import Counter
from typing import Any

import sample

from flows.outcome import Entry, Outcome, Record, Sweep
from flows.recipe import Recipe, parse_recipe
from flows.sweep.findings import methods_of
from flows.sweep.rows import rows_of
from flows.sweep.table import table_of
from tasks.artifacts import Artifact, Step


def recipe(**sections: Any) -> Recipe:
    words = sample.RECIPE.keys() | sections.keys()
    content = {word: sample.RECIPE.get(word, {}) | sections.get(word, {}) for word in words}
    return parse_recipe({"evaluate": {"tasks": []}} | content, "")


def entry(given: Recipe, kept: str, seconds: float = 1.0) -> Entry:
    """A recipe and its outcome, its stages keyed as the chain does; `kept` is the digest of its mask."""
    assert given.calibrate is not None and given.evaluate is not None
    found = Outcome("")

    def do(stage: str, of: str, params: Any, digest: str = "", **inputs: Artifact) -> Artifact:
        step = Step(stage, of, "", params, dict(inputs))
        assert step.key is not None
        made = Artifact(stage=stage, key=step.key, digest=digest or step.key)
        found.records.append(Record(step, made, "hit", 0.0, seconds))
        return made

    base = do("download", "", {"source": given.download.source})
    seen = do("observe", "", given.calibrate.model_dump(mode="json"), checkpoint=base)
    scores = do("score", "", given.score.model_dump(mode="json"), statistics=seen)
    mask = do("mask", "", given.mask.model_dump(mode="json"), digest=kept, scores=scores)
    models = {"base": base, "pruned": do("prune", "", {}, base=base, mask=mask)}
    if given.distill is not None:
        models["distilled"] = do("distill", "", given.distill.model_dump(mode="json"), pruned=models["pruned"], by=seen)
    params = given.evaluate.model_dump(mode="json")
    weights = 400 if given.evaluate.dtype == "float32" else 200
    for number, (of, model) in enumerate(models.items()):
        found.made.reports[of] = do("evaluate", of, params, checkpoint=model)
        found.memory[of] = {"weights": weights, "forward_peak_anonymous": 2 * weights}
        found.metrics[of] = {}
        if of != "base":
            values = {"log_perplexity/wiki": 0.1 * number, "bits_per_byte/wiki": 0.2, "big/acc": 0.3, "part/acc": 0.4}
            delta = {name: {"value": value, "stderr": 0.01, "n": 9} for name, value in values.items()}
            found.metrics["delta" if of == "pruned" else f"delta_{of}"] = delta
    found.pooled = {"big/acc": ["part/acc"]}
    return Entry(1, given, found)


def of(*entries: Entry) -> Sweep:
    return Sweep("demo", "", list(entries))


def test_recipes_whose_masks_are_equal_are_as_many_rows():
    drawn = [{"tokens": 256}, {"tokens": 512}, {"tokens": 256, "seed": 1}]
    rows = rows_of(of(*(entry(recipe(calibrate=one), "same") for one in drawn)))
    assert Counter(row.method for row in rows) == {"reap calibrate.tokens=256": 2, "reap calibrate.tokens=512": 1}


def test_seeds_with_equal_masks_all_count():
    sweep = of(*(entry(recipe(calibrate={"seed": seed}), "other" if seed == 4 else "same") for seed in range(5)))
    (method,) = methods_of(rows_of(sweep), None)
    assert len(method.rows) == 5
    (line,) = table_of(sweep)
    assert line["method"] == "reap (5 seeds)" and line["Δ ln ppl wiki"] == "+0.100 ± 0.000 s.d."


def test_model_that_several_recipes_have_on_their_way_is_one_row():
    sweep = of(entry(recipe(), "same"), entry(recipe(distill={}), "same"), entry(recipe(distill={"seed": 1}), "same"))
    assert Counter(row.method for row in rows_of(sweep)) == {"reap": 1, "reap, distilled": 2}


def test_rows_have_headline_metrics_only_and_no_task_of_a_group():
    (row,) = rows_of(of(entry(recipe(), "same")))
    assert list(row.delta) == ["log_perplexity/wiki", "big/acc"]


def test_rows_stand_beside_the_unpruned_model_of_their_own_recipe():
    halves = recipe(evaluate={"dtype": "bfloat16"})
    nothing = Entry(1, recipe(mask={"ratio": 0.5}).model_copy(update={"evaluate": None}), Outcome(""))
    rows = rows_of(of(nothing, entry(recipe(), "same"), entry(halves, "same")))
    assert [(row.base, row.dense, row.method) for row in rows] == [("float32", 400, "reap"), ("bfloat16", 200, "reap")]
    assert [line["model"] for line in table_of(of(entry(recipe(), "same"), entry(halves, "same")))] == [
        "bfloat16", "float32",
    ]  # fmt: skip
    assert [row.base for row in rows_of(of(nothing, entry(recipe(), "same")))] == [""]
    assert "model" not in table_of(of(entry(recipe(), "same")))[0]


def test_budgets_that_round_to_the_same_percent_are_two_and_stand_in_order():
    sweep = of(*(entry(recipe(mask={"ratio": ratio}), str(ratio)) for ratio in (0.25, 0.125, 0.12, 0.05)))
    assert [line["removed"] for line in table_of(sweep)] == ["5%", "12%", "12.5%", "25%"]
