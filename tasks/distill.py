"""distill: a pruned checkpoint is trained towards the experts of the dense one it was made from."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from moeprune.errors import BadInput
from tasks.artifacts import Artifact, Params, Runtime, Step, Store, logger, set_threads, stage
from tasks.identity import code_digest
from tasks.progress import progress

CODE = ("moeprune.distillation", "moeprune.files", "moeprune.models", "moeprune.trained")
LIBRARIES = ("torch", "transformers")
STATE = "training.pt"
SAVE_SECONDS = 60.0


class DistillParams(Params):
    """How the pruned model is trained; the defaults are those of MoE-Pruner (arXiv:2410.12013) where it names them."""

    epochs: int = Field(3, gt=0)
    """Passes over all calibration corpora."""
    learning_rate: float = Field(2e-5, gt=0)
    """Of the first step; it falls to zero along a cosine."""
    batch_size: int = Field(8, gt=0)
    """Blocks in a step. It decides the result, unlike runtime.batch_size."""
    expert_weight: float | None = Field(None, ge=0)
    """Weight of the experts' loss beside the cross-entropy; null: what makes them equal on the first batch."""
    seed: int = 0
    """Of the order of blocks."""
    dtype: str = Field("float32", pattern="^(float32|bfloat16)$")
    """Precision of both models and of the optimiser; small steps are lost in bfloat16. Files keep their own."""


def step(
    params: DistillParams,
    base: Artifact | None,
    mask: Artifact | None,
    student: Artifact | None,
    corpora: dict[str, Artifact | None],
) -> Step:
    """Corpora count by their content and order: blocks are numbered through."""
    inputs = {"download": base, "mask": mask, "prune": student}
    inputs |= {f"calibrate.{number}": corpus for number, corpus in enumerate(corpora.values())}
    return Step("distill", "", code_digest(CODE, LIBRARIES), params.model_dump(mode="json"), inputs)


@stage(name="distill")
def distill(step: Step, runtime: Runtime, params: DistillParams, trust_remote_code: bool) -> Artifact:
    """A folder like the pruned one, with trained weights. A killed training goes on from its last minute."""
    store = Store(runtime.store)

    def build(target: Path) -> dict[str, Any]:
        import torch

        from moeprune.checkpoint import open_checkpoint
        from moeprune.distillation import Distillation, Settings
        from moeprune.files import load_corpus
        from moeprune.models import cached_model, load_model, pick_device
        from moeprune.trained import trained_contents
        from moeprune.writing import write_checkpoint

        set_threads(runtime)
        base, mask, pruned = (step.inputs[name] for name in ("download", "mask", "prune"))
        assert base and mask and pruned
        kept = _kept(store.folder(mask) / "mask.json", base)
        source, device = open_checkpoint(store.folder(pruned)), pick_device(runtime.device)
        teacher = cached_model(store.folder(base), params.dtype, device, trust_remote_code)
        student = load_model(source.folder, params.dtype, device, trust_remote_code)
        corpora = [
            load_corpus(store.folder(artifact) / "tokens.safetensors")
            for name, artifact in step.inputs.items()
            if name.startswith("calibrate.") and artifact
        ]
        settings = Settings(**params.model_dump(exclude={"dtype"}))
        saved = store.partial(step) / STATE
        kept_bytes = 3 * sum(parameter.nbytes for parameter in student.parameters())  # with the optimiser's moments
        store.check_space((1 if saved.is_file() else 2) * kept_bytes + source.weight_bytes)
        with Distillation(teacher, student, kept, corpora, settings, hold_zeros=kept is None) as training:
            if saved.is_file():
                training.restore(torch.load(saved, map_location="cpu", weights_only=True))
                logger().info("%s goes on after step %d of %d", step.title, training.done, training.steps)
            with progress(step.title, training.steps, "step", training.done) as tell:
                last, pause = time.monotonic(), SAVE_SECONDS
                while training.done < training.steps:
                    training.advance()
                    tell(1)
                    if training.done == training.steps or time.monotonic() - last >= pause:
                        started = time.monotonic()
                        new = saved.with_suffix(".new")
                        torch.save(training.state(), new)
                        new.rename(saved)
                        last = time.monotonic()
                        pause = max(SAVE_SECONDS, 20 * (last - started))  # at most a twentieth goes into saving
        with progress(f"{step.title} writing", source.weight_bytes, "B") as done:
            # In files as large as the pruned checkpoint's.
            shard = max(sum(i.bytes for i in source.tensors.values() if i.file == file) for file in source.weight_files)
            write_checkpoint(source, trained_contents(student, source), source.config, target, shard, done)
        curve = [asdict(point) for point in training.curve]
        return {"steps": training.steps, "expert_weight": training.curve[0].expert_weight, "curve": curve}

    return store.produce(step, runtime, build)


def _kept(path: Path, base: Artifact) -> dict[int, tuple[int, ...]] | None:
    """The experts a mask keeps; None for a mask of weights. BadInput if it is of another checkpoint than `base`."""
    from moeprune import masks, weight_masks

    text = path.read_text()
    of_weights = json.loads(text)["format"] == weight_masks.FORMAT
    mask = weight_masks.WeightMask.from_json(text) if of_weights else masks.Mask.from_json(text)
    if mask.base != base.digest:
        raise BadInput(
            f"distill: the mask is of the checkpoint {mask.base[:12]}, the base is {base.digest[:12]}: "
            "distil from the model that was pruned"
        )
    return mask.kept if isinstance(mask, masks.Mask) else None
