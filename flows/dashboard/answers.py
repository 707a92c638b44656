"""What the page asks and is answered: from the index in memory, but for manifests, masks and reports."""

from collections.abc import Sequence
from datetime import date
from typing import Any

from dash import ALL, Dash, Input, Output, State, ctx, no_update

from flows.dashboard import comparing, drawing, lists, nodes, views
from flows.dashboard.audits import audits
from flows.dashboard.graph import graph_of
from flows.dashboard.index import Entry, Wanted
from flows.dashboard.living import Living
from flows.dashboard.page import VIEWS
from tasks.lineage import upstream

NODE = "/node/"
"""How the address of a node's details begins."""
DRAWN = 4
"""Newest runs drawn where none is chosen."""
MOST = 40
"""Runs drawn at once; more could not be read."""


def register(app: Dash, living: Living) -> None:
    """Have the app answer from what is kept up to date."""
    _searching(app, living)
    _drawing(app, living)
    _viewing(app, living)


def _searching(app: Dash, living: Living) -> None:
    @app.callback(
        Output("version", "data"), Output("status", "children"), Input("tick", "n_intervals"), State("version", "data")
    )
    def look(_: int, before: int | None) -> tuple[Any, str]:
        now = living.version
        return (now if now != before else no_update), lists.status(living)

    @app.callback(*(Output(name, "options") for name in ("model", "method", "corpus")), Input("version", "data"))
    def offer(_: str) -> list[list[str]]:
        return [living.index.choices(name) for name in ("model", "method", "corpora")]

    @app.callback(
        Output("found", "data"),
        Output("page", "data"),
        Input("version", "data"),
        *(Input(name, "value") for name in ("text", "model", "method", "corpus", "first", "last", "marks", "order")),
        State("page", "data"),
        State("found", "data"),
    )
    def search(_: str, text: str | None, model: str | None, method: str | None, corpus: str | None, first: str | None,
               last: str | None, marks: str | None, order: str, page: int, before: list[str]) -> Any:  # fmt: skip
        wanted = Wanted(text or "", model or "", method or "", corpus or "", day(first), day(last))
        found = lists.marked(living.index.search(wanted), living.marks, marks or "")
        ids = [entry.id for entry in lists.ordered(found, order)]
        if ctx.triggered_id == "version":  # the reader stays where they are
            return (ids if ids != before else no_update), no_update
        return ids, 0

    @app.callback(
        Output("runs", "children"),
        Output("rows", "data"),
        Input("found", "data"),
        Input("page", "data"),
        Input("version", "data"),
        State("chosen", "data"),
        State("rows", "data"),
    )
    def show(found: list[str], page: int, _: str, chosen: list[str], before: list[list[str]] | None) -> Any:
        entries = lists.page(_entries(living, found), page)[1]
        rows = lists.said(entries)
        return (no_update, no_update) if rows == before else (lists.table(entries, chosen, living.marks), rows)

    @app.callback(
        Output({"type": "marks", "run": ALL}, "children"),
        Input("version", "data"),
        State({"type": "marks", "run": ALL}, "id"),
    )
    def mark(_: str, spans: list[dict[str, str]]) -> list[str]:
        return [lists.marks_of(one, living.marks) for one in _entries(living, [span["run"] for span in spans])]

    @app.callback(Output("turn", "children"), Input("found", "data"), Input("page", "data"), Input("chosen", "data"))
    def tell_page(found: list[str], page: int, chosen: list[str]) -> Any:
        number, _ = lists.page(_entries(living, found), page)
        return lists.turning(len(found), number, len(chosen))

    @app.callback(
        Output("page", "data", allow_duplicate=True),
        Input({"type": "turn", "by": ALL}, "n_clicks"),
        State("page", "data"),
        State("found", "data"),
        prevent_initial_call=True,
    )
    def turn(clicks: list[int | None], page: int, found: list[str]) -> Any:
        number, _ = lists.page(_entries(living, found), page)
        return number + ctx.triggered_id["by"] if any(clicks) else no_update

    @app.callback(
        Output("chosen", "data"),
        Input({"type": "pick", "run": ALL}, "value"),
        State({"type": "pick", "run": ALL}, "id"),
        State("chosen", "data"),
        prevent_initial_call=True,
    )
    def choose(values: list[list[str]], boxes: list[dict[str, str]], chosen: list[str]) -> Any:
        shown = {box["run"]: bool(value) for box, value in zip(boxes, values, strict=True)}
        kept = [run for run in chosen if shown.get(run, True)]
        now = [*kept, *(run for run, picked in shown.items() if picked and run not in kept)]
        return now if now != chosen else no_update

    @app.callback(
        Output({"type": "pick", "run": ALL}, "value"),
        Output("chosen", "data", allow_duplicate=True),
        Input({"type": "forget"}, "n_clicks"),
        State({"type": "pick", "run": ALL}, "id"),
        prevent_initial_call=True,
    )
    def forget(clicks: int | None, boxes: list[dict[str, str]]) -> Any:
        return ([[] for _ in boxes], []) if clicks else ([no_update] * len(boxes), no_update)

    @app.callback(Output("again", "n_clicks"), Input("again", "n_clicks"), prevent_initial_call=True)
    def again(_: int) -> Any:
        living.refresh()
        return no_update


def _drawing(app: Dash, living: Living) -> None:
    @app.callback(
        Output("graph", "elements"),
        Output("nodes", "children"),
        Output("drawn", "children"),
        Output("graph", "style"),
        Input("found", "data"),
        Input("chosen", "data"),
        Input("version", "data"),
        State("node", "data"),
        State("graph", "elements"),
    )
    def draw(found: list[str], chosen: list[str], _: str, node: str | None, before: list[Any]) -> Any:
        runs = [run for run in chosen if run in living.index.entries][:MOST]
        runs = runs or [one.id for one in _entries(living, found) if not one.audit][:DRAWN] or found[:1]
        living.ask(runs)
        graph = graph_of(living.index.graph(runs))
        elements = drawing.elements(graph, living.marks)
        if elements == before:
            return [no_update] * 4
        which = "the chosen" if chosen else "the newest that were found; choose others in the list"
        more = f", the first {MOST} of {len(chosen)}" if len(chosen) > MOST else ""
        said = f"{len(graph.nodes)} results of {len(runs)} runs: {which}{more}."
        listed = drawing.listed((one.node for one in graph.nodes.values()), living.marks, node)
        return elements, listed, said, drawing.height(graph)

    @app.callback(
        Output("node", "data"),
        Output("chosen", "data", allow_duplicate=True),
        Input("graph", "tapNodeData"),
        Input({"type": "node", "path": ALL, "where": ALL}, "n_clicks"),
        Input("url", "pathname"),
        State("chosen", "data"),
        prevent_initial_call="initial_duplicate",
    )
    def select(tapped: dict[str, str] | None, clicks: list[int | None], address: str, chosen: list[str]) -> Any:
        if ctx.triggered_id == "graph":
            return (tapped["id"] if tapped else no_update), no_update
        if isinstance(ctx.triggered_id, dict):  # buttons that have just been made ask, too
            return (ctx.triggered_id["path"] if any(clicks) else no_update), no_update
        path = (address or "").removeprefix(NODE)
        if path == address or path not in living.index.nodes:
            return no_update, no_update
        using = [use.run for use in living.index.nodes[path].uses]
        return path, (no_update if set(using) & set(chosen) else [*chosen, using[0]])

    @app.callback(
        Output("details", "children"),
        Output("graph", "stylesheet"),
        Output({"type": "node", "path": ALL, "where": "list"}, "aria-pressed"),
        Input("node", "data"),
        Input("version", "data"),
        State({"type": "node", "path": ALL, "where": "list"}, "id"),
    )
    def tell(path: str | None, _: str, buttons: list[dict[str, str]]) -> Any:
        index = living.index
        pressed = [drawing.pressed(one["path"] == path) for one in buttons]
        if path is None or path not in index.nodes:
            return "Choose a node in the graph or in the list.", drawing.stylesheet(), pressed
        stages = {one: node.stage for one, node in index.nodes.items()}
        near = list(upstream(stages, path))
        return nodes.told(path, living), drawing.stylesheet(path, near), pressed


def _viewing(app: Dash, living: Living) -> None:
    @app.callback(
        *(Output(f"view-{name.lower()}", "hidden") for name in VIEWS.values()),
        Output("choosing", "hidden"),
        *(Output(f"to-{name.lower()}", "className") for name in VIEWS.values()),
        Input("url", "pathname"),
    )
    def view(path: str) -> list[Any]:
        asked = "/" + (path or "/").split("/")[1]
        here = asked if asked in VIEWS else "/"
        return [
            *(one != here for one in VIEWS),
            here not in ("/", "/compare"),
            *("here" if one == here else "" for one in VIEWS),
        ]

    @app.callback(
        Output("measure", "options"), Output("measure", "value"), Input("version", "data"), State("measure", "value")
    )
    def offer_measures(_: str, before: str | None) -> Any:
        found = comparing.measures(living.index.entries.values())
        return found, before if before in found else next(iter(found), None)

    @app.callback(
        Output("comparison", "children"),
        Output("compared", "children"),
        Input("url", "pathname"),
        Input("chosen", "data"),
        Input("found", "data"),
        Input("measure", "value"),
    )
    def compare(path: str, chosen: list[str], found: list[str], measure: str | None) -> Any:
        if path != "/compare" or measure is None:
            return no_update, no_update
        entries = [one for one in _entries(living, chosen or found) if not one.audit]
        if not chosen:
            return views.sections(comparing.overview(entries, measure)), (
                "No run is chosen: all that were found are drawn. Choose some in the list to compare them."
            )
        return views.sections(comparing.comparison(entries, measure, living.tracker)), (
            f"{len(entries)} runs, in the order in which they were chosen."
        )

    @app.callback(Output("view-audits", "children"), Input("url", "pathname"), Input("version", "data"))
    def audit(path: str, _: str) -> Any:
        if not path.startswith("/audits"):
            return no_update
        return nodes.audit_view(audits(living.index), path.removeprefix("/audits").strip("/"))

    @app.callback(Output("view-models", "children"), Input("url", "pathname"), Input("version", "data"))
    def model(path: str, _: str) -> Any:
        if not path.startswith("/models"):
            return no_update
        return nodes.model_view(living, path.removeprefix("/models").strip("/"))


def _entries(living: Living, runs: Sequence[str]) -> list[Entry]:
    entries = living.index.entries
    return [entries[run] for run in runs if run in entries]


def day(text: str | None) -> date | None:
    """A day as it was written; None for one that is not whole or no day."""
    try:
        return date.fromisoformat((text or "").strip())
    except ValueError:
        return None
