"""Answers of the views beside the graph: comparisons, audits, models."""

import json
from typing import Any

from dash import Dash, Input, Output, State, html, no_update

from flows.dashboard import comparing, parts, views
from flows.dashboard.answers.graph import NODE
from flows.dashboard.audits import audits_of
from flows.dashboard.details import marks_in_words
from flows.dashboard.models import models_of
from flows.dashboard.page import VIEWS
from flows.dashboard.watching import Watcher


def register(app: Dash, watcher: Watcher) -> None:
    """Have the app answer."""

    @app.callback(
        *(Output(f"view-{name.lower()}", "hidden") for name in VIEWS.values()),
        Output("lost", "children"),
        Output("choosing", "hidden"),
        Output("listing", "hidden"),
        *(Output(f"to-{name.lower()}", "className") for name in VIEWS.values()),
        Input("url", "pathname"),
    )
    def view(path: str) -> list[Any]:
        path = path or "/"
        here = view_of(path)
        return [
            *(one != here for one in VIEWS),
            [] if here else html.P(f"There is no page {path}.", className="note"),
            here in ("/audits", None),
            here not in ("/", "/compare"),
            *("here" if one == here else "" for one in VIEWS),
        ]

    @app.callback(
        Output("measure", "options"), Output("measure", "value"), Input("version", "data"), State("measure", "value")
    )
    def offer_measures(_: str, before: str | None) -> Any:
        found = comparing.measures(watcher.index.entries.values())
        return found, (no_update if before in found else next(iter(found), None))

    # Views are made anew, and lose the reader's focus, only if what they say has changed.

    @app.callback(
        Output("comparison", "children"),
        Output("compared", "children"),
        Output("comparing", "data"),
        Input("url", "pathname"),
        Input("chosen", "data"),
        Input("found", "data"),
        Input("measure", "value"),
        State("comparing", "data"),
    )
    def compare(path: str, chosen: list[str], found: list[str], measure: str | None, before: Any) -> Any:
        entries = [one for one in watcher.index.those(chosen or found) if not one.audit]
        if path != "/compare" or (measure is None and comparing.measures(entries)):  # one is about to be chosen
            return [no_update] * 3
        said = [bool(chosen), measure, [[one.id, one.lineage.run.status] for one in entries]]
        if said == before:
            return [no_update] * 3
        drawn = comparing.overview(entries, measure) if measure else []
        if chosen:
            shown = [*drawn, *comparing.beside(entries, watcher.tracker)]
            return parts.sections(shown), f"{len(entries)} runs, in the order in which they were chosen.", said
        note = "No run is chosen: all that were found are drawn. Choose some in the list to compare them."
        return parts.sections(drawn), note, said

    @app.callback(
        Output("view-audits", "children"),
        Output("audits", "data"),
        Input("url", "pathname"),
        Input("version", "data"),
        State("audits", "data"),
    )
    def audit(path: str, _: int, before: Any) -> Any:
        if not path.startswith("/audits"):
            return no_update, no_update
        known = audits_of(watcher.index)
        said = [path, [[one.id, one.lineage.run.status] for one in known]]
        if said == before:
            return no_update, no_update
        return views.audit_view(known, path.removeprefix("/audits").strip("/")), said

    @app.callback(
        Output("view-models", "children"),
        Output("models", "data"),
        Input("url", "pathname"),
        Input("found", "data"),
        Input("version", "data"),
        State("models", "data"),
    )
    def model(address: str, found: list[str], _: int, before: Any) -> Any:
        if not address.startswith("/models"):
            return no_update, no_update
        known = models_of(watcher)
        path = address.removeprefix("/models").strip("/")
        listed = [one for one in watcher.index.graph(found) if one in known]
        one = [path, len(known[path].node.uses), *marks_in_words(path, watcher.marks)] if path in known else []
        said = [listed[: views.MODELS_LISTED], one, [known[each].aliases for each in ([path] if one else listed)]]
        said = json.loads(json.dumps(said))
        if said == before:
            return no_update, no_update
        return views.model_view(watcher, known, listed, path), said


def view_of(path: str) -> str | None:
    """The view of an address; None if there is no such page."""
    if path.startswith(NODE):
        return "/"
    first = "/" + path.split("/")[1]
    return first if first in VIEWS and (path == first or first in ("/audits", "/models")) else None
