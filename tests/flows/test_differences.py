"""Which differences are told: one metric a task, and no question twice."""

import json
from pathlib import Path

import pytest

from flows.differences import headline, label, pooled
from tasks.comparison import REPORT


def told(*names: str, groups: dict[str, list[str]] | None = None) -> list[str]:
    return list(headline({name: {"value": 0.0, "stderr": None} for name in names}, groups or {}))


def test_headline_has_every_corpus_once_and_one_accuracy_of_a_task():
    names = ["log_perplexity/law", "bits_per_byte/law", "quiz/acc", "quiz/acc_norm", "suite/maths", "quiz/brier"]
    assert told(*names) == ["log_perplexity/law", "quiz/acc"]


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["arc_easy/acc", "arc_easy/acc_norm"], "arc_easy/acc_norm"),  # as the suites have it
        (["rte/acc_norm", "rte/acc"], "rte/acc"),
        (
            ["gsm8k/exact_match_strict_match", "gsm8k/exact_match_flexible_extract"],
            "gsm8k/exact_match_flexible_extract",
        ),
        (["other/exact_match_b", "other/exact_match_a"], "other/exact_match_a"),
        (["humaneval/pass_at_1"], "humaneval/pass_at_1"),
        (["mine/acc_norm"], "mine/acc_norm"),
    ],
)
def test_headline_of_a_task_is_the_one_of_its_suites_else_the_plainest(names: list[str], kept: str):
    assert told(*names) == [kept]


def test_headline_of_a_group_that_pools_questions_leaves_its_members_out():
    stem, arts = ["mmlu_physics/acc", "mmlu_logic/acc"], ["mmlu_law/acc"]
    groups = {"mmlu_stem/acc": stem, "mmlu_arts/acc": arts, "mmlu/acc": [*stem, *arts]}
    assert told("alone/acc", *stem, *arts, *groups, groups=groups) == ["alone/acc", "mmlu/acc"]
    assert told(*stem, *arts) == [*stem, *arts]  # nobody has pooled them


def test_headline_of_groups_that_share_a_task_keeps_both():
    groups = {"one/acc": ["a/acc", "b/acc"], "two/acc": ["b/acc", "c/acc"]}
    assert told("a/acc", "b/acc", "c/acc", *groups, groups=groups) == ["one/acc", "two/acc"]


def test_label_names_the_metric_where_it_is_not_plain_accuracy():
    assert [label(name) for name in ("log_perplexity/law", "quiz/acc", "arc_easy/acc_norm")] == [
        "law", "quiz", "arc_easy/acc_norm",
    ]  # fmt: skip


def test_pooled_is_read_from_a_report(tmp_path: Path):
    (tmp_path / REPORT).write_text(json.dumps({"pooled": {"mmlu/acc": ["mmlu_law/acc"]}}))
    assert pooled(tmp_path) == {"mmlu/acc": ["mmlu_law/acc"]}
