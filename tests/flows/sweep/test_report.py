"""The report of a sweep: what its words, plots and table say of rows whose truth is known."""

import re
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

import pytest
from browser import browser

from flows.outcome import Sweep
from flows.pages import check_path
from flows.pages.points import Intervals, Pareto
from flows.pages.table import Measured, Table
from flows.sweep.findings import Estimate, estimate, measures_of, methods_of, outside
from flows.sweep.plots import sweep
from flows.sweep.report import page_of, write_report
from flows.sweep.rows import Row
from flows.sweep.words import in_words
from moeprune.errors import BadInput

MB = 1_000_000
MANY = 10**6
"""Documents for which Student's t is the normal 1.96."""
CORPORA, TASK = ("law", "wiki"), "quiz"


def row(
    method: str, law: float, wiki: float, acc: float = 0.0, budget: str = "25%", stderr: float | None = 0.01
) -> Row:
    """A row whose differences all have the same standard error; MB of memory as the budget says."""
    values = {"log_perplexity/law": law, "log_perplexity/wiki": wiki, "quiz/acc": acc}
    delta = {name: {"value": value, "stderr": stderr, "n": MANY} for name, value in values.items()}
    weights = (75 if budget == "25%" else 50) * MB
    return Row(budget, method, {}, method == "uniform_random", delta, 90 * MB, weights, 2.0, 100 * MB)


# An interval reaches 0.0196 to each side; of the mean of two corpora 0.0139.
ROWS = [
    row("good", 0.10, 0.20, acc=-0.05),
    row("near", 0.12, 0.20),
    row("poor", 0.45, 0.39, acc=0.05),
    *(row("uniform_random", law, wiki) for law, wiki in ((0.40, 0.40), (0.50, 0.45), (0.45, 0.60))),
    row("good", 0.50, 0.60, budget="50%"),
]
DRAWS = 3


def words(rows: list[Row]) -> list[str]:
    perplexity, accuracy = measures_of(rows)
    return in_words(methods_of(rows, (perplexity or accuracy)[0]), perplexity, accuracy).splitlines()


def test_estimate_of_a_mean_has_the_error_of_independent_corpora():
    (whole, law, _), _ = measures_of(ROWS)
    given = row("any", 0.1, 0.3)
    given.delta["log_perplexity/wiki"]["stderr"] = 0.03
    for n, quantile in ((MANY, 1.96), (10, 2.262)):  # Student's t
        for metric in given.delta.values():
            metric["n"] = n
        half = quantile * sqrt(0.01**2 + 0.03**2) / 2
        found = estimate(given, whole)
        assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), rel=1e-3)
        assert estimate(given, law).high == pytest.approx(0.1 + quantile * 0.01, rel=1e-4)
    given.delta["log_perplexity/wiki"]["stderr"] = None
    assert estimate(given, whole) == Estimate(pytest.approx(0.2), None, None)


def test_methods_are_ordered_by_budget_and_damage_and_join_seeds():
    methods = methods_of(ROWS, measures_of(ROWS)[0][0])
    assert [(method.budget, method.name, len(method.rows)) for method in methods] == [
        ("25%", "good", 1), ("25%", "near", 1), ("25%", "poor", 1), ("25%", "uniform_random", 3), ("50%", "good", 1),
    ]  # fmt: skip
    seeds = methods[3].estimate(measures_of(ROWS)[0][1])
    assert (seeds.value, seeds.low, seeds.high) == pytest.approx((0.45, 0.40 - 0.0196, 0.50 + 0.0196))


@pytest.mark.parametrize(
    ("low", "high", "side"), [(0.1, 0.29, -1), (0.1, 0.31, 0), (0.61, 0.7, 1), (0.35, 0.7, 0), (None, None, 0)]
)
def test_outside_wants_the_whole_interval_beyond_every_draw(low, high, side):
    assert outside(Estimate(0.2, low, high), [0.6, 0.3, 0.4]) == side
    assert outside(Estimate(0.2, low, high), []) == 0


def test_words_count_methods_better_than_every_draw_interval_included():
    quarter, half, chance = words(ROWS)
    # law: 0.1196 and 0.1396 lie below 0.40, 0.4696 does not; wiki: 0.2196 below 0.40, 0.39 + 0.0196 not.
    assert (
        "Of 3 methods, better than every one of 3 random draws, interval included: log perplexity 2 on law, 2 on wiki"
        in quarter
    )
    # accuracy: all draws are 0; -0.05 is below, 0 within, 0.05 above by more than 0.0196.
    assert (
        "accuracy 1 on quiz" in quarter
        and "Beyond its interval accuracy (quiz) fell with 1 and rose with 1." in quarter
    )
    assert half.startswith("50% removed: `good` has the best change") and "random" not in half
    assert chance == "Without random draws nothing says whether methods beat chance: 50%."


def test_words_name_with_the_winner_whose_interval_overlaps():
    quarter, *_ = words(ROWS)
    assert "`good` has the best change of log perplexity (mean of 2 corpora), +0.150" in quarter
    assert "(95% interval +0.136 to +0.164), overlapping with that of `near`." in quarter
    clear, *_ = words([*ROWS[:1], row("near", 0.17, 0.20), *ROWS[2:]])
    assert "(95% interval +0.136 to +0.164), clear of 2 others." in clear
    unknown, *_ = words([row("good", 0.1, 0.2, stderr=None), *ROWS[1:]])
    assert "+0.150 nats per token, without an interval." in unknown
    alone, *_ = words([row("good", 0.1, 0.2), row("near", 0.1, 0.2, stderr=None)])
    assert "+0.150 nats per token (95% interval +0.136 to +0.164)." in alone
    many = [row(f"method{number}", 0.1, 0.1) for number in range(6)]
    assert "overlapping with those of `method1`, `method2`, `method3` and 2 more" in words(many)[0]


def test_words_call_the_range_over_seeds_no_interval():
    seeds = [row("good", 0.10, 0.10), row("good", 0.20, 0.20)]
    assert "+0.150 nats per token (mean of 2 seeds, whose 95% intervals reach from +0.086 to +0.214)" in words(seeds)[0]


def test_words_for_accuracy_alone_take_more_for_better():
    rows = [replace(one, delta={"quiz/acc": one.delta["quiz/acc"]}) for one in ROWS]
    assert words(rows)[0].startswith("25% removed: `poor` has the best change of accuracy (quiz), +0.050 fraction")


def test_page_has_a_front_for_each_kind_and_a_plot_for_each_measure():
    damage, differences, every = page_of(ROWS, "demo", "moeprune sweep demo.yaml").sections
    perplexity, accuracy = damage.parts
    assert isinstance(perplexity, Pareto) and not perplexity.higher_is_better
    assert isinstance(accuracy, Pareto) and accuracy.higher_is_better
    assert {(point.name, point.x) for point in perplexity.points if "random" not in point.name} == {
        ("good", 75), ("near", 75), ("poor", 75), ("good", 50), ("unpruned model", 100)
    }  # fmt: skip
    plots = [part for part in differences.parts if isinstance(part, Intervals)]
    assert [plot.title.partition(":")[0] for plot in plots] == [
        "Log perplexity, mean of 2 corpora", "Log perplexity, law", "Log perplexity, wiki", "Accuracy, quiz",
    ]  # fmt: skip
    (band,) = plots[1].bands
    assert band == ("25% removed", 0.40, 0.50)
    assert [value.row for value in plots[1].values][-DRAWS:] == ["uniform_random"] * DRAWS, "draws are last, each shown"
    (table,) = every.parts
    assert isinstance(table, Table)
    cells = {(line[0], line[1]): line[2] for line in table.rows}
    assert cells["25%", "good"] == Measured(0.10, pytest.approx(0.0196, rel=1e-3), "▼")
    assert cells["25%", "poor"] == Measured(0.45, pytest.approx(0.0196, rel=1e-3), "")
    values = (0.40, 0.50, 0.45)
    assert cells["25%", "uniform_random (3 seeds)"] == Measured(mean(values), stdev(values), "s.d.")
    assert [line[-3:] for line in table.rows][-1] == [50, 90, 2.0]


def test_page_of_virtual_masks_leaves_the_measured_peak_empty():
    rows = [replace(one, memory=None) for one in ROWS]
    (table,) = page_of(rows, "demo", "command").sections[-1].parts
    assert isinstance(table, Table)
    assert {line[-2] for line in table.rows} == {None} and table.rows[0][-3] == 75


def test_page_of_many_methods_has_plots_that_fit_a_page():
    rows = [row(f"method{number:03}", number / 100, 0.1) for number in range(90)]
    plots = [part for part in page_of(rows, "demo", "").sections[1].parts if isinstance(part, Intervals)]
    shown = [{value.row for value in plot.values} for plot in plots if plot.title.startswith("Log perplexity, law")]
    assert max(map(len, shown)) <= 40 and set().union(*shown) == {one.method for one in rows}


def test_page_says_how_many_recipes_failed():
    assert page_of(ROWS, "demo", "", failed=2).summary.startswith("2 of the sweep's recipes failed")
    assert "failed" not in page_of(ROWS, "demo", "").summary


def test_report_path_that_is_no_html_file_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(BadInput, match=r"--report .*report.pdf: .*\.html$"):
        check_path(tmp_path / "report.pdf")


def test_write_report_of_nothing_measured_writes_nothing(tmp_path: Path):
    write_report(Sweep("demo", "", []), tmp_path / "report.html", "moeprune sweep demo.yaml")
    assert not list(tmp_path.iterdir())


def only(one: Row, *names: str) -> Row:
    return replace(one, delta={name: one.delta[name] for name in names})


UNEVEN = [
    only(row("law", 0.1, 0.2, acc=0.3), "log_perplexity/law", "quiz/acc"),
    only(row("wiki", 0.1, 0.2), "log_perplexity/wiki"),
    only(row("size", 0.1, 0.2)),
    only(row("uniform_random", 0.5, 0.2), "log_perplexity/law"),
]
"""No metric that all of them have."""


def test_page_of_rows_measured_differently_has_each_where_it_was_measured():
    page = page_of(UNEVEN, "demo", "")
    _, differences, every = page.sections
    plots = {plot.title.partition(":")[0]: plot for plot in differences.parts if isinstance(plot, Intervals)}
    assert {name: {value.row for value in plot.values} for name, plot in plots.items()} == {
        "Log perplexity, law": {"law", "uniform_random"}, "Log perplexity, wiki": {"wiki"}, "Accuracy, quiz": {"law"},
    }  # fmt: skip
    (table,) = every.parts
    assert isinstance(table, Table)
    cells = {line[1]: [cell and cell.value for cell in line[2:5]] for line in table.rows}
    assert cells == {
        "law": [0.1, None, 0.3], "uniform_random": [0.5, None, None], "size": [None] * 3, "wiki": [None, 0.2, None],
    }  # fmt: skip
    assert "`law` has the best change of log perplexity (law), +0.100" in page.summary and page.html()


@pytest.mark.parametrize("rows", [UNEVEN, [row("near", 0.1, 0.2, acc=0.3)]], ids=["uneven", "even"])
def test_mean_is_of_what_all_rows_have(rows: list[Row]):
    means = [measure.names for kind in measures_of(rows) for measure in kind if len(measure.names) > 1]
    assert means == ([] if rows is UNEVEN else [("log_perplexity/law", "log_perplexity/wiki")])


def test_page_of_rows_without_perplexity_and_accuracy_is_the_table_alone():
    page = page_of([only(one) for one in ROWS], "demo", "")
    ((table,),) = [section.parts for section in page.sections]
    assert isinstance(table, Table) and {line[1] for line in table.rows} >= {"good", "near", "poor"}
    assert page.summary == "Neither perplexity nor accuracy was measured." and page.html()


def test_page_of_two_unpruned_models_sets_each_beside_its_own():
    other = [replace(one, base="big", dense=900 * MB) for one in [row("far", 0.9, 0.9), row("uniform_random", 3, 3)]]
    page = page_of([*(replace(one, base="small") for one in ROWS), *other], "demo", "")
    fronts = {section.title: section.parts[0] for section in page.sections if "memory" in section.title}
    assert {
        title: {(point.name, point.x) for point in part.points if point.name in ("far", "good", "unpruned model")}
        for title, part in fronts.items()
        if isinstance(part, Pareto)
    } == {
        "Damage against memory: big": {("far", 75), ("unpruned model", 900)},
        "Damage against memory: small": {("good", 75), ("good", 50), ("unpruned model", 100)},
    }
    assert [line.partition(":")[0] for line in page.summary.splitlines()][:2] == [
        "big, 25% removed", "Without random draws nothing says whether methods beat chance",
    ]  # fmt: skip
    assert "better than every one of 3 random draws" in page.summary, "draws of the other model do not count"


def test_plot_of_rows_measured_differently_is_drawn(tmp_path: Path):
    kinds = measures_of(UNEVEN)
    sweep(methods_of(UNEVEN, kinds[0][0]), [*kinds[0], *kinds[1]], tmp_path / "plots/sweep.png")
    assert (tmp_path / "plots/sweep.png").stat().st_size > 10_000


def test_page_of_equal_rows_has_equal_bytes_in_any_order():
    first, second = (page_of(rows, "demo", "") for rows in (ROWS, [ROWS[-1], *ROWS[:-1]]))
    assert re.sub(r"<script>.*?</script>", "", first.html()) == re.sub(r"<script>.*?</script>", "", second.html())


@pytest.mark.parametrize("width", [1280, 700])
def test_page_of_a_sweep_opens_in_a_browser_with_no_label_cut(width: int, tmp_path: Path):
    long = [row(f"reconstruction form=progressive tokens={2**number}", 0.3, number / 10) for number in range(12)]
    page_of([*ROWS, *long], "demo", "").write(tmp_path / "sweep.html")
    with browser(tmp_path) as window:
        window.open(tmp_path / "sweep.html", width)
        assert window.messages() == [] and window.run("return document.body.dataset.drawn") == "6"
        assert window.crowded() == []
        assert window.run("return document.documentElement.scrollWidth") <= width
        assert len(window.find("tbody tr")) == 5 + 12
