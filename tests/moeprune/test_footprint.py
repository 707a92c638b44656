"""Memory of a loaded checkpoint, measured in a process of its own."""

import pytest
import tiny
import torch

from moeprune.errors import BadInput
from moeprune.footprint import Peak, measure, resident

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """By intermediate size: (bytes of all parameters in float32, what was measured)."""
    found = {}
    for inner in (256, 1024):
        model = tiny.new_model("olmoe", hidden_size=256, head_dim=64, intermediate_size=inner)
        folder = tmp_path_factory.mktemp(str(inner))
        model.to(torch.bfloat16).save_pretrained(folder)
        # Stored in half, loaded in float32: the weights must be copied and cannot stay mapped file pages.
        found[inner] = (4 * model.num_parameters(), measure(folder, "float32", "cpu", 16))
    return found


def test_measure_anonymous_peak_holds_the_parameters(measured):
    for size, found in measured.values():
        assert size <= found["load_peak_anonymous"] < 4 * size + 64 * MEBIBYTE
        assert found["forward_peak_anonymous"] >= size


def test_measure_a_larger_model_needs_as_much_more_as_it_is_larger(measured):
    (small, a), (large, b) = measured.values()
    for name in ("load_peak_anonymous", "forward_peak_anonymous"):
        assert b[name] - a[name] > 0.8 * (large - small), name


def test_measure_a_child_that_fails_is_an_error_with_its_last_line(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho 'MemoryError: too large' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(RuntimeError, match="MemoryError: too large"):
        measure(tmp_path, "float32", "cpu", 16)


def test_measure_a_model_that_cannot_be_loaded_is_refused_as_by_loading(tmp_path):
    with pytest.raises(BadInput, match=r"^download\.source: .* is not a model transformers can load"):
        measure(tmp_path, "float32", "cpu", 16)


def test_peak_sees_memory_that_was_freed_again():
    before = resident()["anonymous"]
    with Peak() as peak:
        block = torch.ones(64 * MEBIBYTE // 4)
        for _ in range(300):  # time for the sampler to come round
            assert resident()["anonymous"] - before > 60 * MEBIBYTE
        del block
    assert peak.bytes["anonymous"] > 60 * MEBIBYTE
