"""Values in a grid of colours, for a page. See flows.pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from flows.pages.figure import TALLEST, Drawn, Values, axis, colour_scale, label_of, lines_of, short


@dataclass(frozen=True)
class HeatMap:
    """A value for every expert of every layer; a layer with fewer experts has a shorter row.

    `layers` are the layers' numbers, one a row of `values`; `unit` says what the values are; `low` and `high` are the
    ends of the colours.
    """

    title: str
    layers: Sequence[int]
    values: Sequence[Values]
    unit: str = "probability of being kept"
    low: float = 0.0
    high: float = 1.0
    note: str = ""
    half: bool = False

    def html(self, name: str) -> str:
        """The plot as HTML, its elements' ids beginning with `name`."""
        return self.drawn().html(self, name)

    def drawn(self) -> Drawn:
        """The plot as data."""
        widest = max(map(len, self.values))
        rows = [[*map(short, row), *[None] * (widest - len(row))] for row in self.values]
        trace = {
            "type": "heatmap",
            "z": rows,
            "x": list(range(widest)),
            "y": [str(layer) for layer in self.layers],
            "hoverongaps": False,
            "hovertemplate": f"layer %{{y}}, expert %{{x}}<br>{escape(self.unit)} %{{z:.3f}}<extra></extra>",
            **colour_scale(self.unit, self.low, self.high),
        }
        layout = {
            "height": min(TALLEST, max(260, 110 + 13 * len(rows))),
            "xaxis": axis("expert", tickformat="d", showgrid=False),
            "yaxis": axis("layer", type="category", autorange="reversed", showgrid=False),
        }
        return Drawn([trace], layout)


@dataclass(frozen=True)
class Matrix:
    """A value for every pair of a row and a column, written into its cell; None leaves the cell empty."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Values]
    unit: str
    low: float = 0.0
    high: float = 1.0
    digits: int = 2
    note: str = ""
    half: bool = False

    def html(self, name: str) -> str:
        """The plot as HTML, its elements' ids beginning with `name`."""
        return self.drawn().html(self, name)

    def drawn(self) -> Drawn:
        """The plot as data."""
        size = 12 if len(self.columns) <= 10 else 9
        rows, columns = list(map(label_of, self.rows)), list(map(label_of, self.columns))
        values = [list(map(short, row)) for row in self.values]
        traces = [
            {
                "type": "heatmap", "z": values, "x": columns, "y": rows, "xgap": 1, "ygap": 1, "hoverongaps": False,
                "hovertemplate": f"%{{y}}, %{{x}}<br>{escape(self.unit)} %{{z:.{self.digits + 1}f}}<extra></extra>",
                **colour_scale(self.unit, self.low, self.high),
            },
            self._written(rows, columns, size),
        ]  # fmt: skip
        letters = max(len(line) for label in columns for line in label.split("<br>"))
        slanted = letters * len(columns) > 60  # else all stand side by side
        layout = {
            "height": min(TALLEST, 130 + max(34, 16 * lines_of(rows)) * len(rows) + (5 * letters if slanted else 0)),
            "xaxis": axis(
                "", type="category", showgrid=False, tickfont={"size": size}, tickangle=-40 if slanted else 0, dtick=1
            ),
            "yaxis": axis("", type="category", autorange="reversed", showgrid=False, tickfont={"size": size}, dtick=1),
        }
        return Drawn(traces, layout)

    def _written(self, rows: list[str], columns: list[str], size: int) -> dict[str, Any]:
        """Every value in its cell, in white on the dark colours."""
        cells = [
            (column, row, value)
            for row, line in zip(rows, self.values, strict=True)
            for column, value in zip(columns, line, strict=True)
            if value is not None
        ]
        dark = self.low + 0.45 * (self.high - self.low)
        return {
            "type": "scatter", "mode": "text", "hoverinfo": "skip", "showlegend": False,
            "x": [column for column, _, _ in cells], "y": [row for _, row, _ in cells],
            "text": [f"{value:.{self.digits}f}" for _, _, value in cells],
            "textfont": {"size": size, "color": ["#fff" if value < dark else "#000" for _, _, value in cells]},
        }  # fmt: skip
