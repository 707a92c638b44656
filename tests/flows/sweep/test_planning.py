"""Plans of sweeps, and sweeps that are refused before any work."""

import pytest
import sample
from sweeps import GRID, counts, grid


def test_plan_of_a_sweep_counts_what_is_shared_and_runs_nothing(project, moeprune):
    grid(
        sample.EVALUATE | {"tasks": []},
        score={"criterion": ["reap", "frequency", "aimer"]},
        mask={"ratio": [0.25, 0.5]},
        calibrate={"seed": [0, 1]},
    )
    found = counts(moeprune("plan", GRID))
    # 3 criteria x 2 ratios x 2 seeds. aimer needs no corpus, so that its recipes are the same for both seeds.
    assert found == {
        "download": [12, 1, 0, 1],
        "calibrate": [16, 4, 0, 4],
        "observe": [16, 4, 0, 4],
        "score": [12, 5, 0, 5],
        "mask": [12, 10, 0, 10],
        "prune": [12, 10, 0, 10],
        "evaluate": [24, 11, 0, 11],
        "all": [104, 45, 0, 45],
    }
    assert not [path for path in (project / ".moeprune").iterdir() if path.name in ("download", "calibrate", "mlruns")]


def test_plan_of_a_sweep_says_what_the_store_has(done, moeprune):
    grid(sample.EVALUATE, mask={"ratio": [0.25, 0.5, 0.5]}, score={"criterion": ["reap", "frequency"]})
    answer = moeprune("plan", GRID)
    # `done` has one of these four recipes: reap at 25%.
    assert counts(answer) == {
        "download": [4, 1, 1, 0],
        "calibrate": [8, 2, 2, 0],
        "observe": [8, 2, 2, 0],
        "score": [4, 2, 1, 1],
        "mask": [4, 4, 1, 3],
        "prune": [4, 4, 1, 3],
        "evaluate": [8, 5, 2, 3],
        "all": [40, 20, 10, 10],
    }
    assert "listed twice and run once: 2 of 6 recipes" in answer.out


def test_plan_of_a_file_with_single_values_is_that_of_a_run(done, moeprune):
    assert "would" in moeprune("plan", "params/whole.yaml").out


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"mask": {"ratio": [0.25, 1.5]}}, "grid.yaml, recipe 2 of 2: mask.ratio"),
        ({"mask": {"keep": [6, 1], "ratio": None}}, "recipe 2 of 2 (reap, to 1): mask.keep"),
        ({"mask": {"ratio": []}}, "no recipe"),
        ({"runtime": {"store": ["one", "two"]}}, "one store, not one and two"),
    ],
    ids=["value", "request", "none", "stores"],
)
def test_sweep_with_one_bad_recipe_is_refused_before_any_work(sections, words, project, moeprune):
    grid(**sections)
    answer = moeprune("sweep", GRID)
    assert answer.status == 2 and words in answer.err and len(answer.err.splitlines()) == 1
    assert not list((project / ".moeprune").glob("download/*"))


def test_sweep_table_without_a_place_is_refused_before_any_work(project, moeprune):
    grid(mask={"ratio": [0.25, 0.5]})
    answer = moeprune("sweep", GRID, "--table", "README.md")
    assert answer.status == 2 and "sweep:begin" in answer.err
    assert moeprune("sweep", GRID, "--max-parallel", "0").status == 2
