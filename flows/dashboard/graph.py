"""Where the nodes of a lineage graph stand, and how they look: the same on the page and in the file."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from flows.dashboard.index import KINDS, Node
from flows.pages.figure import COLOURS

WIDTH, ROOM, LANE = 166, 66, 20
"""Pixels from column to column, from row to row, and of a row that only edges take."""
WIDE, HIGH = 61, 25
"""Half of a node's width and height, in pixels."""
BLUE, VERMILION, GREEN, PURPLE, BLACK, ORANGE, SKY = COLOURS
LOOKS = {
    "base model": ("hexagon", BLACK),
    "corpus": ("tag", BLUE),
    "statistics": ("ellipse", SKY),
    "scores": ("concave-hexagon", ORANGE),
    "mask": ("rhomboid", PURPLE),
    "resampled mask": ("rhomboid", PURPLE),
    "pruned model": ("round-rectangle", VERMILION),
    "distilled model": ("round-rectangle", VERMILION),
    "evaluation": ("octagon", GREEN),
    "audit": ("star", GREEN),
}
"""Shape and colour of each kind; labels say it in words, so that neither is needed to tell kinds apart."""
CORNERS = {
    "hexagon": ((-1, 0), (-0.75, -1), (0.75, -1), (1, 0), (0.75, 1), (-0.75, 1)),
    "tag": ((-1, -1), (0.7, -1), (1, 0), (0.7, 1), (-1, 1)),
    "concave-hexagon": ((-1, -1), (1, -1), (0.9, 0), (1, 1), (-1, 1), (-0.9, 0)),
    "rhomboid": ((-1, -1), (0.8, -1), (1, 1), (-0.8, 1)),
    "octagon": ((-1, -0.45), (-0.8, -1), (0.8, -1), (1, -0.45), (1, 0.45), (0.8, 1), (-0.8, 1), (-1, 0.45)),
    "star": ((-1, 0), (-0.75, -0.45), (-0.8, -1), (0, -0.75), (0.8, -1), (0.75, -0.45), (1, 0), (0.75, 0.45),
             (0.8, 1), (0, 0.75), (-0.8, 1), (-0.75, 0.45)),
}  # fmt: skip
"""Of a shape that has them, in halves of a node's width and height: an edge ends near the middle of a side."""
OTHER = ("ellipse", "#777")
"""Of a kind that is not among them."""
COLUMNS = {kind: number for number, kind in enumerate(KINDS.values())} | {"resampled mask": 4, "audit": 7}
SWEEPS = 2
"""Times that each column is put in the order of the one before it, then of the one after; more changes little."""


@dataclass(frozen=True)
class Placed:
    """A node with its place in pixels, from the left and from the top."""

    node: Node
    x: float
    y: float


@dataclass(frozen=True)
class Graph:
    """Nodes that have their places, and the edges between them.

    An edge that a longer way says as well is left out: everything was made from the base model.
    """

    nodes: Mapping[str, Placed]
    edges: Mapping[tuple[str, str], Sequence[tuple[float, float]]]
    """Each with the points where it bends, in pixels, so that it passes other nodes and does not lead behind them."""
    height: float
    """Pixels from the top of the first row to the end of the last."""


Stop = tuple[str, int]
"""A node's path and its column, or one further right: the lane in which edges from that node pass it."""


def graph_of(nodes: Mapping[str, Node]) -> Graph:
    """Columns by kind, read from left to right; in a column, nodes and lanes stand near what they came from."""
    present = sorted({COLUMNS.get(node.kind, len(COLUMNS)) for node in nodes.values()})
    own = {path: present.index(COLUMNS.get(node.kind, len(COLUMNS))) for path, node in nodes.items()}
    ways: dict[tuple[str, str], list[Stop]] = {
        (origin, path): [*((origin, column) for column in range(own[origin], own[path])), (path, own[path])]
        for origin, path in _edges(nodes)
    }
    near: dict[tuple[Stop, int], set[Stop]] = defaultdict(set)
    for way in ways.values():
        for one, other in pairwise(way):
            near[one, 1].add(other)
            near[other, -1].add(one)

    def high(stop: Stop) -> int:
        return ROOM if stop in own.items() else LANE

    # Lanes come first: they stay above all nodes, where they cross the fewest edges, unless something draws them down.
    every = {*own.items(), *(stop for way in ways.values() for stop in way)}
    stops = sorted(every, key=lambda stop: (high(stop), nodes[stop[0]].label, stop))
    columns = [[stop for stop in stops if stop[1] == column] for column in range(len(present))]
    tall = max((sum(map(high, column)) for column in columns), default=0)
    y: dict[Stop, float] = {}

    def stack(column: list[Stop]) -> None:
        top = (tall - sum(map(high, column)) - ROOM) / 2
        for stop in column:
            y[stop] = top + high(stop) / 2
            top += high(stop)

    def drawn_to(stop: Stop, side: int) -> float:
        return fmean(y[other] for other in near[stop, side]) if near[stop, side] else y[stop]

    for column in columns:
        stack(column)
    for side in (-1, 1) * SWEEPS:
        for column in columns[::-side]:
            column.sort(key=lambda stop: drawn_to(stop, side))
            stack(column)
    placed = {
        stop[0]: Placed(nodes[stop[0]], WIDTH * stop[1], y[stop])
        for column in columns
        for stop in column
        if stop in own.items()
    }
    bends = {
        edge: [(WIDTH * stop[1] + side, y[stop]) for stop in way[1:-1] for side in (-WIDE, WIDE)]
        for edge, way in ways.items()
    }
    return Graph(placed, bends, tall)


def _edges(nodes: Mapping[str, Node]) -> list[tuple[str, str]]:
    origins = {
        path: {origin for origin in node.stage.inputs.values() if origin in nodes} for path, node in nodes.items()
    }
    before: dict[str, set[str]] = {}

    def all_before(path: str) -> set[str]:
        if path not in before:
            before[path] = set().union(origins[path], *map(all_before, origins[path]))
        return before[path]

    return [
        (origin, path)
        for path in nodes
        for origin in sorted(origins[path])
        if not any(origin in all_before(other) for other in origins[path])
    ]
