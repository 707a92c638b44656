"""The example notebook, executed in a project that has observations."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs/audit.ipynb"


@pytest.fixture(scope="module")
def executed(finished, tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder it was run in, and what each cell of code has printed or returned."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / ".moeprune").mkdir()
    for stage in ("observe", "download"):
        shutil.copytree(finished[0] / ".moeprune" / stage, folder / ".moeprune" / stage)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [output for cell in cells for output in cell.outputs if output.output_type == "error"] == []
    return folder, ["".join(_text(output) for output in cell.outputs) for cell in cells]


def _text(output) -> str:
    if output.get("name") == "stderr":  # what libraries warn of, such as missing widgets
        return ""
    return output.get("text") or output.get("data", {}).get("text/plain", "")


def test_notebook_finds_the_corpora_of_the_project_and_its_own_criterion(executed):
    _, said = executed
    assert "wiki       256 tokens in 4 chunks" in said[0] and "code" in said[0]
    assert "torch.Size([2, 8])" in said[1]
    assert {line.split("  ")[0].strip() for line in said[2].splitlines()} == {
        "reap",
        "man",
        "frequency",
        "busy and loud",
    }


def test_notebook_makes_a_page_of_its_own(executed):
    folder, said = executed
    page = (folder / "my-audit.html").read_text()
    assert page.count('class="plot"') == 3 and "Kept by reap" in page
    assert "IFrame" in said[-1]


def test_notebook_is_kept_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")
