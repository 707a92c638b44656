"""Runs beside one another: intervals, memory, recipes and masks, worked out by hand."""

import json
from pathlib import Path

import pytest
from recorded import lineage, stage
from scipy.stats import t

from flows.dashboard import comparing
from flows.dashboard.index import Entry
from flows.pages import Measured, Table
from flows.pages.points import Pareto
from moeprune.masks import Mask
from tasks.artifacts import Store
from tasks.tracking import Tracker

FIRST = {
    "base/acc": 0.5, "base/acc_stderr": 0.01, "base/memory/weights": 4e6,
    "pruned/acc": 0.4, "pruned/acc_stderr": 0.02, "pruned/memory/weights": 3e6,
    "pruned/perplexity/wiki": 20.0, "delta/log_perplexity/wiki": 0.25, "delta/log_perplexity/wiki_stderr": 0.05,
    "delta/q/acc": -0.1, "delta/q/acc_stderr": 0.02,
}  # fmt: skip
SECOND = FIRST | {"pruned/acc": 0.3, "pruned/memory/weights": 2e6}


def approx(value: float) -> object:
    """But for the error of an expansion of Student's quantile."""
    return pytest.approx(value, rel=1e-3)


WIKI, CODE = ({"name": name, "field": "text", "source": f"sha256 of {name}"} for name in ("wiki", "code"))
ASKED = {"limit": "40", "generations": "3", "corpora": json.dumps([WIKI]), "tasks.q.yaml": "digest"}


def entry(
    run: str, metrics: dict[str, float], ratio: str = "0.25", mask: str = "m", asked: dict[str, str] = ASKED
) -> Entry:
    counts = {"acc_n": 9, "perplexity/wiki_n": 13, "q/acc_n": 30}
    params = {"mask.ratio": ratio, "download.source": "model", "score.criterion": "reap"}
    stages = (
        stage("mask", mask),
        stage("evaluate", "b", "base", metrics={"acc_n": 6}),
        stage("evaluate", f"of {mask}", "pruned", metrics=counts, params=asked),
    )
    return Entry(lineage(run, *stages, params=params, metrics=metrics, method="reap"))


@pytest.fixture
def pair() -> list[Entry]:
    return [entry("a" * 32, FIRST), entry("b" * 32, SECOND, "0.5", "n")]


def test_measured_interval_is_students_of_as_many_documents_or_questions_as_were_evaluated():
    one = entry("a", FIRST)
    assert comparing.measured(one, "base/acc") == Measured(0.5, approx(0.01 * t.ppf(0.975, 5)))
    assert comparing.measured(one, "pruned/acc") == Measured(0.4, approx(0.02 * t.ppf(0.975, 8)))
    assert comparing.measured(one, "delta/log_perplexity/wiki") == Measured(0.25, approx(0.05 * t.ppf(0.975, 12)))
    assert comparing.measured(one, "delta/q/acc") == Measured(-0.1, approx(0.02 * t.ppf(0.975, 29)))
    assert comparing.measured(one, "pruned/perplexity/wiki") == Measured(20.0, None)
    assert comparing.measured(one, "pruned/nothing") is None


def test_measured_without_a_known_number_of_questions_has_no_interval():
    assert comparing.measured(Entry(lineage("a", metrics=FIRST)), "pruned/acc") == Measured(0.4, None)


def test_measures_are_named_without_errors_and_memory_accuracies_first(pair):
    assert comparing.measures(pair) == ["acc", "perplexity/wiki"]


def test_pareto_points_are_models_by_memory_and_the_base_once(pair):
    (plot,) = comparing.pareto(pair, "acc")
    assert isinstance(plot, Pareto) and plot.higher_is_better
    assert sorted((point.x, point.y, point.low, point.high) for point in plot.points) == [
        (2.0, 0.3, approx(0.3 - 0.02 * 2.306), approx(0.3 + 0.02 * 2.306)),  # t of 8 degrees of freedom
        (3.0, 0.4, approx(0.4 - 0.02 * 2.306), approx(0.4 + 0.02 * 2.306)),
        (4.0, 0.5, approx(0.5 - 0.01 * 2.571), approx(0.5 + 0.01 * 2.571)),  # of 5
    ]
    (worse,) = comparing.pareto(pair, "perplexity/wiki")
    assert isinstance(worse, Pareto) and not worse.higher_is_better


@pytest.mark.parametrize(("changes", "said"), [
    ({}, ""),
    ({"generations": "0"}, ""),
    ({"corpora": json.dumps([WIKI, CODE]), "tasks.more.yaml": "digest"}, ""),  # what only one run measured
    ({"limit": "60"}, "these runs differ in evaluate.limit."),
    ({"tasks.q.yaml": "another"}, "these runs differ in evaluate.tasks."),
    ({"corpora": json.dumps([CODE, WIKI | {"source": "other text"}])}, "these runs differ in evaluate.corpora."),
])  # fmt: skip
def test_front_and_table_say_if_runs_were_not_measured_alike(pair, tmp_path, changes, said):
    given = [pair[0], entry("b" * 32, SECOND, "0.5", "n", ASKED | changes)]
    (table,) = section(comparing.beside(given, Tracker(Store(tmp_path))), "Measured").parts
    (front,) = comparing.overview(given, "acc")[0].parts
    assert ["Not measured alike" in part.note for part in (table, front)] == [bool(said)] * 2
    assert said in table.note and said in front.note
    (alone,) = comparing.overview([*given[1:], entry("c", {}, "0.5", "n")], "acc")[0].parts
    assert "Not measured alike" not in alone.note  # what is not drawn does not count


def test_overview_is_headed_by_the_measure(pair):
    for measure in ("acc", "perplexity/wiki"):
        assert [one.title for one in comparing.overview(pair, measure)] == [f"{measure} against memory"]
    assert comparing.overview(pair, "nothing") == []


def test_beside_leaves_out_of_the_table_what_measured_nothing_and_says_so(pair, tmp_path):
    failed = [entry("c" * 32, {}), entry("d" * 32, {"base/acc": 0.5})]
    table, said = section(comparing.beside([failed[0], *pair, failed[1]], Tracker(Store(tmp_path))), "Measured").parts
    assert [column.name for column in table.columns[2:]] == list(comparing.named(pair).values())
    assert said.text == f"Left out, as they have measured nothing: {', '.join(comparing.named(failed).values())}."
    (said,) = section(comparing.beside(failed, Tracker(Store(tmp_path))), "Measured").parts
    assert said.text.startswith("Left out")


def test_distilled_run_is_measured_by_its_distilled_model():
    metrics = FIRST | {"distilled/acc": 0.45, "distilled/memory/disk": 1e6, "delta_distilled/q/acc": -0.05}
    one = Entry(lineage("d", stage("prune", "p"), stage("distill", "d"), metrics=metrics))
    assert (one.final, comparing.delta(one), comparing.weights(one, one.final)) == (
        "distilled",
        "delta_distilled/",
        1.0,
    )


def section(found, title):
    return next(one for one in found if one.title == title)


def test_beside_recipes_differ_in_the_keys_that_differ(pair, tmp_path):
    found = comparing.beside(pair, Tracker(Store(tmp_path)))
    (table,) = section(found, "Recipes").parts
    assert isinstance(table, Table)
    assert table.rows == [["mask.ratio", "0.25", "0.5"]]


def test_beside_changes_by_domain_have_their_unit_and_interval(pair, tmp_path):
    perplexity, accuracy = section(comparing.beside(pair, Tracker(Store(tmp_path))), "Change by domain").parts
    (one, _) = perplexity.values
    assert (one.row, one.value, one.low, one.high) == (
        "wiki",
        0.25,
        approx(0.25 - 0.05 * 2.179),
        approx(0.25 + 0.05 * 2.179),
    )
    assert accuracy.values[0].row == "q" and accuracy.values[0].value == -0.1


def test_beside_change_without_an_error_has_no_interval(tmp_path):
    metrics = {name: value for name, value in FIRST.items() if name != "delta/log_perplexity/wiki_stderr"}
    found = comparing.beside([entry("a" * 32, metrics)], Tracker(Store(tmp_path)))
    (one,) = section(found, "Change by domain").parts[0].values
    assert (one.value, one.low, one.high) == (0.25, None, None)


def write_mask(store: Path, key: str, kept: dict[int, tuple[int, ...]], base: str = "base") -> None:
    (store / "mask" / key).mkdir(parents=True)
    (store / "mask" / key / "mask.json").write_text(Mask(base, 4, kept).to_json())


def test_beside_masks_by_layer_name_what_only_one_keeps(pair, tmp_path):
    write_mask(tmp_path, "m", {0: (0, 1, 2), 3: (0, 1, 3)})
    write_mask(tmp_path, "n", {0: (0, 2, 3), 3: (0, 1, 3)})
    lines, table = section(comparing.beside(pair, Tracker(Store(tmp_path))), "Masks").parts
    assert lines.lines[0].x == [0, 3] and lines.lines[0].y == [0.5, 1.0]  # 2 of 4, 3 of 3
    assert table.rows == [[0, 0.5, "1", "3"], [3, 1.0, "", ""]]


def test_beside_masks_of_other_base_models_are_not_compared(pair, tmp_path):
    write_mask(tmp_path, "m", {0: (0, 1)})
    write_mask(tmp_path, "n", {0: (0, 1)}, "other")
    (said,) = section(comparing.beside(pair, Tracker(Store(tmp_path))), "Masks").parts
    assert "another base model" in said.text


def test_read_mask_of_weights_is_none(tmp_path):
    (tmp_path / "mask/m").mkdir(parents=True)
    (tmp_path / "mask/m/mask.json").write_text(json.dumps({"format": "moeprune-weights/1"}))
    assert comparing.read_mask(entry("a", FIRST), Tracker(Store(tmp_path))) is None
