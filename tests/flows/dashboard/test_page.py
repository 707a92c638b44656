"""The dashboard in a real browser, over recorded runs: what is seen, found, chosen and compared; and the one file."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import many_runs
import pytest
from browser import Browser, browser

from flows.dashboard.answers.views import view_of
from flows.dashboard.export import export
from flows.dashboard.serving import serving
from flows.pages import Column, Line, LinePlot, Page, Section, Table
from tasks.artifacts import MANIFEST, Store
from tasks.tracking import Tracker

RUNS = 45
"""Three pages of the list."""


@dataclass(frozen=True)
class Shown:
    """A browser that looks at a dashboard over a store."""

    browser: Browser
    address: str
    store: Path

    def open(self, path: str = "") -> None:
        """Go to a view, as if for the first time, and wait until it shows something."""
        self.browser.visit(f"{self.address}favicon")  # where the choice of runs of the test before can be dropped
        self.browser.run("sessionStorage.clear()")
        self.browser.visit(f"{self.address}{path}", 1400, 1000)
        self.wait(lambda: f"{RUNS} runs" in self.text("#status") and "..." not in self.text("#status"))
        self.wait(lambda: "to be checked" not in self.text("#status"))  # marks that come draw the graph anew

    def text(self, selector: str) -> str:
        """What is seen of the first element; empty if there is none."""
        found = self.browser.run("return document.querySelector(arguments[0])?.innerText", selector)
        return str(found or "")

    def wait(self, reached: Callable[[], Any]) -> None:
        """Wait until something is so."""
        self.browser.wait(reached)

    def rows(self) -> list[str]:
        """The runs in the list, as they are seen."""
        script = "return [...document.querySelectorAll('#runs tbody tr')].map((row) => row.innerText)"
        return list(self.browser.run(script))

    def pick(self, *numbers: int) -> None:
        """Choose runs by their places in the list."""
        for number in numbers:
            self.browser.find("#runs input[type=checkbox]")[number].click()
        self.wait(lambda: f"{len(numbers)} chosen" in self.text("#turn"))

    def type(self, selector: str, words: str) -> None:
        """Write into a field, in place of what is in it."""
        (field,) = self.browser.find(selector)
        field.clear()
        field.send_keys(words)

    def node(self, kind: str) -> Any:
        """The first button of a kind in the list of nodes."""
        return next(one for one in self.browser.find("#nodes li") if one.text.startswith(kind)).find_element(
            "css selector", "button"
        )


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> Iterator[Shown]:
    store = tmp_path_factory.mktemp("recorded")
    many_runs.make(store, RUNS)
    with serving(store) as address, browser(tmp_path_factory.mktemp("downloads")) as window:
        yield Shown(window, address, store)


def test_dashboard_opens_with_the_newest_runs_and_their_graph_and_asks_no_other_place(shown):
    shown.open()
    shown.wait(lambda: len(shown.rows()) == 15 and shown.browser.find("#graph canvas"))
    assert f"1 to 15 of {RUNS} runs; 0 chosen" in shown.text("#turn")
    note = shown.text("#runs .note")
    assert "MB: of the weights in memory" in note and "±: half of the 95% interval" in note
    assert "results of 4 runs" in shown.text("#drawn")
    assert {url for url in shown.browser.requests() if not url.startswith(shown.address)} == set()
    severe = [one for one in shown.browser.messages() if "wheel sensitivity" not in one]  # cytoscape says so always
    assert severe == []


def test_dashboard_node_tells_its_digest_maker_commit_cache_and_manifest(shown):
    shown.open()
    shown.wait(lambda: shown.browser.find("#nodes button"))
    button = shown.node("mask")
    begin = button.text.split()[1].rstrip(",")
    button.click()
    shown.wait(lambda: shown.text("#details h3") == "mask")
    told = shown.text("#details")
    (kept,) = (
        content
        for path in (shown.store / "mask").glob(f"*/{MANIFEST}")
        if (content := json.loads(path.read_text()))["digest"].startswith(begin)
    )
    for word in (kept["digest"], kept["key"], kept["producer"]["git_commit"], "hit in 0 of 1 runs", "miss"):
        assert word in told
    assert shown.node("mask").get_attribute("aria-pressed") == "true"
    (summary,) = shown.browser.find("#details summary")
    summary.click()
    assert json.loads(shown.text("#details pre")) == kept


PLACE = """
const frame = [...document.querySelectorAll("#graph, #graph *")].find((element) => element._cyreg);
frame.scrollIntoView({ block: "center" });
const box = frame.getBoundingClientRect(), at = frame._cyreg.cy.$(arguments[0]).renderedPosition();
return at && [Math.round(box.x + at.x), Math.round(box.y + at.y)];
"""


def at_rest(shown: Shown, selector: str) -> list[int]:
    """Where a node is once the graph has been fitted into the window."""
    seen: list[Any] = [None]

    def settled() -> bool:
        seen.append(shown.browser.run(PLACE, selector))
        last = seen[-1]
        return bool(last == seen[-2] and last and 0 < last[0] < 1400 and 0 < last[1] < 850)

    shown.wait(settled)
    return list(seen[-1])


def test_dashboard_graph_is_clicked_with_the_mouse(shown):
    from selenium.webdriver import ActionChains

    shown.open()
    shown.wait(lambda: shown.browser.find("#graph canvas"))

    def clicked(kind: str) -> bool:
        x, y = at_rest(shown, f".{kind.replace(' ', '-')}")
        actions = ActionChains(shown.browser.driver)
        actions.w3c_actions.pointer_action.move_to_location(x, y)
        actions.w3c_actions.pointer_action.click()
        actions.perform()
        return shown.text("#details h3") == kind

    for kind in ("base model", "pruned model"):
        shown.wait(lambda kind=kind: clicked(kind))  # on a busy machine it may have moved in between


CY = 'const cy = [...document.querySelectorAll("#graph, #graph *")].find((one) => one._cyreg)?._cyreg.cy;'
VIEW = """
const frame = [...document.querySelectorAll("#graph, #graph *")].find((element) => element._cyreg);
const box = frame?._cyreg.cy.elements().renderedBoundingBox();
const room = box && [box.x1, frame.clientWidth - box.x2, box.y1, frame.clientHeight - box.y2];
return room && frame.clientWidth && room.every(Number.isFinite) && room;  // a graph without nodes has no bounds
"""


def test_dashboard_graph_is_whole_in_its_frame_after_another_view_was_opened_first(shown):
    shown.open("compare")
    shown.wait(lambda: shown.rows() and shown.browser.run(f"{CY} return cy?.elements().length"))
    for _ in range(3):
        shown.browser.find("#to-lineage")[0].click()
        shown.wait(lambda: (room := shown.browser.run(VIEW)) and min(room) > 0)
        time.sleep(0.5)  # layouts begin anew a while after
        assert (room := shown.browser.run(VIEW)) and min(room) > 0
        shown.browser.find("#to-compare")[0].click()
        shown.wait(lambda: not shown.browser.run(VIEW))
    shown.browser.visit(shown.address, 500, 800)
    shown.wait(lambda: (room := shown.browser.run(VIEW)) and min(room) > 0)


def test_dashboard_graph_fits_a_window_of_another_size_and_is_left_as_it_was_when_shown_again(shown):
    shown.open()
    at_rest(shown, ".mask")
    shown.browser.resize(500, 800)
    shown.wait(lambda: shown.browser.run(f"{CY} return 0 < cy.width() && cy.width() < 500"))
    shown.wait(lambda: (room := shown.browser.run(VIEW)) and min(room) > 0)
    time.sleep(0.5)
    shown.browser.run(ZOOM, 1.5)
    shown.browser.find("#to-models")[0].click()
    shown.wait(lambda: not shown.browser.run(VIEW))
    shown.browser.find("#to-lineage")[0].click()
    shown.wait(lambda: shown.browser.run(VIEW))
    time.sleep(0.5)
    assert shown.browser.run(ZOOM) == 1.5


ZOOM, MARKED = f"{CY} cy.zoom(...arguments); return cy.zoom();", f"{CY} return cy.$('.stale').length;"
MARK = (
    CY
    + """
const elements = cy.elements().map((one) => ({
  data: one.data(), classes: "stale", ...(one.isNode() ? { position: one.position() } : {}),
}));
dash_clientside.set_props("graph", { elements });
"""
)


def test_dashboard_graph_keeps_the_readers_zoom_when_marks_come_in(shown):
    shown.open()
    shown.wait(lambda: shown.browser.find("#graph canvas"))
    at_rest(shown, ".mask")
    shown.browser.run(ZOOM, 1.5)
    shown.browser.run(MARK)
    shown.wait(lambda: shown.browser.run(MARKED) > 5)
    time.sleep(0.5)
    assert shown.browser.run(ZOOM) == 1.5


def test_dashboard_is_used_with_the_keyboard_alone(shown):
    from selenium.webdriver.common.keys import Keys

    shown.open()
    shown.wait(lambda: shown.browser.find("#nodes button"))
    focused = 'return document.activeElement.closest(\'[id="nodes"], [id="runs"]\')?.id || document.activeElement.id'
    reached: dict[str, bool] = {}
    for _ in range(80):
        shown.browser.press(Keys.TAB)
        where = shown.browser.run(focused)
        outline = shown.browser.run("return getComputedStyle(document.activeElement).outlineStyle")
        if where == "runs" and where not in reached:
            shown.browser.press(Keys.SPACE)
            shown.wait(lambda: "1 chosen" in shown.text("#turn"))
        reached[where] = outline != "none"
        if where == "nodes":
            break
    assert {"text", "model", "first", "again", "runs", "nodes"} <= reached.keys()
    assert reached["nodes"]
    shown.browser.press(Keys.ENTER)
    shown.wait(lambda: shown.text("#details h3") == "base model")
    assert shown.browser.run(focused) == "nodes"  # the focus stays where it was


def test_dashboard_search_filters_and_pages_narrow_the_list(shown):
    shown.open()
    shown.wait(lambda: len(shown.rows()) == 15)
    first = shown.rows()
    shown.browser.find("#turn button")[1].click()
    shown.wait(lambda: shown.text("#turn").find("16 to 30 of 45") >= 0)
    assert not set(first) & set(shown.rows())
    shown.type("#text", "gate_weighted_ean")
    shown.wait(lambda: "1 to 4 of 4 runs" in shown.text("#turn"))  # two ratios, twice each among 45 of 20 kinds
    assert all("gate_weighted_ean" in row for row in shown.rows())
    shown.type("#text", "no run has this")
    shown.wait(lambda: "No run fits" in shown.text("#turn"))
    shown.type("#text", " ")
    shown.type("#first", "2999-01-01")
    shown.wait(lambda: "No run fits" in shown.text("#turn"))


def test_dashboard_compares_chosen_runs_with_errors_plots_recipes_and_masks(shown):
    shown.open()
    shown.wait(lambda: len(shown.rows()) == 15)
    shown.pick(0, 5)
    shown.browser.find("#to-compare")[0].click()
    shown.wait(lambda: len(shown.browser.find("#comparison .main-svg")) >= 4)
    titles = [one.text for one in shown.browser.find("#comparison h2")]
    assert titles == [
        "continuation/acc against memory", "Measured", "Change by domain", "Pair by pair", "Recipes", "Masks",
    ]  # fmt: skip
    assert "±" in shown.text("#comparison table")
    recipes = next(one.text for one in shown.browser.find("#comparison section") if one.text.startswith("Recipes"))
    assert "score.criterion" in recipes
    assert shown.browser.find("#comparison .errorbar, #comparison .yerror")
    assert [one for one in shown.browser.messages() if "wheel sensitivity" not in one] == []


def test_dashboard_models_have_pages_with_cards(shown):
    shown.open("models")
    shown.wait(lambda: shown.browser.find("#view-models tbody tr"))
    next(one for one in shown.browser.find("#view-models tbody a") if "pruned" in one.text).click()
    shown.wait(lambda: "How to load it" in shown.text("#view-models .card"))
    assert "digest (sha256)" in shown.text("#view-models dl")
    assert shown.browser.find("#view-models a[href^='/models/download/']")
    next(one for one in shown.browser.find("#view-models a") if one.text == "In the graph").click()
    shown.wait(lambda: shown.text("#details h3") == "pruned model")


def test_dashboard_address_of_nothing_says_so(shown):
    shown.open("nothing")
    shown.wait(lambda: shown.text("#lost") == "There is no page /nothing.")
    hidden = "return document.querySelector('#view-lineage').hidden"
    assert shown.browser.run(hidden)
    shown.browser.find("#to-lineage")[0].click()
    shown.wait(lambda: not shown.browser.run(hidden) and not shown.text("#lost"))


@pytest.mark.parametrize(("path", "view"), [
    ("/", "/"), ("/compare", "/compare"), ("/audits", "/audits"), ("/audits/0123", "/audits"),
    ("/models/prune/0123", "/models"), ("/node/mask/ffff", "/"), ("/nothing", None), ("/compare/more", None),
    ("/nodes", None),
])  # fmt: skip
def test_view_of_an_address_is_none_where_there_is_no_page(path, view):
    assert view_of(path) == view


def test_dashboard_without_audits_says_how_one_is_made(shown):
    shown.open("audits")
    shown.wait(lambda: shown.text("#view-audits").startswith("There is no audit yet: `moeprune audit"))
    shown.open("audits/ffff")
    shown.wait(lambda: "has the id ffff. There is no audit yet" in shown.text("#view-audits"))


REACH = """
const done = arguments[arguments.length - 1];
fetch(arguments[0], { mode: "no-cors" }).then(() => done("reached"), () => done("refused"));
"""


def test_dashboard_audit_report_runs_in_its_frame_apart_from_everything(shown, tmp_path):
    plot = LinePlot("How many tokens suffice", [Line("reap", [1, 2], [0.5, 0.9])], "tokens", "agreement")
    table = Table("On the edge", [Column("expert", "d")], [[3]], "edge-of-an-audit.csv")
    Page("Audit", "One mask.", [Section("Stability", [plot, table])]).write(tmp_path / "report.html")
    store, window = tmp_path / "store", shown.browser
    with Tracker(Store(store)).run("an audit", {}, {"kind": "audit", "method": "reap"}) as run:
        run.log_file(tmp_path / "report.html")
    with serving(store) as address:
        window.visit(f"{address}audits/ffff", 1400, 1000)
        shown.wait(lambda: "No audit that was read has the id ffff." in shown.text("#view-audits"))
        window.visit(f"{address}audits", 1400, 1000)
        shown.wait(lambda: window.find("#view-audits iframe"))
        window.driver.switch_to.frame(window.find("#view-audits iframe")[0])
        try:
            shown.wait(lambda: window.run("return document.body?.dataset.drawn"))
            assert window.find(".plot .main-svg .scatterlayer path")
            window.find("button.csv")[0].click()
            shown.wait((window.downloads / "edge-of-an-audit.csv").is_file)
            assert window.driver.execute_async_script(REACH, address) == "refused"
            assert window.run("try { return top.document.title } catch { return 'refused' }") == "refused"
        finally:
            window.driver.switch_to.default_content()
        asked = window.requests()
        assert f"{address}audit-report/{run.id}" in asked
        assert {url for url in asked if not url.startswith(address)} == set()


def test_export_is_one_file_that_needs_nothing_and_is_kept_by_the_tracker(shown, tmp_path):
    chosen = list(Tracker(Store(shown.store)).list_runs(2))
    page = tmp_path / "lineage.html"
    kept = export(page, [one.id[:10] for one in chosen], shown.store)
    tracker = Tracker(Store(shown.store))
    (tmp_path / "kept").mkdir()
    again = tracker.fetch(kept, "lineage.html", tmp_path / "kept")
    assert again is not None and again.read_bytes() == page.read_bytes()
    assert kept not in {run.id for run in tracker.list_runs(RUNS)}

    shown.browser.open(page)
    assert shown.browser.requests() == [page.as_uri()] and shown.browser.messages() == []
    assert shown.browser.crowded() == []
    count = "[...document.querySelectorAll('svg.lineage a')].map((link) => link.getAttribute('href'))"
    linked = shown.browser.run(f"return {count}.map((name) => document.querySelectorAll(name).length)")
    assert linked == [1] * len({path for one in chosen for path in _paths(tracker, one.id)})
    assert f"{RUNS} runs" in shown.text(".summary")
    assert len(shown.browser.find("section table.sortable tbody tr")) >= RUNS


def _paths(tracker: Tracker, run: str) -> list[str]:
    return [f"{child.tags['stage']}/{child.tags['key']}" for child in tracker.find_run(run).children]
