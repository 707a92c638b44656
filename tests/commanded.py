"""Runs that several tests of a file look at: made once, by the command line in this process."""

import io
import json
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest

from flows.command import main

MEMORY = {"load_peak_anonymous": 1, "load_peak_mapped": 1, "forward_peak_anonymous": 1, "forward_peak_mapped": 1}


def run_in(project: Path, recipe: str, *changes: str) -> str:
    """The id of a run of a recipe in a project, which must succeed. Its memory is not measured."""
    words = [word for change in changes for word in ("--set", change)]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.chdir(project)
        patch.setattr("moeprune.footprint.measure", lambda *_: MEMORY)
        patch.setattr(sys, "argv", ["moeprune", "run", recipe, *words, "--json"])
        with suppress(SystemExit):
            main()
    content = json.loads(out.getvalue().splitlines()[-1])
    assert content["status"] == "done", content["error"]
    return str(content["run_id"])
