"""Rules of promotion, judged on differences whose intervals are worked out by other means."""

import math
from itertools import product

import pytest
from scipy import stats

from flows.recipe import parse_recipe
from moeprune.errors import BadInput
from tasks.gate import PromoteParams, judge
from tasks.suites import headlines


def rules(**fields) -> PromoteParams:
    return PromoteParams.model_validate(fields)


def paired(differences: list[float]) -> dict[str, float]:
    """A mean of differences, as `comparison.compare` gives it."""
    n = len(differences)
    mean = sum(differences) / n
    spread = sum((one - mean) ** 2 for one in differences) / (n - 1)
    return {"value": mean, "stderr": math.sqrt(spread / n), "n": n}


def answers(worse: int, better: int, alike: int) -> dict[str, float]:
    """Questions that only the base, only the model, or both or neither of them answer right."""
    return paired([-1.0] * worse + [1.0] * better + [0.0] * alike)


def test_perplexity_is_judged_at_the_far_end_of_its_interval_and_as_a_ratio():
    # 21 documents: log ratio 0.05 +- 2.086 * 0.02, so at worst exp(0.09172) - 1 = 9.6%
    found = {"log_perplexity/wiki": {"value": 0.05, "stderr": 0.02, "n": 21}}
    (verdict,) = judge(rules(perplexity={"wiki": 0.10}), found)
    worst = math.exp(0.05 + stats.t.ppf(0.975, 20) * 0.02) - 1
    assert verdict.loss == pytest.approx(math.exp(0.05) - 1) and verdict.worst == pytest.approx(worst, rel=1e-3)
    assert (verdict.metric, verdict.n, verdict.holds) == ("perplexity/wiki", 21, True)
    (strict,) = judge(rules(perplexity={"wiki": 0.09}), found)
    (lax,) = judge(rules(perplexity={"wiki": 0.09}, judge="value"), found)
    (narrow,) = judge(rules(perplexity={"wiki": 0.09}, level=0.9), found)
    assert (strict.holds, lax.holds, narrow.holds) == (False, True, True)


def test_a_gain_never_breaks_a_rule_though_its_interval_may():
    found = {"log_perplexity/wiki": {"value": -0.01, "stderr": 0.02, "n": 100}, "choice/acc": answers(10, 15, 75)}
    promote = {"perplexity": {"wiki": 0}, "accuracy": {"choice/acc": 0}}
    assert [one.holds for one in judge(rules(**promote, judge="value"), found)] == [True, True]
    assert [one.holds for one in judge(rules(**promote), found)] == [False, False]


@pytest.mark.parametrize(("worse", "better", "alike"), [(12, 4, 84), (0, 0, 20), (0, 3, 400), (30, 30, 0)])
def test_accuracy_has_the_interval_of_a_table_with_half_a_pair_more_in_each_cell(worse: int, better: int, alike: int):
    n = worse + better + alike + 2
    lost, won = (worse + 0.5) / n, (better + 0.5) / n
    # Wald's interval of the difference of two dependent proportions (Agresti & Min 2005), with t in place of z
    error = math.sqrt((lost + won - (lost - won) ** 2) / n)
    worst = lost - won + stats.t.ppf(0.975, n - 3) * error
    (verdict,) = judge(rules(accuracy={"choice/acc": 0.01}), {"choice/acc": answers(worse, better, alike)})
    assert verdict.loss == pytest.approx((worse - better) / (n - 2), abs=1e-12)
    assert verdict.worst == pytest.approx(worst, rel=1e-3)


def test_few_questions_answered_alike_prove_nothing_and_many_do():
    few, many = ({"choice/acc": answers(0, 0, n)} for n in (20, 2000))
    assert not judge(rules(accuracy={"choice/acc": 0.01}), few)[0].holds
    assert judge(rules(accuracy={"choice/acc": 0.01}), many)[0].holds
    assert judge(rules(accuracy={"choice/acc": 0.01}, judge="value"), few)[0].holds


@pytest.mark.parametrize("n", [1, 5])
def test_too_few_pairs_have_no_interval_and_do_not_pass(n: int):
    found = {"log_perplexity/wiki": {"value": -1.0, "stderr": 0.1 if n > 1 else None, "n": n}}
    (verdict,) = judge(rules(perplexity={"wiki": 0.1}), found)
    assert verdict.worst is None and not verdict.holds


def test_suite_is_judged_by_the_errors_of_its_tasks():
    names = headlines(["zero-shot-eight"])["zero-shot-eight"]
    found = {name: answers(0, 0, 50) for name in names} | {
        "suite/zero-shot-eight": {"value": 0.0, "stderr": 0.0, "n": 400}
    }
    (verdict,) = judge(rules(accuracy={"suite/zero-shot-eight": 0.01}), found)
    error = math.sqrt(len(names) * (1 / 52) / 52) / len(names)  # of each (0.5 + 0.5) / 52, over 52
    assert verdict.worst == pytest.approx(stats.t.ppf(0.975, 399) * error, rel=1e-3) and verdict.loss == 0


def test_interval_is_passed_by_a_model_at_the_limit_as_seldom_as_it_says():
    # Every outcome of 40 questions of which a model at the limit loses 0.1 net: 15% worse, 5% better.
    n, lost, won = 40, 0.15, 0.05
    passed = 0.0
    for worse, better in product(range(n + 1), repeat=2):
        if worse + better <= n:
            share = stats.multinomial.pmf([worse, better, n - worse - better], n, [lost, won, 1 - lost - won])
            verdict = judge(
                rules(accuracy={"a/acc": lost - won}), {"a/acc": answers(worse, better, n - worse - better)}
            )[0]
            passed += share * verdict.holds
    assert 0.005 < passed < 0.04  # 0.025 by name


CONTENT = {
    "download": {"source": "model"},
    "score": {"criterion": "aimer"},
    "mask": {"ratio": 0.25},
    "evaluate": {"corpora": [{"name": "wiki", "source": "a"}]},
}


@pytest.mark.parametrize(
    ("promote", "words"),
    [
        ({}, "promote: without a rule nothing is judged"),
        ({"perplexity": {"wiki": -0.1}}, "promote.perplexity.wiki: -0.1 is no limit"),
        ({"perplexity": {"wikki": 0.1}}, "promote.perplexity: corpus 'wikki' is unknown: did you mean 'wiki'?"),
        ({"accuracy": {"choice/acc": 0.1}}, "promote.accuracy: no questions are asked: add evaluate.tasks"),
        ({"accuracy": {"bits_per_byte/wiki": 0.1}}, "promote.accuracy: of bits_per_byte/wiki less is better"),
        ({"accuracy": {"log_perplexity/wiki": 0.1}}, "promote.accuracy: of log_perplexity/wiki less is better"),
        ({"accuracy": {"perplexity/wiki": 0.1}}, "promote.accuracy: of perplexity/wiki less is better"),
        ({"accuracy": {"choice/acc": 1}}, "promote.accuracy.choice/acc: 1.0 forbids nothing"),
        ({"perplexity": {"wiki": 0.1}, "judge": "mean"}, "promote.judge"),
        ({"perplexity": {"wiki": 0.1}, "levle": 0.9}, "promote.levle: key 'levle' is unknown: did you mean 'level'?"),
        ({"perplexity": {"wiki": 0.1}, "model": "a/b"}, "promote.model"),
    ],
)
def test_recipe_whose_rules_cannot_be_judged_is_refused_in_one_line(promote: dict, words: str):
    with pytest.raises(BadInput) as caught:
        parse_recipe(CONTENT | {"promote": promote}, "recipe")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_accuracy_of_which_its_task_says_that_less_is_better_is_refused():
    found, given = {"own/mse": answers(1, 2, 30)}, rules(accuracy={"own/mse": 0.1})
    assert judge(given, found, {"other/mse"})
    with pytest.raises(BadInput, match=r"^promote.accuracy: of own/mse less is better"):
        judge(given, found, {"own/mse"})


def test_recipe_with_rules_that_measures_nothing_is_refused():
    with pytest.raises(BadInput, match=r"^recipe: promote: its rules need measurements: add the section evaluate$"):
        parse_recipe(CONTENT | {"promote": {"perplexity": {"wiki": 0.1}}, "evaluate": None}, "recipe")


def test_rule_about_what_was_not_measured_names_what_was():
    found = {"choice/acc": answers(1, 2, 30), "log_perplexity/code": {"value": 0, "stderr": 0, "n": 9}}
    with pytest.raises(BadInput, match=r"'choice/acc_nrom' was not measured: the run has choice/acc, perplexity/code$"):
        judge(rules(accuracy={"choice/acc_nrom": 0.1}), found)
