"""What every test needs: no network, one thread, the same random numbers each time.

Deterministic algorithms are not forced: that equal runs give equal bytes is a claim about moeprune.
"""

import atexit
import os
import shutil
import signal
import tempfile

# Read when the libraries are imported, hence before them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="moeprune-datasets-")  # not the user's own
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="moeprune-modules-")  # where code of models is copied to

import pytest
import torch
from servers import cluster as cluster
from servers import mlflow_url as mlflow_url
from servers import prefect_url as prefect_url
from servers import storage as storage
from servers import team as team
from transformers.utils import logging

for _cache in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
    atexit.register(shutil.rmtree, os.environ[_cache], ignore_errors=True)
# A shell has what it starts in the background ignore interrupts, and what tests start from there would do so, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # the tensors are tiny: more threads only wait for each other
logging.set_verbosity_error()
logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
