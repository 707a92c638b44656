"""Answers of the views beside the graph: comparisons, audits, models."""

import json
from typing import Any

from dash import Dash, Input, Output, State, no_update

from flows.dashboard import comparing, nodes, views
from flows.dashboard.audits import audits
from flows.dashboard.details import told
from flows.dashboard.living import Living
from flows.dashboard.models import models
from flows.dashboard.page import VIEWS


def register(app: Dash, living: Living) -> None:
    """Have the app answer."""

    @app.callback(
        *(Output(f"view-{name.lower()}", "hidden") for name in VIEWS.values()),
        Output("choosing", "hidden"),
        Output("listing", "hidden"),
        *(Output(f"to-{name.lower()}", "className") for name in VIEWS.values()),
        Input("url", "pathname"),
    )
    def view(path: str) -> list[Any]:
        asked = "/" + (path or "/").split("/")[1]
        here = asked if asked in VIEWS else "/"
        return [
            *(one != here for one in VIEWS),
            here == "/audits",
            here not in ("/", "/compare"),
            *("here" if one == here else "" for one in VIEWS),
        ]

    @app.callback(
        Output("measure", "options"), Output("measure", "value"), Input("version", "data"), State("measure", "value")
    )
    def offer_measures(_: str, before: str | None) -> Any:
        found = comparing.measures(living.index.entries.values())
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
        if path != "/compare" or measure is None:
            return [no_update] * 3
        entries = [one for one in living.index.those(chosen or found) if not one.audit]
        said = [bool(chosen), measure, [[one.id, one.lineage.run.status] for one in entries]]
        if said == before:
            return [no_update] * 3
        if chosen:
            shown = comparing.comparison(entries, measure, living.tracker)
            return views.sections(shown), f"{len(entries)} runs, in the order in which they were chosen.", said
        note = "No run is chosen: all that were found are drawn. Choose some in the list to compare them."
        return views.sections(comparing.overview(entries, measure)), note, said

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
        known = audits(living.index)
        said = [path, [[one.id, one.lineage.run.status] for one in known]]
        if said == before:
            return no_update, no_update
        return nodes.audit_view(known, path.removeprefix("/audits").strip("/")), said

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
        known = models(living)
        path = address.removeprefix("/models").strip("/")
        listed = [one for one in living.index.graph(found) if one in known]
        one = [path, len(known[path].node.uses), *told(path, living.marks)] if path in known else []
        said = [listed[: nodes.MODELS_LISTED], one, [known[each].aliases for each in ([path] if one else listed)]]
        said = json.loads(json.dumps(said))
        if said == before:
            return no_update, no_update
        return nodes.model_view(living, known, listed, path), said
