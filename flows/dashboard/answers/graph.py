"""Answers about the graph and its nodes."""

from typing import Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, ctx, no_update

from flows.dashboard import cytoscape, views
from flows.dashboard.graph import graph_of
from flows.dashboard.watching import Watcher
from tasks.lineage import upstream

NODE = "/node/"
"""How the address of a node's details begins."""
DRAWN = 4
"""Newest runs drawn where none is chosen."""
MOST = 40
"""Runs drawn at once; more could not be read."""


def register(app: Dash, watcher: Watcher) -> None:
    """Have the app answer."""

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
        runs = [run for run in chosen if run in watcher.index.entries][:MOST]
        runs = runs or [one.id for one in watcher.index.those(found) if not one.audit][:DRAWN] or found[:1]
        watcher.ask(runs)
        graph = graph_of(watcher.index.graph(runs))
        elements = cytoscape.elements(graph, watcher.marks)
        if elements == before:
            return [no_update] * 4
        which = "the chosen" if chosen else "the newest that were found; choose others in the list"
        more = f", the first {MOST} of {len(chosen)}" if len(chosen) > MOST else ""
        said = f"{len(graph.nodes)} results of {len(runs)} runs: {which}{more}."
        listed = cytoscape.listed((one.node for one in graph.nodes.values()), watcher.marks, node)
        return elements, listed, said, cytoscape.height(graph)

    fit = ClientsideFunction("moeprune", "fit")
    app.clientside_callback(fit, Input("graph", "elements"))  # type: ignore[no-untyped-call]

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
        if path == address:
            return no_update, no_update
        if path not in watcher.index.nodes:
            return path, no_update
        using = [use.run for use in watcher.index.nodes[path].uses]
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
        index = watcher.index
        pressed = [cytoscape.pressed(one["path"] == path) for one in buttons]
        if path is None or path not in index.nodes:
            said = f"No run that was read names {path}." if path else "Choose a node in the graph or in the list."
            return said, cytoscape.stylesheet(), pressed
        stages = {one: node.stage for one, node in index.nodes.items()}
        near = list(upstream(stages, path))
        return views.node_view(path, watcher), cytoscape.stylesheet(path, near), pressed
