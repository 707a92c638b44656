"""Sweeps of the sample's recipe, and what is read off their plans."""

from pathlib import Path
from typing import Any

import sample

GRID = "params/grid.yaml"


def grid(evaluate: dict[str, Any] | None = None, **sections: Any) -> None:
    """Write params/grid.yaml, which measures nothing unless told, into the working directory."""
    sample.write_recipe(Path(GRID), evaluate, **sections)


def counts(answer: Any) -> dict[str, list[int]]:
    """The numbers of each line of a sweep's plan: wanted, distinct, in the store, to run."""
    assert answer.status == 0, answer.err
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in answer.out.splitlines() if "│" in line]
    return {row[0]: [int(cell) for cell in row[1:]] for row in rows}
