"""The benchmarks that set-up fetches; no test fetches them."""

import warnings
from pathlib import Path

import pytest

from tasks import benchmarks


def benchmarks_folder() -> Path:
    """Where they are; the test is skipped, loudly, where they are not."""
    folder = benchmarks.location()
    if not benchmarks.present(folder):
        message = f"NOT TESTED: {folder} does not hold the benchmarks: run {benchmarks.COMMAND}"
        warnings.warn(message, stacklevel=2)
        pytest.skip(message)
    return folder
