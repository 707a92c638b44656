"""The lineage graph as cytoscape draws it, and as a list for who uses no mouse."""

from collections.abc import Iterable
from math import hypot
from typing import Any

from dash import html

from flows.dashboard.graph import CORNERS, HIGH, LOOKS, OTHER, WIDE, WIDTH, Graph
from flows.dashboard.index import KINDS, Node
from flows.dashboard.marks import Marks
from flows.dashboard.parts import aria
from flows.pages.figure import COLOURS

STALE, MISSING = "stale ⟳", "missing ∅"
CHOSEN = COLOURS[1]


def elements(graph: Graph, marks: Marks) -> list[dict[str, Any]]:
    """Nodes with their places and edges."""
    nodes = [
        {
            "data": {"id": path, "label": caption(placed.node, marks)},
            "position": {"x": placed.x, "y": placed.y},
            "classes": " ".join([placed.node.kind.replace(" ", "-"), *_wrong(path, marks)]),
            "grabbable": False,
        }
        for path, placed in graph.nodes.items()
    ]
    return [*nodes, *({"data": _edge(graph, *edge)} for edge in graph.edges)]


def _edge(graph: Graph, origin: str, path: str) -> dict[str, Any]:
    """Bends are told as cytoscape wants them: along and to the right of the line between the ends."""
    one, other = graph.nodes[origin], graph.nodes[path]
    wide, high = other.x - one.x, other.y - one.y
    length = hypot(wide, high)
    bends = [(x - one.x, y - one.y) for x, y in graph.edges[origin, path]]
    along = [(x * wide + y * high) / length**2 for x, y in bends]
    beside = [(y * wide - x * high) / length for x, y in bends]
    return {"id": f"{origin} {path}", "source": origin, "target": path} | (
        {"along": along, "beside": beside} if bends else {}
    )


def caption(node: Node, marks: Marks) -> str:
    """A node's label: what it is, the beginning of its digest, and its marks in words."""
    words = {"stale": STALE, "missing": MISSING}
    return "\n".join([node.label, node.stage.digest[:8], *(words[one] for one in _wrong(node.path, marks))])


def _wrong(path: str, marks: Marks) -> list[str]:
    return ["stale"] * (path in marks.stale) + ["missing"] * marks.missing(path)


def stylesheet(chosen: str | None = None, near: Iterable[str] = ()) -> list[dict[str, Any]]:
    """How nodes look by kind and mark; the chosen one is outlined, what it came from and led to is drawn heavier."""
    kinds = [
        {
            "selector": f".{kind.replace(' ', '-')}",
            "style": {"border-color": colour, "background-color": "#fff", **_shape(shape)},
        }
        for kind, (shape, colour) in LOOKS.items()
    ]
    own = [{"selector": f'[id = "{chosen}"]', "style": {"background-color": "#fdf1e7", "border-width": 6}}]
    heavy = [{"selector": f'[id = "{path}"]', "style": {"font-weight": "bold"}} for path in near]
    edges = [
        {"selector": f'edge[{end} = "{chosen}"]', "style": {"width": 3.5, "line-color": CHOSEN,
                                                            "target-arrow-color": CHOSEN}}
        for end in ("source", "target")
    ]  # fmt: skip
    return [
        {
            "selector": "node",
            "style": {
                "label": "data(label)", "text-wrap": "wrap", "text-valign": "center", "text-halign": "center",
                "font-size": 11, "width": 2 * WIDE, "height": 2 * HIGH, "border-width": 2.5, "color": "#1a1a1a",
                "text-max-width": WIDTH - 50, "text-outline-color": "#fff", "text-outline-width": 2,
                "shape": OTHER[0], "border-color": OTHER[1], "background-color": "#fff",
            },
        },
        {
            "selector": "edge",
            "style": {"curve-style": "bezier", "target-arrow-shape": "triangle", "width": 1.5, "line-color": "#777",
                      "target-arrow-color": "#777", "source-endpoint": "90deg", "target-endpoint": "270deg"},
        },
        {
            "selector": "edge[along]",
            "style": {"curve-style": "segments", "edge-distances": "node-position", "segment-weights": "data(along)",
                      "segment-distances": "data(beside)"},
        },
        *kinds,
        {"selector": ".stale", "style": {"border-style": "dashed", "background-color": "#fff6d6"}},
        {"selector": ".missing", "style": {"border-style": "dotted", "background-color": "#eee"}},
        *(own + heavy + edges if chosen else []),
    ]  # fmt: skip


def _shape(name: str) -> dict[str, Any]:
    corners = [coordinate for corner in CORNERS.get(name, ()) for coordinate in corner]
    return {"shape": "polygon", "shape-polygon-points": corners} if corners else {"shape": name}


def height(graph: Graph) -> dict[str, str]:
    """The style of a frame in which a graph as wide as the page can be read."""
    return {"width": "100%", "height": f"{min(900, max(300, int(graph.height) + 40))}px"}


def listed(nodes: Iterable[Node], marks: Marks, chosen: str | None) -> Any:
    """The same nodes as buttons, kind by kind."""
    groups: dict[str, list[Node]] = {kind: [] for kind in KINDS.values()}
    for node in nodes:
        groups.setdefault(node.kind, []).append(node)
    return [
        html.Li(
            [html.Span(kind, className="kind"),
             *(button(node, marks, node.path == chosen) for node in sorted(own, key=lambda one: one.label))]
        )
        for kind, own in groups.items() if own
    ]  # fmt: skip


def pressed(chosen: bool) -> str:
    """Whether a button is the chosen one, as a screen reader is told."""
    return "true" if chosen else "false"


def button(node: Node, marks: Marks, chosen: bool = False, where: str = "list") -> Any:
    """A node to be chosen with mouse or keyboard."""
    wrong = "".join(f", {word}" for word in _wrong(node.path, marks))
    return html.Button(
        f"{node.stage.of or node.kind} {node.stage.digest[:8]}{wrong}",
        id={"type": "node", "path": node.path, "where": where},
        type="button",
        className=" ".join(["node", *_wrong(node.path, marks)]),
        **aria(pressed=pressed(chosen)),
    )
