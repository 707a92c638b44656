"""The recipes of params/papers: complete, pinned, and saying what their papers say."""

import re
from pathlib import Path

import pytest

from flows.recipe import Recipe, read_recipe
from moeprune.corpus import SUFFIXES
from tasks import harness
from tasks.calibrate import HUB_FILE
from tasks.suites import SUITES, TASKS

FOLDER = Path(__file__).parents[2] / "params" / "papers"
PATHS = sorted(FOLDER.glob("*.yaml"))


def recipe(name: str) -> Recipe:
    return read_recipe(FOLDER / f"{name}.yaml")


def tokens(name: str) -> int:
    found = recipe(name).calibrate
    assert found is not None
    return found.tokens


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_paper_recipe_is_whole_and_its_sources_can_be_read(path: Path):
    found = read_recipe(path)
    assert found.calibrate and found.evaluate
    for corpus in (*found.calibrate.corpora, *found.evaluate.corpora):
        place = HUB_FILE.fullmatch(corpus.source)
        assert place and re.fullmatch("[0-9a-f]{40}", place["revision"]), f"{corpus.source}: name a commit"
        assert place["path"].endswith(SUFFIXES), f"{corpus.source}: not a kind of file that is read"
    assert set(found.evaluate.tasks) <= SUITES.keys() | TASKS.keys()
    harness.check(found.evaluate, False)  # nothing that runs code or writes beyond the length
    assert found.calibrate.tokens % found.calibrate.sequence_length == 0


def test_paper_recipes_are_of_the_sizes_stated():
    assert 0.45e6 < tokens("olmoe-man-c4") < 0.55e6
    assert tokens("qwen1.5-moe-tb-coverage") == 512 * 1024
    assert tokens("mixtral-naee-c4") == tokens("mixtral-moe-pruner-c4") == 128 * 2048
    assert tokens("qwen3-30b-reap-code") == tokens("qwen3-30b-reap-mixture") == 1024 * 2048


def test_paper_recipe_of_tb_coverage_has_wikitext_first():
    found = recipe("qwen1.5-moe-tb-coverage")
    assert found.calibrate is not None
    assert [corpus.name for corpus in found.calibrate.corpora] == ["wikitext2", "c4"]
    assert found.mask.options == {"protected": 20, "fill": "mean-score"}


def test_paper_recipe_comments_name_only_changes_that_can_be_set():
    for path in PATHS:
        for quoted, plain in re.findall(r"--set (?:'([^']+)'|([^\s;,]+))", path.read_text()):
            read_recipe(path, (quoted or plain.rstrip(".:)"),))
