"""A table for a page: sorted by any column with the mouse or the keyboard, exported as CSV. See flows.pages."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, isfinite, log10

MANY = 8
"""Tables of more columns are printed on a page turned sideways."""


@dataclass(frozen=True)
class Measured:
    """A number with what is added and taken for its interval, and a remark: `+0.264 ± 0.018 ▼`."""

    value: float
    spread: float | None = None
    remark: str = ""


Cell = str | int | float | Measured | None


@dataclass(frozen=True)
class Column:
    """A column's heading, with its unit, and how Python writes its numbers."""

    name: str
    digits: str = "g"


def written(cell: Cell, column: Column) -> str:
    """A cell's text.

    Where a column asks for a number of figures (`.4g`), a value has no more places than the two leading figures of its
    spread, and one of more figures is written whole: 13,840, not 1.384e+04.
    """
    if cell is None or isinstance(cell, str):
        return cell or ""
    measured, digits = cell if isinstance(cell, Measured) else Measured(cell), column.digits
    if measured.spread and isfinite(measured.spread) and digits.endswith("g"):
        digits = f",.{max(0, 1 - floor(log10(measured.spread)))}f"
    spread = "" if measured.spread is None else f" ± {_figures(measured.spread, digits.lstrip('+'))}"
    return f"{_figures(measured.value, digits)}{spread} {measured.remark}".rstrip()


def _figures(value: float, digits: str) -> str:
    text = format(value, digits)
    return format(value, ",.0f") if "e+" in text else text


@dataclass(frozen=True)
class Table:
    """Rows of cells; None is an empty cell. A column is of numbers if all its cells are, and sorts by them.

    The CSV file, called `file`, holds the rows in the order shown, numbers unrounded; a column with spreads or remarks
    becomes up to three: its name, `name ±` and `name remark`.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    file: str = "table.csv"
    note: str = ""

    def html(self, name: str) -> str:
        """The table as HTML, its elements' ids beginning with `name`."""
        written = [_Written(column, [row[number] for row in self.rows]) for number, column in enumerate(self.columns)]
        heads = "".join(column.head for column in written)
        rows = "\n".join(f"<tr>{''.join(column.cell(row) for column in written)}</tr>" for row in range(len(self.rows)))
        return (
            f'<div class="table{" across" if len(self.columns) > MANY else ""}"><h3 id="{name}-title">'
            f'{escape(self.title)}</h3>\n<p class="note">{escape(self.note)}</p>\n'
            f'<div class="scroll"><table id="{name}" class="sortable" aria-labelledby="{name}-title">\n'
            f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>\n"
            f'<button type="button" class="csv" data-table="{name}" data-file="{escape(self.file)}">'
            "Save as CSV</button></div>"
        )


class _Written:
    """A column as HTML: its head and cells, each with what it sorts by and its fields of the CSV file."""

    def __init__(self, column: Column, cells: Sequence[Cell]) -> None:
        self.column, self.cells = column, cells
        measured = [cell for cell in cells if isinstance(cell, Measured)]
        self.spreads = any(cell.spread is not None for cell in measured)
        self.remarks = any(cell.remark for cell in measured)
        self.kind = "" if any(isinstance(cell, str) for cell in cells) else ' class="number"'

    @property
    def head(self) -> str:
        name = self.column.name
        csv = self._csv(name, f"{name} ±", f"{name} remark")
        return f'<th scope="col"{self.kind}{csv}><button type="button">{escape(name)}</button></th>'

    def cell(self, row: int) -> str:
        cell = self.cells[row]
        if cell is None:
            return f"<td{self.kind}{self._csv('', '', '')}></td>"
        if isinstance(cell, str):
            return f'<td data-sort="{escape(cell)}"{self._csv(cell, "", "")}>{escape(cell)}</td>'
        measured = cell if isinstance(cell, Measured) else Measured(cell)
        shown = written(cell, self.column)
        spread = "" if measured.spread is None else str(measured.spread)
        csv = self._csv(str(measured.value), spread, measured.remark)
        return f'<td{self.kind} data-sort="{measured.value}"{csv}>{escape(shown)}</td>'

    def _csv(self, value: str, spread: str, remark: str) -> str:
        fields = [value, *([spread] if self.spreads else []), *([remark] if self.remarks else [])]
        return f' data-csv="{escape(json.dumps(fields, ensure_ascii=False))}"'
