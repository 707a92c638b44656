"""What holds for any criterion, and so for every file of the folder; and how a criterion is found."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from observed import observed
from torch import Tensor

from moeprune import criteria
from moeprune.errors import BadInput
from moeprune.statistics import GROUPS, Statistics

FOUND = {word: criteria.find(word) for word in criteria.words()}
OF_SUMS = [word for word, found in FOUND.items() if found.reads == "statistics"]


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
    with pytest.raises(BadInput, match=r"score\.options\.frequency 'summ' is unknown: did you mean 'sum'"):
        criteria.find("mone").options({"frequency": "summ"})


OWN = """
from typing import Literal

from moeprune.criteria import unified

SUMS = ("vectors",)


def score(statistics, *, c=1, keep: Literal["much", "little"] = "much"):
    "Mine; higher = keep."
    return unified.score(statistics, c=c) * {"much": 1, "little": -1}[keep]
"""


def test_criterion_of_a_folder_of_ones_own_is_found_by_its_word(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(OWN)
    with pytest.raises(BadInput, match="'mine' is unknown"):
        criteria.find("mine")
    monkeypatch.setattr(criteria, "__path__", [*criteria.__path__, str(tmp_path)])
    assert "mine" in criteria.words() and "reap" in criteria.words()
    found = criteria.find("mine")
    assert (found.reads, found.sums, found.module) == ("statistics", ("vectors",), "moeprune.criteria.mine")
    assert found.options({"keep": "little"}) == {"c": 1, "keep": "little"}
    with pytest.raises(BadInput, match="did you mean 'little'"):
        found.options({"keep": "litle"})
    with pytest.raises(BadInput, match="not of type int"):
        found.options({"c": 1.5})
    statistics = observed("olmoe").statistics
    assert torch.equal(found.score(statistics, keep="little"), -FOUND["reap"].score(statistics))


def test_criterion_folders_are_named_by_an_environment_variable(tmp_path):
    for folder, word in (("one", "mine"), ("two", "reap"), ("two", "yours")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{word}.py").write_text(OWN)
    code = (
        "from moeprune import criteria\nfrom importlib.util import find_spec\n"
        "print(criteria.find('mine').defaults, 'yours' in criteria.words(), criteria.find('reap').sums)\n"
        "print(find_spec('moeprune.criteria.yours').origin)"
    )
    folders = os.pathsep.join([str(tmp_path / "one"), "two"])
    environment = os.environ | {"MOEPRUNE_CRITERIA": folders, "PYTHONPATH": str(Path(criteria.__file__).parents[2])}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines() == [
        "{'c': 1, 'keep': 'much'} True ()",  # a word of the package stays the package's
        str(tmp_path / "two" / "yours.py"),
    ]


def test_criterion_names_the_sums_it_needs_beside_core():
    given = observed("olmoe").statistics
    for word in OF_SUMS:
        needed = {name for group in ("core", *FOUND[word].sums) for name in GROUPS[group]}
        FOUND[word].score(replace(given, sums={name: given.sums[name] for name in needed}))
        core = {name: given.sums[name] for name in GROUPS["core"]}
        if FOUND[word].sums:
            with pytest.raises(BadInput, match=f"add '{FOUND[word].sums[0]}' to observe.sums"):
                FOUND[word].score(replace(given, sums=core))
    assert FOUND["mone"].sums == ("vectors",) and FOUND["reap"].sums == ()


def permuted(statistics: Statistics, order: Tensor) -> Statistics:
    """The same observation of a model whose experts are numbered in another order."""
    experts_last = {"probability", "easy_ep", "max_activation", "max_abs_activation"}

    def moved(name: str, value: Tensor) -> Tensor:
        if name.startswith("pair_"):
            return value[:, order][:, :, order]
        if name not in experts_last and value.shape[1] != tiny.EXPERTS:  # of a layer, not of its experts
            return value
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


@pytest.mark.parametrize("word", OF_SUMS)
def test_statistics_criterion_permuting_experts_permutes_scores(word):
    statistics = observed("deepseek_v3").statistics
    plain, moved = FOUND[word].score(statistics), FOUND[word].score(permuted(statistics, ORDER))
    torch.testing.assert_close(moved, plain[:, ORDER], rtol=1e-12, atol=0)
    assert not torch.allclose(moved, plain)


@pytest.mark.parametrize("word", [*OF_SUMS, "uniform_random"])
def test_criterion_gives_a_finite_number_for_each_expert(word):
    given = (2, tiny.EXPERTS) if FOUND[word].reads == "shape" else observed("olmoe").statistics
    scores = FOUND[word].score(given)
    assert scores.shape == (2, tiny.EXPERTS) and scores.dtype == torch.float64
    assert scores.isfinite().all()


@pytest.mark.parametrize("word", OF_SUMS)
def test_statistics_criterion_expert_without_tokens_never_beats_all_others(word):
    statistics = observed("olmoe").statistics
    silent = torch.arange(tiny.EXPERTS) == 5
    emptied = Statistics(
        statistics.layer,
        statistics.tokens,
        statistics.count.masked_fill(silent, 0),
        statistics.moments.masked_fill(silent[:, None, None], 0),
        sums={
            "probability": statistics.sums["probability"],
            "easy_ep": statistics.sums["easy_ep"].masked_fill(silent, 0),
            "max_abs_activation": statistics.sums["max_abs_activation"].masked_fill(silent, -torch.inf),
            "output_sum": statistics.sums["output_sum"].masked_fill(silent[:, None], 0),
        },
    )
    scores = FOUND[word].score(emptied)
    assert not scores.isnan().any()
    assert torch.all(scores[:, 5] <= scores[:, ~silent].amin(1)), "a silent expert is pruned first"


@pytest.mark.parametrize("word", FOUND)
def test_criterion_says_what_it_reads_and_that_higher_is_kept(word):
    assert FOUND[word].reads in ("statistics", "experts", "router", "shape", "weight")
    assert "higher = keep" in FOUND[word].score.__doc__


def test_uniform_random_seed_decides():
    score = FOUND["uniform_random"].score
    assert torch.equal(score((4, 8), seed=1), score((4, 8), seed=1))
    assert not torch.equal(score((4, 8), seed=1), score((4, 8), seed=2))
    # 16000 experts: each quarter of [0, 1) gets a quarter of them, within five standard deviations
    quarters = torch.histc(score((1000, 16)).float(), bins=4, min=0, max=1) / 16000
    assert torch.all((quarters - 0.25).abs() < 5 * math.sqrt(0.25 * 0.75 / 16000))
