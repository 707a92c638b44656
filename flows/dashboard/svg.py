"""The lineage graph as a picture within a page, and its nodes described below it: links, no script."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from flows.dashboard.cytoscape import caption
from flows.dashboard.details import Details
from flows.dashboard.graph import CORNERS, HIGH, LOOKS, OTHER, ROOM, WIDE, Graph
from flows.dashboard.marks import Marks

MARGIN = 12
STYLE = (
    "<style>.lineage a:focus-visible { outline: 3px solid #0072B2; } .lineage text { font-size: 11px; }"
    " .described { border: 1px solid #ccc; padding: .4rem .8rem; font-size: .85rem; margin-bottom: .6rem; }"
    " .described:target { border: 2px solid #D55E00; } .described dl { display: grid; margin: .3rem 0;"
    " grid-template-columns: max-content minmax(0, 1fr); gap: 0 1rem; } .described dd { margin: 0;"
    " overflow-wrap: anywhere; } .described h3 { margin: 0; } .described pre { overflow: auto; max-height: 30rem; }"
    "</style>"
)


@dataclass(frozen=True)
class Picture:
    """A graph whose nodes are links to what is told of them."""

    graph: Graph
    marks: Marks

    def html(self, name: str) -> str:
        """The picture as HTML."""
        wide = max(placed.x for placed in self.graph.nodes.values()) + 2 * (WIDE + MARGIN)
        high = self.graph.height - ROOM + 2 * (HIGH + MARGIN)
        edges = "".join(self._edge(*edge, f"{name}-tip") for edge in self.graph.edges)
        nodes = "".join(self._node(path) for path in self.graph.nodes)
        return (
            f'{STYLE}<figure><svg class="lineage" role="group" aria-label="Lineage graph" width="100%" '
            f'viewBox="{-WIDE - MARGIN:g} {-HIGH - MARGIN:g} {wide:g} {high:g}">'
            f'<defs><marker id="{name}-tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#777"/></marker></defs>'
            f'<g fill="none" stroke="#777" stroke-width="1.2">{edges}</g>{nodes}</svg>'
            "<figcaption>Dashed: stale. Dotted: missing. An edge that a longer way says as well is left out."
            "</figcaption></figure>"
        )

    def _edge(self, origin: str, path: str, tip: str) -> str:
        one, other = self.graph.nodes[origin], self.graph.nodes[path]
        way = [(one.x + WIDE, one.y), *self.graph.edges[origin, path], (other.x - WIDE - 3, other.y)]
        points = " ".join(f"{x:g},{y:g}" for x, y in way)
        return f'<polyline points="{points}" marker-end="url(#{tip})"/>'

    def _node(self, path: str) -> str:
        placed = self.graph.nodes[path]
        shape, colour = LOOKS.get(placed.node.kind, OTHER)
        lines = caption(placed.node, self.marks).split("\n")
        first = 4 - 6.5 * (len(lines) - 1)
        text = "".join(
            f'<tspan x="{placed.x:g}" y="{placed.y + first + 13 * row:g}">{escape(line)}</tspan>'
            for row, line in enumerate(lines)
        )
        dashes = ""
        if path in self.marks.stale:
            dashes = ' stroke-dasharray="7 4"'
        if self.marks.missing(path):
            dashes = ' stroke-dasharray="2 4"'
        return (
            f'<a href="#{anchor(path)}"><g fill="#fff" stroke="{colour}" stroke-width="2.5"{dashes}>'
            f'{_outline(shape, placed.x, placed.y)}</g><text text-anchor="middle">{text}</text></a>'
        )


def _outline(shape: str, x: float, y: float) -> str:
    if shape == "ellipse":
        return f'<ellipse cx="{x:g}" cy="{y:g}" rx="{WIDE:g}" ry="{HIGH:g}"/>'
    if shape == "round-rectangle":
        return f'<rect x="{x - WIDE:g}" y="{y - HIGH:g}" width="{2 * WIDE:g}" height="{2 * HIGH:g}" rx="8"/>'
    corners = " ".join(f"{x + WIDE * right:g},{y + HIGH * down:g}" for right, down in CORNERS[shape])
    return f'<polygon points="{corners}"/>'


def anchor(path: str) -> str:
    """The id of what is told of a node."""
    return f"node-{path.replace('/', '-')}"


@dataclass(frozen=True)
class Descriptions:
    """What is known of nodes, each with its manifest where that is to be had."""

    nodes: Sequence[tuple[Details, Mapping[str, Any] | None]]

    def html(self, name: str) -> str:
        """The nodes as HTML."""
        return "".join(_described(found, manifest) for found, manifest in self.nodes)


def _described(found: Details, manifest: Mapping[str, Any] | None) -> str:
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in found.facts.items())
    marks = "".join(f"<p><strong>{escape(mark)}</strong></p>" for mark in found.marks)
    origins = ", ".join(f'<a href="#{anchor(path)}">{escape(path[:20])}</a>' for path in found.origins) or "nothing"
    runs = ", ".join(f"{escape(use.run[:8])} ({use.stage.cache})" for use in found.node.uses[:20])
    written = escape(json.dumps(manifest, indent=1, ensure_ascii=False)) if manifest else "not to be had"
    return (
        f'<article class="described" id="{anchor(found.node.path)}"><h3>{escape(found.node.label)}</h3>{marks}'
        f"<dl>{facts}<dt>made from</dt><dd>{origins}</dd><dt>in runs</dt><dd>{runs}</dd></dl>"
        f"<details><summary>Manifest</summary><pre>{written}</pre></details></article>"
    )
