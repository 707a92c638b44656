"""Answers about the list of runs: what is found, turned, and chosen."""

from datetime import date
from typing import Any

from dash import ALL, Dash, Input, Output, State, ctx, no_update

from flows.dashboard import lists
from flows.dashboard.index import Wanted
from flows.dashboard.watching import Watcher


def register(app: Dash, watcher: Watcher) -> None:
    """Have the app answer."""

    @app.callback(
        Output("version", "data"), Output("status", "children"), Input("tick", "n_intervals"), State("version", "data")
    )
    def look(_: int, before: int | None) -> tuple[Any, str]:
        now = watcher.version
        return (now if now != before else no_update), lists.status(watcher)

    @app.callback(*(Output(name, "options") for name in ("model", "method", "corpus")), Input("version", "data"))
    def offer(_: str) -> list[list[str]]:
        return [watcher.index.choices(name) for name in ("model", "method", "corpora")]

    @app.callback(
        Output("found", "data"),
        Output("page", "data"),
        Input("version", "data"),
        *(Input(name, "value") for name in ("text", "model", "method", "corpus", "first", "last", "marks", "order")),
        State("found", "data"),
    )
    def search(_: str, text: str | None, model: str | None, method: str | None, corpus: str | None, first: str | None,
               last: str | None, marks: str | None, order: str, before: list[str]) -> Any:  # fmt: skip
        wanted = Wanted(text or "", model or "", method or "", corpus or "", day(first), day(last))
        found = lists.marked(watcher.index.search(wanted), watcher.marks, marks or "")
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
        entries = lists.page(watcher.index.those(found), page)[1]
        rows = lists.said(entries)
        return (no_update, no_update) if rows == before else (lists.table(entries, chosen, watcher.marks), rows)

    @app.callback(
        Output({"type": "marks", "run": ALL}, "children"),
        Input("version", "data"),
        State({"type": "marks", "run": ALL}, "id"),
    )
    def mark(_: str, spans: list[dict[str, str]]) -> list[str]:
        return [lists.marks_of(one, watcher.marks) for one in watcher.index.those([span["run"] for span in spans])]

    @app.callback(Output("turn", "children"), Input("found", "data"), Input("page", "data"), Input("chosen", "data"))
    def tell_page(found: list[str], page: int, chosen: list[str]) -> Any:
        number, _ = lists.page(watcher.index.those(found), page)
        return lists.turning(len(found), number, len(chosen))

    @app.callback(
        Output("page", "data", allow_duplicate=True),
        Input({"type": "turn", "by": ALL}, "n_clicks"),
        State("page", "data"),
        State("found", "data"),
        prevent_initial_call=True,
    )
    def turn(clicks: list[int | None], page: int, found: list[str]) -> Any:
        number, _ = lists.page(watcher.index.those(found), page)
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
        watcher.refresh()
        return no_update


def day(text: str | None) -> date | None:
    """A day as it was written; None for one that is not whole or no day."""
    try:
        return date.fromisoformat((text or "").strip())
    except ValueError:
        return None
