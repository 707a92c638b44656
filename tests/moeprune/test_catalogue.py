"""The table of criteria and rules: complete, and the page in docs made from it."""

import subprocess
import sys
from pathlib import Path

import pytest

from moeprune import criteria, selection
from moeprune.catalogue import Entry, catalogue, markdown

ENTRIES = {entry.word: entry for entry in catalogue()}
PAGE = Path(__file__).parents[2] / "docs" / "criteria.md"


def test_catalogue_lists_every_file_of_both_folders():
    listed = {
        kind: [entry.word for entry in ENTRIES.values() if entry.kind == kind] for kind in ("criterion", "selection")
    }
    assert listed == {"criterion": criteria.words(), "selection": selection.words()}


@pytest.mark.parametrize("word", ENTRIES)
def test_catalogue_entry_has_all_fields(word):
    entry = ENTRIES[word]
    assert entry.formula and all(entry.formula), "the first indented block of the docstring is the formula"
    assert entry.needs and entry.paper
    assert entry.good_for, "a paragraph of the docstring begins with 'Good for'"
    assert "arXiv" in entry.paper or "no paper" in entry.paper


def test_catalogue_reads_signatures_constants_and_docstrings():
    assert ENTRIES["reap"] == Entry(
        word="reap",
        kind="criterion",
        formula=("S[l, e] = sum_t g_t n_t / N",),
        options={},
        needs="sums: core",
        paper="REAP: router-weighted expert activation pruning (Lasby et al. 2025, arXiv:2510.13999, Eq. 9).",
        good_for=ENTRIES["reap"].good_for,
    )
    assert {word: ENTRIES[word].needs for word in ("aimer", "mone", "uniform_random", "hope", "tb_coverage")} == {
        "aimer": "weights",
        "mone": "sums: core + vectors",
        "uniform_random": "nothing",
        "hope": "sums: core + pairs",
        "tb_coverage": "scores of each corpus, what another rule keeps, if asked to",
    }
    assert ENTRIES["router_weight_norm"].needs == "weights of the router"
    assert ENTRIES["mone"].options == {"frequency": "mean"}
    assert len(ENTRIES["hope"].formula) == 2


def test_catalogue_markdown_has_a_row_of_six_cells_for_each_word():
    rows = [line for line in markdown(list(ENTRIES.values())).splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(ENTRIES)
    assert all(row.replace("\\|", "").count("|") == 7 for row in rows)
    assert "[2510.13999](https://arxiv.org/abs/2510.13999)" in "".join(rows)


def test_catalogue_page_in_docs_is_up_to_date():
    command = [sys.executable, "-m", "moeprune.catalogue"]
    made = subprocess.run(command, cwd=PAGE.parents[1], capture_output=True, text=True, check=True).stdout
    assert PAGE.read_text() == made, "run: python -m moeprune.catalogue > docs/criteria.md"
