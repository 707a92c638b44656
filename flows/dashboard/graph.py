"""Where the nodes of a lineage graph stand, and how they look: the same on the page and in the file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

from flows.dashboard.index import KINDS, Node
from flows.pages.figure import COLOURS

WIDTH, HEIGHT, ROOM = 166, 50, 66
"""Pixels from column to column, of a node, and from row to row."""
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
OTHER = ("ellipse", "#777")
"""Of a kind that is not among them."""
COLUMNS = {kind: number for number, kind in enumerate(KINDS.values())} | {"resampled mask": 4, "audit": 7}
SWEEPS = 4
"""Times that each column is put in the order of its neighbours; more changes little."""


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
    edges: Sequence[tuple[str, str]]

    @property
    def height(self) -> float:
        """Pixels from the top of the first row to the end of the last."""
        return max((placed.y for placed in self.nodes.values()), default=0.0) + ROOM


def graph_of(nodes: Mapping[str, Node]) -> Graph:
    """Columns by kind, read from left to right; in a column, nodes stand near what they came from."""
    edges = _edges(nodes)
    columns: dict[int, list[str]] = {}
    for path, node in nodes.items():
        columns.setdefault(COLUMNS.get(node.kind, len(COLUMNS)), []).append(path)
    near: dict[str, list[str]] = {path: [] for path in nodes}
    for origin, path in edges:
        near[origin].append(path)
        near[path].append(origin)
    ordered = [columns[number] for number in sorted(columns)]
    for column in ordered:
        column.sort(key=lambda path: (nodes[path].label, path))
    rank = {path: row / len(column) for column in ordered for row, path in enumerate(column)}
    for sweep in range(SWEEPS):
        for _, column in pairwise([[], *ordered] if sweep % 2 == 0 else [[], *reversed(ordered)]):
            column.sort(key=lambda path: mean(rank[other] for other in near[path]) if near[path] else rank[path])
            rank |= {path: row / len(column) for row, path in enumerate(column)}
    tallest = max((len(column) for column in ordered), default=0)
    placed = {
        path: Placed(nodes[path], WIDTH * place, ROOM * (row + (tallest - len(column)) / 2))
        for place, column in enumerate(ordered)
        for row, path in enumerate(column)
    }
    return Graph(placed, edges)


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
