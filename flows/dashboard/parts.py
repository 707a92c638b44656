"""Parts of a page (see flows.pages) as Dash shows them."""

from collections.abc import Iterable, Sequence
from typing import Any

from dash import dcc, html

from flows.pages import Paragraph, Part, Section
from flows.pages.figure import Drawn
from flows.pages.lines import LinePlot
from flows.pages.maps import HeatMap, Matrix
from flows.pages.points import Intervals, Pareto
from flows.pages.table import Table, written

PLOTS = (LinePlot, HeatMap, Matrix, Intervals, Pareto)
BAR: Any = {"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": "", "modeBarButtons": [["toImage"]]}
"""Nothing is offered to be uploaded."""


def aria(**words: str) -> Any:
    """What a screen reader is told: `aria(label="Views")`."""
    return {f"aria-{name}": word for name, word in words.items()}


def sections(found: Iterable[Section]) -> list[Any]:
    """Sections under their headings."""
    return [
        html.Section([html.H2(one.title), html.Div([part(each) for each in one.parts], className="parts")])
        for one in found
    ]


def part(one: Part) -> Any:
    """A part: prose, a table or a plot."""
    if isinstance(one, Paragraph):
        return html.P(one.text)
    if isinstance(one, Table):
        return table(one)
    assert isinstance(one, PLOTS), type(one)
    return _plot(one.title, one.note, one.half, one.drawn())


def _plot(title: str, note: str, half: bool, drawn: Drawn) -> Any:
    figure = drawn.figure()
    height = {"height": f"{drawn.layout['height']}px"}
    listed = html.Ol([html.Li(text) for text in drawn.below])
    below = [html.P(drawn.head, className="note"), listed] if drawn.head else []
    return html.Figure(
        [html.H3(title), dcc.Graph(figure=figure, config=BAR, style=height), html.Figcaption(note), *below],
        className="half" if half else "",
        **aria(label=title),
    )


def table(one: Table) -> Any:
    """A table of text and numbers."""
    numbers = [not any(isinstance(row[place], str) for row in one.rows) for place in range(len(one.columns))]
    kinds = ["number" if number else "" for number in numbers]
    return html.Div(
        [
            html.H3(one.title),
            html.P(one.note, className="note"),
            plain_table(
                [column.name for column in one.columns],
                [[written(cell, column) for cell, column in zip(row, one.columns, strict=True)] for row in one.rows],
                kinds,
            ),
        ],
        className="table",
    )


def plain_table(heads: Sequence[Any], rows: Iterable[Sequence[Any]], kinds: Sequence[str] | None = None) -> Any:
    """Rows of anything Dash can show under heads; `kinds` are the columns' classes."""
    classes = kinds or [""] * len(heads)
    return html.Div(
        html.Table(
            [
                html.Thead(html.Tr([html.Th(head, scope="col", className=kind)
                                    for head, kind in zip(heads, classes, strict=True)])),
                html.Tbody([
                    html.Tr([html.Td(cell, className=kind) for cell, kind in zip(row, classes, strict=True)])
                    for row in rows
                ]),
            ]
        ),
        className="scroll",
    )  # fmt: skip
