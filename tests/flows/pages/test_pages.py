"""Pages: their bytes, and what a real browser makes of them."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser
from PIL import Image

from flows.pages import (
    Column,
    HeatMap,
    Interval,
    Intervals,
    Line,
    LinePlot,
    Matrix,
    Measured,
    Page,
    Paragraph,
    Pareto,
    Point,
    Section,
    Table,
)  # fmt: skip
from flows.pages.points import front
from flows.pages.table import written

LONG = "reconstruction form=progressive tokens=2048"
NAMES = ["reap", "gate_weighted_ean", "expert_weight_norm", "frequency", LONG]
TOKENS = [1024, 2048, 4096, 8192]
ROWS = [
    ["reap", Measured(0.25, 0.0625, "▼"), 12.5],
    ['a "quoted", one', Measured(-0.5), None],
    ["<b>&amp;", Measured(0.125, 0.03125), 100.0],
]

HEAT = HeatMap("Kept", [1, 2, 4], [[0.1, 0.9, 1.0, 0.0], [0.5, None, 0.25], [1.0, 0.0, 1.0, 1.0]])
LINES = LinePlot(
    "Agreement",
    [Line("reap", TOKENS, [0.5, 0.7, 0.8, 0.9], [0.4, 0.6, 0.75, 0.88], [0.6, 0.8, 0.85, 0.92]),
     Line("frequency", TOKENS, [0.4, 0.5, 0.6, 0.7])],
    "calibration tokens", "Jaccard index", log_x=True, levels=[(0.9, "chosen")],
)  # fmt: skip
OVERLAP = Matrix("Overlap", NAMES, NAMES, [[1 - abs(i - j) / 5 for j in range(5)] for i in range(5)], "Jaccard index")
POINTS = [
    Point("reap", "25%", 26.8, 0.1, 0.08, 0.12),
    Point("frequency", "25%", 26.8, 0.2, 0.19, 0.21),
    Point("reap", "50%", 19.7, 0.4),
    Point("unpruned", "unpruned", 33.9, 0.0),
    Point("worse", "50%", 33.9, 0.3, 0.2, 0.4),
]
FRONT = Pareto("Damage against memory", POINTS, "weights (MB)", "Δ log perplexity (nats per token)", False)
MANY = [f"{name} {number}" for number in range(6) for name in NAMES]
DRAWN = Intervals(
    "Damage",
    [Interval(name, group, step / 10, step / 10 - 0.05, step / 10 + 0.05)
     for step, name in enumerate(MANY) for group in ("25%", "50%")],
    ["25%", "50%"], "Δ log perplexity (nats per token)", [("50%", 0.1, 0.2)], half=True,
)  # fmt: skip
TABLE = Table("Methods", [Column("method"), Column("Δ acc", "+.2f"), Column("memory (MB)", ".1f")], ROWS, "methods.csv")
WIDE = Table("Wide", [Column("method"), *(Column(f"long_task_name_{n} Δ acc", "+.3f") for n in range(20))],
             [[name, *(Measured(0.1, 0.02, "▼") for _ in range(20))] for name in NAMES])  # fmt: skip
PAGE = Page(
    "Audit of <demo>",
    "At 25% removed `reap` is stable & sure.\nA second line.",
    [
        Section("Maps", [Paragraph("See `this`."), HEAT, OVERLAP]),
        Section("Points", [LINES, FRONT, DRAWN, replace(DRAWN, title="Damage again")]),
        Section("Tables", [TABLE]),
        Section("Wide", [WIDE]),
    ],
    "Made by `moeprune`.",
)
PLOTS = 6


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Keep a tag."""
        self.tags.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def window(tmp_path_factory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("downloads")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "deeper" / "page.html"
    PAGE.write(path)
    return path


def test_page_of_equal_input_has_equal_bytes_and_plotly_once(page):
    assert page.read_text(encoding="utf-8") == PAGE.html()
    assert PAGE.html().count("* plotly.js v") == 1
    assert page.stat().st_size < 5_500_000
    bare = Page("Bare", "", [Section("Text", [Paragraph("nothing drawn"), TABLE])]).html()
    assert "plotly.js v" not in bare and len(bare) < 20_000


def test_page_html_names_nothing_to_fetch_and_gives_unique_ids(page):
    tags = Tags(page.read_text(encoding="utf-8")).tags
    addresses = [value for _, given in tags for name, value in given.items() if name in ("src", "href", "srcset")]
    assert sorted(set(addresses)) == ["#section-0", "#section-1", "#section-2", "#section-3", "data:,"]
    styles = re.findall(r"<style>.*?</style>", PAGE.html(), re.DOTALL)
    assert styles and not re.search(r"url\(|@import", "".join(styles))
    (policy,) = [given["content"] for tag, given in tags if given.get("http-equiv") == "Content-Security-Policy"]
    assert policy and policy.startswith("default-src 'none'") and "http" not in policy
    ids = [given["id"] for _, given in tags if "id" in given]
    assert len(ids) == len(set(ids))


def test_page_text_is_escaped_in_prose_tables_and_plots():
    hostile = "</script><img src=x onerror=alert(1)>"
    plots = [replace(HEAT, title=hostile, unit=hostile, note=hostile), Matrix("", [hostile], [hostile], [[1.0]], "")]
    parts = [Paragraph(hostile), *plots, Table(hostile, [Column(hostile)], [[hostile]])]
    html = Page(hostile, hostile, [Section(hostile, parts)], hostile).html()
    assert "img" not in [tag for tag, _ in Tags(html).tags]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_plot_of_a_value_that_is_no_number_is_refused(value: float):
    with pytest.raises(ValueError):
        replace(LINES, lines=[Line("reap", TOKENS, [0.5, value, 0.8, 0.9])]).html("plot")


@pytest.mark.parametrize("higher", [False, True])
def test_pareto_front_is_the_points_that_no_other_beats(higher: bool):
    points = [Point(f"{x} {y}", "all", x, (7 * x + 3 * y) % 11) for x in range(6) for y in range(6)]
    points.append(replace(points[0], name="as good"))

    def beats(one: Point, other: Point) -> bool:
        better = one.y > other.y if higher else one.y < other.y
        return (one.x <= other.x and better) or (one.x < other.x and one.y == other.y)

    expected = {(point.x, point.y) for point in points if not any(beats(other, point) for other in points)}
    found = front(points, higher)
    assert [(point.x, point.y) for point in found] == sorted(expected)


@pytest.mark.parametrize("higher", [False, True])
def test_pareto_front_is_drawn_in_its_place_whoever_is_as_good(higher: bool):
    points = [Point(name, "all", x, y) for name in ("first", "again") for x, y in ((10, 0.1), (20, 0.1), (20, 0.5))]
    pareto = replace(FRONT, points=points, higher_is_better=higher)
    (_, marks) = pareto.drawn().traces
    placed = dict(zip([(one[0], *at) for one, at in zip(marks["customdata"], zip(marks["x"], marks["y"], strict=True),
                                                         strict=True)], marks["text"], strict=True))  # fmt: skip
    best = front(points, higher)
    assert {name: number for name, number in placed.items() if number} == {
        (point.name, point.x, point.y): str(number) for number, point in enumerate(best, 1)
    }
    assert "beside it" in pareto.html("plot")


def test_pareto_names_its_front_and_counts_who_cannot_be_told_from_it():
    points = [Point("best", "a", 10, 0.1, 0.0, 0.2), Point("near", "a", 10, 0.15, 0.1, 0.3),
              Point("clear", "a", 10, 0.5, 0.4, 0.6), Point("dearer", "b", 20, 0.12, 0.0, 0.2)]  # fmt: skip
    html = replace(FRONT, points=points).html("plot")
    listed = re.findall(r"<li>(.*?)</li>", html)
    assert listed == ["best, a: 10.0; +0.100 [+0.000, +0.200]; of the others that cost no more 1 overlap with its bar"]


def test_browser_draws_every_plot_without_errors_or_requests(window, page):
    window.open(page)
    assert window.messages() == []
    assert window.requests() == [page.absolute().as_uri()]
    assert window.run("return document.body.dataset.drawn") == str(PLOTS)
    marks = [".hm image", ".scatterlayer .point", ".textpoint"]
    count = "arguments[0].map(mark => plot.querySelectorAll(mark).length)"
    found = window.run(f"return [...document.querySelectorAll('.plot')].map(plot => {count})", marks)
    assert found == [[1, 0, 0], [1, 0, 25], [0, 8, 0], [0, 5, 3], [0, 60, 0], [0, 60, 0]]
    image = Image.open(io.BytesIO(window.screenshot())).convert("RGB")
    assert image.width == 1280 and image.height > 2000
    for plot in window.find(".plot"):
        box = plot.rect
        colours = image.crop((box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"])).getcolors(1 << 24)
        assert colours is not None and len(colours) > 20 and max(colours)[0] < 0.97 * box["width"] * box["height"]


def test_plot_has_no_button_that_sends_it_away(window, page):
    window.open(page)
    buttons = "return [...new Set([...document.querySelectorAll('.modebar [data-title]')].map(b => b.dataset.title))]"
    assert window.run(buttons) == ["Download plot as a PNG", "Zoom", "Pan", "Reset axes"], "a plot could leave the page"


@pytest.mark.parametrize("width", [1280, 700])
def test_browser_shows_all_labels_apart_and_within_the_page(width: int, window, page):
    window.open(page, width)
    assert window.run("return document.documentElement.scrollWidth") <= width
    assert window.crowded() == []


def first_column(window: Browser) -> list[str]:
    return window.run("return [...document.querySelectorAll('#part-2-0 tbody tr')].map(r => r.cells[0].textContent)")


def sorts(window: Browser) -> list[str | None]:
    return window.run("return [...document.querySelectorAll('#part-2-0 th')].map(h => h.getAttribute('aria-sort'))")


def test_table_sorts_by_click_and_by_keyboard_with_empty_cells_last(window, page):
    window.open(page)
    one, two, three = (str(row[0]) for row in ROWS)
    method, accuracy, memory = window.find("#part-2-0 th button")
    assert sorts(window) == [None, None, None] and first_column(window) == [one, two, three]
    accuracy.click()
    assert first_column(window) == [two, three, one] and sorts(window) == [None, "ascending", None]
    accuracy.click()
    assert first_column(window) == [one, three, two] and sorts(window) == [None, "descending", None]
    window.run("arguments[0].focus()", accuracy)
    window.press("\ue004")  # Tab, to the next heading
    assert window.driver.switch_to.active_element == memory
    window.press("\ue007")  # Enter
    assert first_column(window) == [one, three, two] and sorts(window) == [None, None, "ascending"]
    window.press(" ")
    assert first_column(window) == [three, one, two] and sorts(window) == [None, None, "descending"]
    method.click()
    assert first_column(window) == [three, two, one], "by letters, marks left out of account"
    assert window.messages() == []


@pytest.mark.parametrize(
    ("cell", "text"),
    [(26.794, "26.79"), (13840.6, "13,841"), (1_342_050.0, "1,342,050"), (23.4e9, "23,400,000,000"), (2e-07, "2e-07")],
)
def test_table_number_of_many_figures_is_written_whole(cell: float, text: str):
    assert written(cell, Column("memory (MB)", ".4g")) == text


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [(0.55267, 0.02913, "0.553 ± 0.029"), (66.654, 6.1042, "66.7 ± 6.1"), (13840.6, 312.4, "13,841 ± 312"),
     (51.16, 0.0, "51.16 ± 0"), (51.16, None, "51.16"),
     (51.16, float("nan"), "51.16 ± nan")],
)  # fmt: skip
def test_table_value_has_the_places_that_its_spread_leaves(value: float, spread: float | None, text: str):
    assert written(Measured(value, spread), Column("measure", ".4g")) == text


def test_table_csv_holds_the_rows_as_shown_with_unrounded_numbers(window, page):
    window.open(page)
    window.find("#part-2-0 th button")[2].click()
    window.find("[data-table=part-2-0]")[0].click()
    path = window.downloads / "methods.csv"
    window.wait(path.is_file)
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["method", "Δ acc", "Δ acc ±", "Δ acc remark", "memory (MB)"]
    shown = sorted(ROWS, key=lambda row: (row[2] is None, row[2]))
    assert rows == [[row[0], *fields(row[1]), "" if row[2] is None else str(row[2])] for row in shown]


def fields(cell: Any) -> list[str]:
    return [str(cell.value), "" if cell.spread is None else str(cell.spread), cell.remark]


PRINTED = """
window.dispatchEvent(new Event("beforeprint"));
const within = (element) => element.getBoundingClientRect().width <= 703;
const plots = [...document.querySelectorAll(".plot .main-svg")].every(within);
const [upright, across] = ["#part-2-0", "#part-3-0"].map((id) => document.querySelector(id).getBoundingClientRect());
const heads = [...document.querySelectorAll("th button")].map((button) => getComputedStyle(button).display);
const hidden = [...document.querySelectorAll(".csv, nav")].every((element) => !element.getClientRects().length);
window.dispatchEvent(new Event("afterprint"));
return {plots, upright: upright.width, across: across.width, hidden, heads};
"""


def test_page_prints_on_a4_with_nothing_cut(window, page):
    window.open(page)
    before = window.run("return [...document.querySelectorAll('.main-svg')].map(s => s.getBoundingClientRect().width)")
    pdf = window.pdf()
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type /Page\b", pdf)) >= 4
    sizes = {tuple(map(round, map(float, box.split()[2:]))) for box in re.findall(rb"/MediaBox \[([\d. ]+)\]", pdf)}
    assert sizes == {(595, 842), (842, 595)}, "A4, and across for the wide table"
    window.wait(lambda: window.run("return document.body.className") == "")
    after = window.run("return [...document.querySelectorAll('.main-svg')].map(s => s.getBoundingClientRect().width)")
    assert after == before, "the page on the screen is as it was"
    window.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    printed = window.run(PRINTED)
    window.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert printed["plots"] and printed["hidden"]
    assert set(printed["heads"]) == {"contents"}, "Chromium repeats no table's head that holds a box of its own"
    assert printed["upright"] <= 701 and printed["across"] <= 1032
