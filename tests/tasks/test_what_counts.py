"""Everything of ours and of the libraries that a stage's result comes from is part of its key."""

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tasks import evaluate, identity, mask, observe, prune, score
from tasks.artifacts import Artifact
from tasks.identity import imported

WORK: dict[str, tuple[Any, list[str], Iterable[str]]] = {
    "score": (score, ["_from_checkpoint"], ["moeprune.criteria", *score.FILES]),
    "mask": (mask, ["mask"], (*mask.CODE, "moeprune.weight_masks")),
    "prune": (prune, ["_remove_experts"], prune.CODE),
    "zero": (prune, ["_zero_weights"], ["moeprune.criteria", *prune.SPARSE_CODE]),
    "sequential": (prune, ["_sequential"], prune.SPARSE_CODE + prune.SEQUENTIAL_CODE),
    "evaluate": (evaluate, ["evaluate", "_sizes"], evaluate.CODE),
    "observe": (observe, ["observe"], observe.CODE),
}
"""Of a stage: its module, the functions that do the work, and the modules that count."""


@pytest.mark.parametrize("work", WORK)
def test_code_all_that_a_stage_works_with_counts(work: str):
    module, names, counted = WORK[work]
    tree = ast.parse(Path(module.__file__).read_text())
    used = {
        name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name in names
        for name in imported(ast.unparse(node))
    }
    assert used and used <= identity._closure(tuple(counted))


CHECKPOINT = Artifact(stage="download", key="k", digest="d")
BY_WEIGHTS = score.ScoreParams(criterion="aimer")
SEARCH = mask.MaskParams(ratio=0.25, selection="reconstruction")


@pytest.mark.parametrize(
    ("library", "step"),
    [
        ("transformers", lambda: score.step(BY_WEIGHTS, CHECKPOINT, {})),
        ("compressed-tensors", lambda: score.step(BY_WEIGHTS, CHECKPOINT, {})),
        ("transformers", lambda: mask.step(mask.MaskParams(ratio=0.25), 6, CHECKPOINT, CHECKPOINT)),
        ("compressed-tensors", lambda: mask.step(SEARCH, 6, CHECKPOINT)),
        ("transformers", lambda: prune.step(prune.PruneParams(), CHECKPOINT, CHECKPOINT)),
        (
            "transformers",
            lambda: prune.sparse_step(prune.PruneParams(), "wanda", CHECKPOINT, CHECKPOINT, {}, None, "auto"),
        ),
        ("compressed-tensors", lambda: observe.step(observe.ObserveParams(), "wiki", CHECKPOINT, CHECKPOINT)),
    ],
)
def test_step_key_libraries_that_explain_a_checkpoint_count(library, step, monkeypatch):
    real, before = identity.version, step().key
    monkeypatch.setattr(identity, "version", lambda name: "999.0" if name == library else real(name))
    assert step().key != before
