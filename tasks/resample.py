"""resample: one mask to be measured: that of all calibration data, of a bootstrap resample, or of a corpus alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moeprune.masks import Mask, number_kept
from tasks.artifacts import Artifact, Runtime, Step, Store, stage
from tasks.audit_params import AuditParams, ConsequenceParams
from tasks.identity import code_digest

MASK = "mask.json"
CODE = ("moeprune.resampling", "moeprune.comparing", "moeprune.masks", "moeprune.configs", "moeprune.file_plan")
WHOLE = "all data"


def labels(asked: ConsequenceParams, corpora: list[str]) -> list[str]:
    """What the masks are called: of all data, of the first resamples of the audit, of each of several corpora."""
    drawn = [f"resample {number}" for number in range(asked.masks)]
    return [WHOLE, *drawn, *(corpora if asked.corpora and len(corpora) > 1 else [])]


def step(
    params: AuditParams,
    asked: ConsequenceParams,
    label: str,
    checkpoint: Artifact | None,
    statistics: Mapping[str, Artifact | None],
) -> Step:
    """One mask. A corpus alone depends on nothing but its statistics; resamples are those of the audit."""
    one = params.named(asked.criterion)
    alone = label in statistics
    used = {label: statistics[label]} if alone else statistics
    number = int(label.removeprefix("resample ")) if label.startswith("resample ") else None
    identity: dict[str, Any] = {
        "criterion": one.criterion,
        "options": one.found.options(one.options),
        "gate_mode": params.gate_mode,
        "ratio": asked.ratio,
        "combine": "pooled" if alone else params.combine,
        "weights": None if alone or not params.weights else [params.weights[name] for name in statistics],
        "resample": None if number is None else {"number": number, "of": params.resamples, "seed": params.seed},
    }
    inputs = {"download": checkpoint, **{f"observe.{place}": entry for place, entry in enumerate(used.values())}}
    code = code_digest([*CODE, "tasks.resample", one.found.module])
    return Step("resample", f"{one.name} {asked.ratio} {label}", code, identity, inputs)


@stage(name="resample")
def resample(step: Step, runtime: Runtime, trust_remote_code: bool) -> Artifact:
    """mask.json, by uniform selection."""
    store = Store(runtime.store)

    def build(target: Path) -> dict[str, Any]:
        from moeprune.checkpoint import open_checkpoint
        from moeprune.comparing import masks_of
        from moeprune.configs import read_config, read_routing
        from moeprune.file_plan import read_file_plan

        checkpoint = step.inputs["download"]
        assert checkpoint is not None
        folder = store.folder(checkpoint)
        routing = read_routing(read_config(folder, trust_remote_code))
        plan = read_file_plan(open_checkpoint(folder), trust_remote_code)
        keep = number_kept(step.params["ratio"], routing.experts)
        chosen = masks_of(_scores(step, store), keep, routing)
        kept = {layer: tuple(row.nonzero().flatten().tolist()) for layer, row in zip(plan.layers, chosen, strict=True)}
        (target / MASK).write_text(Mask(checkpoint.digest, routing.experts, kept).to_json())
        return {"kept": keep}

    return store.produce(step, runtime, build)


def _scores(step: Step, store: Store) -> Any:
    """Combined scores [L, E] of the data, or of one resample of them."""
    from moeprune.criteria import find
    from moeprune.files import load_statistics
    from moeprune.replicates import bootstrap, once
    from moeprune.resampling import resampled_scores

    asked = step.params
    data = [
        load_statistics(store.folder(entry) / "statistics.safetensors").in_gate_mode(asked["gate_mode"])
        for name, entry in step.inputs.items()
        if name.startswith("observe.") and entry
    ]
    chunks, drawn = [len(one.tokens) for one in data], asked["resample"]
    if drawn is None:
        replicates = once(chunks)
    else:
        every = bootstrap(chunks, drawn["of"], drawn["seed"])
        replicates = [weights[drawn["number"] : drawn["number"] + 1] for weights in every]
    score = find(asked["criterion"]).score
    options = asked["options"]
    return resampled_scores(
        lambda statistics: score(statistics, **options), data, replicates, asked["combine"], asked["weights"]
    )[0]
