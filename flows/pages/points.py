"""Points with error bars, for a page. See flows.pages."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle, pairwise
from typing import Any

from flows.pages.figure import COLOURS, MARKS, TALLEST, Drawn, axis, between, error_bars, label_of, lines_of


@dataclass(frozen=True)
class Interval:
    """One value of a row of Intervals, with the ends of its interval where it has one; `group` gives the colour."""

    row: str
    group: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Intervals:
    """Values with their intervals, a row a name, a colour and mark a group.

    Rows stand in the order of their first value, groups in that of `groups`, so that each has its colour in several
    plots. `bands` are (group, from, to), such as the range of random draws.
    """

    title: str
    values: Sequence[Interval]
    groups: Sequence[str]
    x_title: str
    bands: Sequence[tuple[str, float, float]] = ()
    note: str = ""
    half: bool = False

    def html(self, name: str) -> str:
        """The plot as HTML, its elements' ids beginning with `name`."""
        return self.drawn().html(self, name)

    def drawn(self) -> Drawn:
        """The plot as data."""
        rows = list(dict.fromkeys(value.row for value in self.values))
        colours = dict(zip(self.groups, cycle(COLOURS), strict=False))
        apart = min(0.18, 0.7 / len(self.groups))  # groups beside, not over one another
        traces = []
        for number, (group, mark) in enumerate(zip(self.groups, cycle(MARKS), strict=False)):
            own = [value for value in self.values if value.group == group]
            traces.append({
                "type": "scatter", "mode": "markers", "name": escape(group),
                "x": [value.value for value in own],
                "y": [rows.index(value.row) + apart * (number - (len(self.groups) - 1) / 2) for value in own],
                "marker": {"symbol": mark, "size": 6, "color": colours[group]},
                "error_x": error_bars([(value.value, value.low, value.high) for value in own], colours[group]),
                "text": [f"{escape(value.row)}<br>{value.value:.3f}{between(value.low, value.high)}" for value in own],
                "hovertemplate": f"%{{text}}<extra>{escape(group)}</extra>",
            })  # fmt: skip
        labels = list(map(label_of, rows))
        layout = {
            "height": min(TALLEST, max(260, 120 + 13 * max(1.7, lines_of(labels)) * len(rows))),
            "xaxis": axis(self.x_title),
            "yaxis": axis(
                "", tickvals=list(range(len(rows))), ticktext=labels, range=[len(rows) - 0.5, -0.5], zeroline=False,
                tickfont={"size": 10},
            ),
            "shapes": [
                {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "x0": low, "x1": high, "layer": "below",
                 "fillcolor": colours[group], "opacity": 0.14, "line": {"width": 0}}
                for group, low, high in self.bands
            ],
        }  # fmt: skip
        return Drawn(traces, layout)


@dataclass(frozen=True)
class Point:
    """One point of a Pareto plot; `low` and `high` are the ends of the vertical value's interval."""

    name: str
    group: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Pareto:
    """What is gained against what it costs; less of the horizontal value is better.

    The points that no other point beats in both make the front: drawn as a line, numbered, and named below the plot.
    Of points with equal x the best is drawn there, the others to the right of it, which the page says.
    """

    title: str
    points: Sequence[Point]
    x_title: str
    y_title: str
    higher_is_better: bool
    note: str = ""
    half: bool = False

    def html(self, name: str) -> str:
        """The plot as HTML, its elements' ids beginning with `name`."""
        return self.drawn().html(self, name)

    def drawn(self) -> Drawn:
        """The plot as data."""
        best = front(self.points, self.higher_is_better)
        traces: list[dict[str, Any]] = [{
            "type": "scatter", "mode": "lines", "name": "front", "x": [point.x for point in best],
            "y": [point.y for point in best], "hoverinfo": "skip",
            "line": {"shape": "hv", "color": "#777", "width": 1.5},
        }]  # fmt: skip
        groups = list(dict.fromkeys(point.group for point in self.points))
        places = self._places()
        for group, colour, mark in zip(groups, cycle(COLOURS), cycle(MARKS), strict=False):
            own = [point for point in self.points if point.group == group]
            traces.append({
                "type": "scatter", "mode": "markers+text", "name": escape(group),
                "x": [places[point] for point in own], "y": [point.y for point in own],
                "text": [str(best.index(point) + 1) if point in best else "" for point in own],
                "textposition": "top left", "textfont": {"size": 13, "color": "#000"}, "cliponaxis": False,
                "marker": {"symbol": [mark if point in best else f"{mark}-open" for point in own], "size": 9,
                           "color": colour},
                "error_y": error_bars([(point.y, point.low, point.high) for point in own], colour),
                "customdata": [[escape(point.name), point.x] for point in own],
                "hovertemplate": "%{customdata[0]}<br>%{customdata[1]:,.1f}; %{y:.3f}"
                                 f"<extra>{escape(group)}</extra>",
            })  # fmt: skip
        layout = {"height": 500, "xaxis": axis(self.x_title), "yaxis": axis(self.y_title)}
        head = f"Front, filled marks: {self.x_title}; {self.y_title} [interval]"
        if len({point.x for point in self.points}) < len(self.points):
            head += ". Of marks with equal horizontal values the best is in its place, the others are beside it"
        return Drawn(traces, layout, head, list(map(self._told, best)))

    def _told(self, point: Point) -> str:
        """A point of the front, and how many others might stand in its place."""
        near = sum(other is not point and other.x <= point.x and _overlap(other, point) for other in self.points)
        text = f"{point.name}, {point.group}: {point.x:,.1f}; {point.y:+.3f}{between(point.low, point.high)}"
        return text + (f"; of the others that cost no more {near} overlap with its bar" if near else "")

    def _places(self) -> dict[Point, float]:
        """Where each point is drawn: the best of those with equal x in its place, the others to the right of it."""
        values = sorted({point.x for point in self.points})
        room = min((right - left for left, right in pairwise(values)), default=0.1 * values[0])
        sign = -1 if self.higher_is_better else 1
        places = {}
        for x in values:
            equal = (point for point in self.points if point.x == x)
            own = sorted(equal, key=lambda point: sign * point.y)  # of equals the front's first
            for number, point in enumerate(own):
                places[point] = x + 0.5 * room * number / len(own)
        return places


def front(points: Iterable[Point], higher_is_better: bool) -> list[Point]:
    """The points that no other beats, from the least x on: each is better in y than all with less or equal x."""
    sign = -1 if higher_is_better else 1
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, sign * point.y)):
        if not best or sign * point.y < sign * best[-1].y:
            best.append(point)
    return best


def _overlap(one: Point, other: Point) -> bool:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low <= other.high and other.low <= one.high
