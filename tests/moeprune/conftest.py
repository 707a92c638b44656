"""What several tests of the numerics start from."""

from functools import lru_cache
from pathlib import Path

import pytest
import quantised_kinds
import tiny


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A folder with the stock checkpoint of a family: not to be changed."""

    @lru_cache
    def save(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        tiny.shared_model(family).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def quantised(tmp_path_factory):
    """A folder with the quantised checkpoint of a kind: not to be changed."""

    @lru_cache
    def save(name: str) -> Path:
        return quantised_kinds.write(name, tmp_path_factory.mktemp(name))

    return save
