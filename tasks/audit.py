"""audit: how much masks depend on which calibration text was drawn, told without the model from observations."""

import json
from collections.abc import Mapping
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

from moeprune.masks import number_kept
from tasks.artifacts import Artifact, Runtime, Step, Store, logger, set_threads, stage
from tasks.audit_params import LENGTHS, SEEDS, AuditParams
from tasks.identity import code_digest
from tasks.progress import progress

AUDIT, ARRAYS = "audit.json", "arrays.safetensors"
FORMAT = "moeprune-audit/1"
CODE = ("moeprune.auditing", "moeprune.files", "moeprune.configs")

Artifacts = Mapping[str, Artifact | None]
"""By corpus, or by criterion."""


def step(
    params: AuditParams,
    checkpoint: Artifact | None,
    statistics: Artifacts,
    again: Mapping[str, Mapping[int, Artifacts]],
    fixed: Artifacts,
    drawn: Mapping[int, Artifacts],
) -> Step:
    """`again` are observations by seed or sequence length, `fixed` scores of criteria that read no data.

    `drawn` are the corpora by seed, if several are asked for, by which is told how much text they have in common.

    Which masks are measured afterwards does not count.
    """
    identity = params.model_dump(mode="json", exclude={"consequence", "criteria", "weights", SEEDS, LENGTHS})
    # A list: the report describes the first criterion, and keys of a mapping have no order.
    identity["criteria"] = [[one.name, one.found.options(one.options)] for one in params.criteria]
    identity["corpora"] = list(statistics)
    identity["weights"] = params.weights and [params.weights[name] for name in statistics]
    identity |= {kind: list(observations) for kind, observations in again.items()}
    inputs: dict[str, Artifact | None] = {"download": checkpoint, **_numbered("observe", statistics)}
    for kind, observations in again.items():
        for value, observed in observations.items():
            inputs |= _numbered(f"observe.{kind}.{value}", observed)
    inputs |= _numbered("score", fixed)
    for seed, corpora in drawn.items():
        inputs |= _numbered(f"calibrate.{seed}", corpora)
    modules = [one.found.module for one in params.criteria]
    return Step("audit", "", code_digest([*CODE, "tasks.audit", *modules]), identity, inputs)


def _numbered(name: str, artifacts: Artifacts) -> dict[str, Artifact | None]:
    return {f"{name}.{number}": artifact for number, artifact in enumerate(artifacts.values())}


@stage(name="audit")
def audit(step: Step, runtime: Runtime, params: AuditParams, trust_remote_code: bool) -> Artifact:
    """audit.json with what was found, arrays.safetensors with what it is of every layer and expert."""
    store = Store(runtime.store)

    def build(target: Path) -> dict[str, Any]:
        import torch
        from safetensors.torch import save_file

        from moeprune.auditing import audit, steps, warnings

        set_threads(runtime)
        data = _read(step, store, params)
        design = _design(step, store, params, trust_remote_code)
        for warning in (warned := warnings(data)):
            logger().warning("audit: %s", warning)
        with progress(step.title, steps(data, design), "layer") as done:
            found = audit(data, design, _again(step, store, params), done)
        content = {
            "format": FORMAT,
            "base": step.inputs["download"].digest if step.inputs["download"] else None,
            "layers": next(iter(data.values())).layer.tolist(),
            "experts": design.routing.experts,
            "data": {name: {"chunks": len(one.tokens), "tokens": int(one.tokens.sum())} for name, one in data.items()},
            "params": step.params,
            "warnings": warned,
            "in_common": _in_common(step, store),
            "rows": found.rows,
        }
        (target / AUDIT).write_text(json.dumps(content, indent=1) + "\n")
        # The library refuses tensors that share memory, as those that do not depend on the ratio do.
        arrays = {name: value.clone(memory_format=torch.contiguous_format) for name, value in found.arrays.items()}
        save_file(arrays, target / ARRAYS)
        return {"stability": _headline(found.rows["masks"]), "warnings": len(warned)}

    return store.produce(step, runtime, build)


def _headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The index and its lower bracket by scope, criterion and ratio."""
    return {
        f"{row['scope']}/{row['criterion']}/{row['ratio']}": {"index": row["index"], "halves": row["halves"]}
        for row in rows
    }


def _folders(step: Step, store: Store, prefix: str) -> list[Path]:
    """Of the inputs numbered after a prefix."""
    return [
        store.folder(entry)
        for name, entry in step.inputs.items()
        if entry and name.startswith(f"{prefix}.") and name.removeprefix(f"{prefix}.").isdigit()
    ]


def _read(step: Step, store: Store, params: AuditParams, prefix: str = "observe") -> dict[str, Any]:
    """Artifacts by corpus, in the gate mode asked for."""
    from moeprune.files import load_statistics

    found = [load_statistics(folder / "statistics.safetensors") for folder in _folders(step, store, prefix)]
    return {name: one.in_gate_mode(params.gate_mode) for name, one in zip(step.params["corpora"], found, strict=True)}


def _again(step: Step, store: Store, params: AuditParams) -> dict[str, Any]:
    """Observations by kind and value."""
    return {
        kind: {value: _read(step, store, params, f"observe.{kind}.{value}") for value in step.params[kind]}
        for kind in (SEEDS, LENGTHS)
        if kind in step.params
    }


def _in_common(step: Step, store: Store) -> dict[str, float]:
    """By corpus the share of text that draws with different seeds have in common, mean over every two."""
    from moeprune.comparing import text_in_common
    from moeprune.files import load_corpus

    found = {}
    for number, name in enumerate(step.params["corpora"] if SEEDS in step.params else ()):
        folders = [_folders(step, store, f"calibrate.{seed}")[number] for seed in step.params[SEEDS]]
        draws = [load_corpus(folder / "tokens.safetensors") for folder in folders]
        found[name] = mean(text_in_common(one, other) for one, other in combinations(draws, 2))
    return found


def _design(step: Step, store: Store, params: AuditParams, trusted: bool) -> Any:
    from moeprune.auditing import Design
    from moeprune.configs import read_config, read_routing
    from moeprune.files import load_scores

    checkpoint = step.inputs["download"]
    assert checkpoint is not None
    routing = read_routing(read_config(store.folder(checkpoint), trusted))
    fixed = [one.name for one in params.criteria if not one.resampled]
    scores = [load_scores(folder / "scores.safetensors")[0] for folder in _folders(step, store, "score")]
    return Design(
        criteria={
            one.name: partial(one.found.score, **one.found.options(one.options))
            for one in params.criteria
            if one.resampled
        },
        keeps={ratio: number_kept(ratio, routing.experts) for ratio in params.ratios},
        routing=routing,
        fixed=dict(zip(fixed, scores, strict=True)),
        how=params.combine,
        weights=step.params["weights"],
        resamples=params.resamples,
        level=params.level,
        seed=params.seed,
        fractions=params.curve.fractions,
        repeats=params.curve.repeats,
        target=params.stability,
    )
