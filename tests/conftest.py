"""What every test needs: no network, one thread, the same random numbers each time.

Deterministic algorithms are not forced: that equal runs give equal bytes is a claim about moeprune.
"""

import os
from tempfile import TemporaryDirectory

# Read when the libraries are imported, hence before them.
os.environ["HF_HUB_OFFLINE"] = "1"
_own = TemporaryDirectory(prefix="moeprune-tests-")  # not the user's; goes when this process ends
os.environ["HF_DATASETS_CACHE"] = f"{_own.name}/datasets"
os.environ["HF_MODULES_CACHE"] = f"{_own.name}/modules"  # where code of models is copied to

import pytest
import torch
from servers import cluster as cluster
from servers import mlflow_url as mlflow_url
from servers import prefect_url as prefect_url
from servers import storage as storage
from servers import team as team
from transformers.utils import logging

torch.set_num_threads(1)  # the tensors are tiny: more threads only wait for each other
logging.set_verbosity_error()
logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
