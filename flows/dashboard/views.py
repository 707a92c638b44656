"""One thing at a time: a node's details, an audit's report, a model with its card."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dash import dcc, html

from flows.dashboard.audits import overview
from flows.dashboard.cytoscape import button
from flows.dashboard.details import details, manifest
from flows.dashboard.index import MODELS, Entry, Index
from flows.dashboard.models import Model, card
from flows.dashboard.parts import part, plain_table
from flows.dashboard.watching import Watcher
from moeprune.errors import BadInput

MODELS_LISTED = 100
"""Models in the list; a search finds others."""
USES = 50
"""Runs listed that share one result."""


def node_view(path: str, watcher: Watcher) -> list[Any]:
    """A node's facts, marks, neighbours, runs and manifest."""
    index = watcher.index
    found = details(path, index, watcher.marks)
    kind = found.node.kind
    return [
        html.H3(found.node.label),
        *(html.P(mark, className="mark") for mark in found.marks),
        *([html.P(dcc.Link("The model's page and card", href=f"/models/{path}"))] if kind in MODELS else []),
        facts(found.facts),
        _neighbours("Made from", found.origins, watcher),
        _neighbours("Led to", found.products, watcher),
        html.H4("In runs"),
        plain_table(
            ["began (UTC)", "run", "cache"],
            [
                [f"{index.entries[use.run].lineage.run.start:%Y-%m-%d %H:%M}",
                 f"{index.entries[use.run].lineage.run.name} ({use.run[:8]})", use.stage.cache]
                for use in found.node.uses[:USES]
            ],
        ),
        html.Details([html.Summary("Manifest"), html.Pre(_manifest(path, watcher))]),
    ]  # fmt: skip


def facts(values: Any) -> Any:
    """Names and short values."""
    return html.Dl([each for name, value in values.items() for each in (html.Dt(name), html.Dd(value))])


def _neighbours(title: str, paths: Sequence[str], watcher: Watcher) -> Any:
    nodes = watcher.index.nodes
    known = [nodes[path] for path in paths if path in nodes]
    shown = [button(node, watcher.marks, where=title) for node in known[:USES]]
    more = [f"and {len(known) - USES} more"] if len(known) > USES else []
    return html.Div([html.H4(title), *(shown or ["nothing"]), *more], className="nodes")


def _links(title: str, paths: Sequence[str], watcher: Watcher) -> Any:
    """Neighbours as links: to the pages of models, else to the graph."""
    nodes = watcher.index.nodes
    known = [nodes[path] for path in paths if path in nodes]
    shown = [
        html.Li(dcc.Link(f"{one.label} {one.stage.digest[:8]}",
                         href=f"/{'models' if one.kind in MODELS else 'node'}/{one.path}"))
        for one in known
    ]  # fmt: skip
    return html.Div([html.H3(title), html.Ul(shown) if shown else "nothing"])


def _manifest(path: str, watcher: Watcher) -> str:
    try:
        return json.dumps(manifest(watcher.index.nodes[path], watcher.tracker), indent=1, ensure_ascii=False)
    except BadInput as error:
        return str(error)


def audit_view(entries: Sequence[Entry], chosen: str) -> list[Any]:
    """All audits, and the report of the chosen one, else of the newest."""
    known = {entry.id: entry for entry in entries}
    lost = f"No audit that was read has the id {chosen}." if chosen and chosen not in known else ""
    if not entries:
        return [html.P(f"{lost} There is no audit yet: `moeprune audit params/audit-demo.yaml` makes one.".lstrip())]
    shown = known.get(chosen, entries[0])
    address = f"/audit-report/{shown.id}"
    return [
        *([html.P(f"{lost} The newest is shown.", className="note")] if lost else []),
        html.Ul([
            html.Li(dcc.Link(
                f"{one.lineage.run.start:%Y-%m-%d %H:%M} {one.lineage.run.name}: {one.method} ({one.id[:8]})",
                href=f"/audits/{one.id}", className="here" if one is shown else "",
            ))
            for one in entries
        ]),
        part(overview([shown])),
        html.P(html.A("The report by itself", href=address, target="_blank")),
        html.Iframe(src=address, title=f"Report of audit {shown.lineage.run.name}", className="report",
                    sandbox="allow-scripts allow-downloads"),
    ]  # fmt: skip


def model_view(watcher: Watcher, known: Mapping[str, Model], listed: Sequence[str], path: str) -> list[Any]:
    """The models listed, or the one at `path` with its card."""
    if path in known:
        return _model(known[path], watcher)
    shown = [known[one] for one in listed[:MODELS_LISTED]]
    rows = [
        [dcc.Link(one.name, href=f"/models/{one.node.path}"), one.node.kind, one.node.stage.digest[:8],
         ", ".join(one.aliases), f"{one.node.stage.start:%Y-%m-%d %H:%M}", len(one.node.uses),
         _state(one, watcher.index)]
        for one in shown
    ]  # fmt: skip
    heads = ["model", "kind", "digest", "registered as", "recorded (UTC)", "runs", ""]
    more = f", the newest {MODELS_LISTED} of them shown" if len(listed) > MODELS_LISTED else ""
    said = html.P(f"{len(listed):,} models of the runs that fit{more}.", className="note")
    if path:
        said = html.P(f"No run that was read names the model {path}. {said.children}", className="note")
    return [said, plain_table(heads, rows)] if rows else [html.P("No run that fits read or made a model.")]


def _state(model: Model, index: Index) -> str:
    run = index.entries[model.node.uses[0].run].lineage.run
    return "" if run.status == "FINISHED" else f"of a run that is {run.status.lower()}"


def _model(model: Model, watcher: Watcher) -> list[Any]:
    path = model.node.path
    found = details(path, watcher.index, watcher.marks)
    return [
        html.P(dcc.Link("All models", href="/models")),
        html.H2(model.name),
        *(html.P(mark, className="mark") for mark in found.marks),
        facts({"kind": model.node.kind, "registered as": ", ".join(model.aliases) or "not registered", **found.facts}),
        html.P(dcc.Link("In the graph", href=f"/node/{path}")),
        _links("Made from", found.origins, watcher),
        _links("Led to", found.products, watcher),
        html.H3("Card"),
        html.Article(dcc.Markdown(card(model, watcher)), className="card"),
    ]
