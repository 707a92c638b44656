"""The page's frame: what is always there, and the places where answers go."""

from typing import Any

import dash_cytoscape
from dash import dcc, html

from flows.dashboard.cytoscape import stylesheet
from flows.dashboard.lists import SORTS
from flows.dashboard.parts import aria

VIEWS = {"/": "Lineage", "/compare": "Compare", "/audits": "Audits", "/models": "Models"}
LOOK = 2000
"""Milliseconds between looks for something new in the index."""
WAIT = 0.3
"""Seconds without a key until a search begins."""


def layout() -> Any:
    """All of it; views other than the one asked for are hidden."""
    return html.Div(
        [
            dcc.Location(id="url"),
            dcc.Store(id="chosen", storage_type="session", data=[]),
            dcc.Store(id="node"),
            dcc.Store(id="page", data=0),
            dcc.Store(id="found", data=[]),
            dcc.Store(id="rows"),
            dcc.Store(id="comparing"),
            dcc.Store(id="audits"),
            dcc.Store(id="models"),
            dcc.Store(id="version"),
            dcc.Interval(id="tick", interval=LOOK),
            html.A("Skip to the content", href="#main", className="skip"),
            html.Header([
                html.H1("moeprune"),
                html.Nav([dcc.Link(name, href=path, id=f"to-{name.lower()}") for path, name in VIEWS.items()],
                         **aria(label="Views")),
                html.P(id="status", role="status"),
                html.Button("Read again", id="again", type="button"),
            ]),
            html.Main(
                [
                    html.Div(id="lost", role="status"),
                    html.Div(_filters(), id="choosing"),
                    html.Div([html.P(id="turn", className="turn"), html.Div(id="runs")], id="listing"),
                    html.Div(_lineage(), id="view-lineage"),
                    html.Div(_compare(), id="view-compare", hidden=True),
                    html.Div(id="view-audits", hidden=True),
                    html.Div(id="view-models", hidden=True),
                ],
                id="main",
                tabIndex=-1,
            ),
        ]
    )  # fmt: skip


def _field(label: str, control: Any, kind: str = "") -> Any:
    return html.Label([html.Span(label), control], className=f"field {kind}")


def _filters() -> Any:
    def choice(name: str, label: str) -> Any:
        return _field(label, dcc.Dropdown(id=name, options=[], placeholder="any"))

    def day(name: str, label: str) -> Any:
        return _field(label, dcc.Input(id=name, type="text", placeholder="YYYY-MM-DD", debounce=WAIT), "day")

    return html.Form(
        [
            _field("Search", dcc.Input(
                id="text", type="search", debounce=WAIT, placeholder="name, id, digest, md5, commit ..."), "wide"),
            choice("model", "Base model"),
            choice("method", "Criterion"),
            choice("corpus", "Corpus"),
            day("first", "From"),
            day("last", "Until"),
            _field("Marks", dcc.Dropdown(id="marks", options=["stale", "missing"], placeholder="any")),
            _field("Order", dcc.Dropdown(id="order", value="newest", clearable=False, options=[
                {"label": label, "value": name} for name, label in SORTS.items()])),
        ],
        id="filters",
        role="search",
        className="filters",
        **aria(label="Runs"),
    )  # fmt: skip


def _lineage() -> list[Any]:
    return [
        html.Section([
            html.H2("Graph"),
            html.P(id="drawn", className="note"),
            html.Div(
                dash_cytoscape.Cytoscape(
                    id="graph", layout={"name": "preset", "fit": True, "padding": 20}, elements=[],
                    stylesheet=stylesheet(), boxSelectionEnabled=False,
                    minZoom=0.1, maxZoom=2,
                ),
                className="graph", role="img", **aria(label="Lineage graph; the same nodes are listed below"),
            ),
        ]),
        html.Div([
            html.Section([html.H2("Nodes"), html.Ul(id="nodes", className="nodes")]),
            html.Section([html.H2("Node"), html.Div(id="details", tabIndex=-1, **aria(live="polite"))]),
        ], className="beside"),
    ]  # fmt: skip


def _compare() -> list[Any]:
    return [
        html.Div([
            _field("Measure", dcc.Dropdown(id="measure", options=[], clearable=False)),
        ], className="filters"),
        html.P(id="compared", className="note"),
        html.Div(id="comparison"),
        html.Div(dcc.Graph(), hidden=True),  # has the browser fetch plotly before the first plot is asked for
    ]  # fmt: skip
