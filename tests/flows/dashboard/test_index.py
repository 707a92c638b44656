"""The dashboard's index and graph: shared results, searching, places of nodes."""

import json
import random
from datetime import date, timedelta

import pytest
from recorded import DAY, lineage, stage

from flows.dashboard import cytoscape
from flows.dashboard.graph import WIDTH, graph_of
from flows.dashboard.index import Index, Node, Use, Wanted
from flows.dashboard.marks import Marks
from flows.dashboard.svg import Picture

BASE = stage("download", "b")
CORPUS = stage("calibrate", "c", "wiki", ("download/b",), md5="0" * 32)


def index_of(*runs):
    return Index.of(runs, DAY)


def run(name, method="reap", source="model", corpora=("wiki",), days=0, stages=(BASE,)):
    params = {"download.source": source, "calibrate.corpora": json.dumps([{"name": one} for one in corpora])}
    return lineage(name, *stages, start=DAY + timedelta(days=days), params=params, method=method)


def test_index_result_that_runs_share_is_one_node_made_by_the_run_that_missed():
    found = stage("download", "b", cache="hit")
    index = index_of(run("old", stages=(BASE, CORPUS)), run("new", days=1, stages=(found,)))
    assert set(index.nodes) == {"download/b", "calibrate/c"}
    node = index.nodes["download/b"]
    assert [use.run for use in node.uses] == ["new", "old"]
    assert node.maker is not None and node.maker.run == "old"
    assert index.read_by["download/b"] == ["calibrate/c"]


def test_index_result_made_again_has_the_maker_that_the_newest_run_names():
    def made(child: str, **more: object) -> tuple:
        return (stage("download", "b", id=child, **more),)

    runs = [run("first", stages=made("1")), run("again", days=1, stages=made("2"))]
    found = run("found", days=2, stages=made("3", cache="hit"))
    named = run("found", days=2, stages=made("3", cache="hit", produced_by="1"))
    gone = run("found", days=2, stages=made("3", cache="hit", produced_by="0"))
    makers = [index_of(*runs, one).nodes["download/b"].maker for one in (found, named, gone)]
    assert [maker.run if maker else None for maker in makers] == ["again", "first", None]


def test_index_updated_run_takes_the_place_of_what_was_known_of_it():
    before = index_of(run("one"), run("two", days=1))
    after = before.updated([run("one", stages=(BASE, CORPUS), days=0)], DAY)
    assert list(after.entries) == ["two", "one"]
    assert set(after.nodes) == {"download/b", "calibrate/c"} and set(before.nodes) == {"download/b"}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), ["d", "c", "b", "a"]),
        (Wanted(method="reap"), ["c", "a"]),
        (Wanted(model="other"), ["d"]),
        (Wanted(corpus="code"), ["d", "b"]),
        (Wanted(first=date(2026, 11, 21)), ["d", "c", "b"]),
        (Wanted(first=date(2026, 11, 21), last=date(2026, 11, 22)), ["c", "b"]),
        (Wanted(method="reap", first=date(2026, 11, 21)), ["c"]),
        (Wanted(text="NAME aimer"), ["d"]),
        (Wanted(text="digest-c"), ["c"]),
        (Wanted(text="00000000000000000000000000000000"), ["c"]),
        (Wanted(text="nothing like it"), []),
    ],
)
def test_index_search_finds_what_has_all_that_is_asked_for_newest_first(wanted, expected):
    index = index_of(
        run("a"),
        run("b", method="frequency", corpora=("wiki", "code"), days=1),
        run("c", days=2, stages=(BASE, CORPUS)),
        run("d", method="aimer", source="other", corpora=("code",), days=3),
    )
    assert [entry.id for entry in index.search(wanted)] == expected


def test_index_choices_are_what_runs_have():
    index = index_of(run("a"), run("b", method="frequency", corpora=("wiki", "code"), source="other"))
    assert index.choices("method") == ["frequency", "reap"]
    assert index.choices("corpora") == ["code", "wiki"]
    assert index.choices("model") == ["model", "other"]


def random_nodes(seed: int) -> dict[str, Node]:
    """Results that read any of those before them in the order of the chain."""
    draw = random.Random(seed)
    words = ["download", "calibrate", "observe", "score", "mask", "prune", "evaluate"]
    paths: list[str] = []
    nodes = {}
    for word in words:
        before = list(paths)
        for number in range(draw.randint(1, 4)):
            read = tuple(path for path in before if draw.random() < 0.5)
            made = stage(word, str(number), reads=read)
            nodes[made.path] = Node(made.path, (Use("run", made),))
            paths.append(made.path)
    return nodes


def closure(edges):
    """Every pair of which one leads to the other, by brute force."""
    pairs = set(edges)
    while more := {(a, d) for a, b in pairs for c, d in pairs if b == c} - pairs:
        pairs |= more
    return pairs


@pytest.mark.parametrize("seed", range(5))
def test_graph_leaves_out_exactly_the_edges_that_a_longer_way_says(seed):
    nodes = random_nodes(seed)
    every = {(origin, path) for path, node in nodes.items() for origin in node.stage.inputs.values()}
    drawn = set(graph_of(nodes).edges)
    assert closure(drawn) == closure(every)
    assert all(closure(drawn - {edge}) != closure(every) for edge in drawn)


@pytest.mark.parametrize("seed", range(5))
def test_graph_nodes_stand_apart_and_edges_lead_to_the_right(seed):
    graph = graph_of(random_nodes(seed))
    places = [(placed.x, placed.y) for placed in graph.nodes.values()]
    assert len(set(places)) == len(places)
    assert all(graph.nodes[path].x - graph.nodes[origin].x >= WIDTH for origin, path in graph.edges)


def test_graph_shows_a_stage_that_it_does_not_know():
    unheard = stage("merge", "e", "two", reads=("calibrate/c",))
    nodes = index_of(run("newer", stages=(BASE, CORPUS, unheard))).nodes
    graph, marks = graph_of(nodes), Marks()
    assert nodes["merge/e"].label == "merge two"
    assert "merge" in next(one["classes"] for one in cytoscape.elements(graph, marks) if one["data"]["id"] == "merge/e")
    assert "merge" in str(cytoscape.listed(nodes.values(), marks, None))
    assert "merge two" in Picture(graph, marks).html("p")


def test_graph_of_nothing_is_empty():
    assert (dict(graph_of({}).nodes), list(graph_of({}).edges)) == ({}, [])
