"""Edges of the lineage graph, on the page and in the file, pass the nodes that are not their ends."""

import re
from itertools import pairwise

import many_runs
import pytest
from browser import browser
from recorded import stage

from flows.dashboard.graph import HIGH, WIDE, Graph, graph_of
from flows.dashboard.index import Node, Use
from flows.dashboard.marks import Marks
from flows.dashboard.serving import serving
from flows.dashboard.svg import Picture

Point = tuple[float, float]
CORPORA = ("code", "fiction", "law", "wiki")


def crosses(one: Point, other: Point, box: tuple[float, float, float, float]) -> bool:
    """Whether some of the straight line between two points is within left, top, right and bottom."""
    first, last = 0.0, 1.0
    for side in (0, 1):
        start, step = one[side], other[side] - one[side]
        if step == 0:
            if not box[side] < start < box[side + 2]:
                return False
            continue
        enters, leaves = sorted((edge - start) / step for edge in (box[side], box[side + 2]))
        first, last = max(first, enters), min(last, leaves)
    return first < last - 1e-9


def test_crosses_by_hand():
    box = (0, 0, 2, 1)
    assert crosses((-1, 0.5), (3, 0.5), box) and crosses((-1, -1), (1, 1), box) and crosses((1, -5), (1, 5), box)
    assert not crosses((-1, 0), (3, 0), box)  # along its side
    assert not crosses((-1, 0), (1, 3), box) and not crosses((-3, 0.5), (-1, 0.5), box)


def crossed(ways, boxes) -> list[tuple[str, str, str]]:
    """Edges with each node behind which they lead."""
    return [
        (*ends, path)
        for ends, way in ways.items()
        for path, box in boxes.items()
        if path not in ends and any(crosses(*piece, box) for piece in pairwise(way))
    ]


def boxes(graph: Graph) -> dict[str, tuple[float, float, float, float]]:
    return {path: (one.x - WIDE, one.y - HIGH, one.x + WIDE, one.y + HIGH) for path, one in graph.nodes.items()}


def drawn(graph: Graph) -> dict[tuple[str, str], list[Point]]:
    """The ways of edges in the file's picture, in their order."""
    found = re.findall(r'<polyline points="([^"]*)"', Picture(graph, Marks()).html("p"))
    ways = [[(float(x), float(y)) for x, y in (point.split(",") for point in one.split())] for one in found]
    return dict(zip(graph.edges, ways, strict=True))


def base():
    return [stage("download", "b"), stage("evaluate", "base", "base", ("download/b",))]


def chain(key: str, weights: bool = False, distilled: bool = False):
    """What a run has beside the base model: of a weight-only criterion no corpora and statistics."""
    read = () if weights else tuple(f"observe/{name}" for name in CORPORA)
    yield from [] if weights else texts()
    yield stage("score", key, key, ("download/b", *read))
    yield stage("mask", key, "", ("download/b", f"score/{key}"))
    yield stage("prune", key, "", ("download/b", f"mask/{key}"))
    yield stage("evaluate", key, "pruned", (f"prune/{key}",))
    if distilled:
        yield stage("distill", key, "", ("download/b", f"prune/{key}"))
        yield stage("evaluate", f"{key}-distilled", "distilled", (f"distill/{key}",))


def texts():
    yield from (stage("calibrate", name, name, ("download/b",)) for name in CORPORA)
    yield from (stage("observe", name, name, ("download/b", f"calibrate/{name}")) for name in CORPORA)


def audited():
    """Masks resampled from statistics are evaluated without a pruned model; the audit reads statistics and scores."""
    yield from chain("reap")
    yield from chain("aimer", weights=True)
    statistics = tuple(f"observe/{name}" for name in CORPORA)
    for number in "123":
        yield stage("resample", number, number, ("download/b", *statistics))
        yield stage("evaluate", f"r{number}", "virtual", ("download/b", f"resample/{number}"))
    yield stage("calibrate", "again", "again", ("download/b",))
    yield stage("audit", "a", "", ("download/b", *statistics, "score/reap", "score/aimer", "calibrate/again"))


GRAPHS = {
    "one run": [*chain("reap")],
    "two runs": [*chain("reap"), *chain("man")],
    "weights": [*chain("aimer", weights=True)],
    "weights and statistics": [*chain("aimer", weights=True), *chain("reap")],
    "distilled": [*chain("reap", distilled=True), *chain("man")],
    "audit": [*audited()],
    "four runs": [*chain("aimer", weights=True), *chain("man"), *chain("reap"), *chain("seer", distilled=True)],
}


def graph_from(stages) -> Graph:
    return graph_of({one.path: Node(one.path, (Use("run", one),)) for one in [*base(), *stages]})


@pytest.mark.parametrize("stages", GRAPHS.values(), ids=list(GRAPHS))
def test_graph_no_edge_leads_behind_a_node(stages):
    graph = graph_from(stages)
    straight = {
        (one, other): [(graph.nodes[one].x, graph.nodes[one].y), (graph.nodes[other].x, graph.nodes[other].y)]
        for one, other in graph.edges
    }
    assert crossed(straight, boxes(graph))  # or the test could not fail
    assert crossed(drawn(graph), boxes(graph)) == []


@pytest.mark.parametrize("stages", GRAPHS.values(), ids=list(GRAPHS))
def test_graph_picture_has_room_for_its_edges(stages):
    graph = graph_from(stages)
    left, top, wide, high = map(
        float, re.findall(r'viewBox="(\S+) (\S+) (\S+) (\S+)"', Picture(graph, Marks()).html("p"))[0]
    )
    points = [point for way in drawn(graph).values() for point in way]
    assert all(left < x < left + wide and top < y < top + high for x, y in points)


def test_graph_edges_of_a_node_share_their_lane():
    graph = graph_from(GRAPHS["weights and statistics"])
    to_scores = graph.edges["download/b", "score/aimer"]
    to_evaluation = graph.edges["download/b", "evaluate/base"]
    assert to_scores and to_evaluation[: len(to_scores)] == to_scores
    assert graph.edges["prune/reap", "evaluate/reap"] == []


READ = """
const frame = [...document.querySelectorAll("#graph, #graph *")].find((element) => element._cyreg);
const cy = frame?._cyreg.cy, at = ({ x, y }) => [x, y];
if (!cy?.edges().length) return null;
return [
  cy.edges().map((edge) => [edge.source().id(), edge.target().id(),
    [edge.sourceEndpoint(), ...(edge.segmentPoints() ?? []), edge.targetEndpoint()].map(at)]),
  cy.nodes().map((node) => [node.id(), at(node.position())]),
];
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Six runs, of which the newest four are drawn: two of a weight-only criterion, two that read statistics."""
    store = tmp_path_factory.mktemp("recorded")
    many_runs.make(store, 6)
    with serving(store) as address, browser(store) as window:
        yield window, address


def test_dashboard_draws_edges_around_nodes(page):
    window, address = page
    window.visit(address)
    window.wait(lambda: window.run(READ))
    edges, nodes = window.run(READ)
    ways = {(origin, path): way for origin, path, way in edges}
    found = {path: (x - WIDE, y - HIGH, x + WIDE, y + HIGH) for path, (x, y) in nodes}
    assert (
        len([way for way in ways.values() if len(way) > 2]) == 3
    )  # to these scores and to the base model's evaluation
    assert crossed(ways, found) == []


BROKEN = """
return [...document.querySelectorAll("button")].flatMap((button) => {
  const texts = document.createTreeWalker(button, NodeFilter.SHOW_TEXT), broken = [];
  for (let text; (text = texts.nextNode());)
    for (const word of text.data.matchAll(/\\S+/g)) {
      const range = document.createRange();
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      if (range.getClientRects().length > 1) broken.push(word[0]);
    }
  return broken;
});
"""


@pytest.mark.parametrize("width", [700, 500])
def test_dashboard_narrow_window_breaks_no_word_of_a_button(page, width):
    window, address = page
    window.visit(address, width)
    window.wait(lambda: window.find("#nodes button") and "1 to 6 of 6" in window.find("#turn")[0].text)
    assert window.run(BROKEN) == []
