"""One model at its full size, with random weights, through everything that needs no data.

    python benchmarks/full_size.py FOLDER [--layers 2]

It is written, inspected, scored by AIMER, a quarter of its experts is removed on files, and the result is loaded by
transformers and generates one token. FOLDER takes the model and the result, 24 GB for OLMoE-1B-7B.

Each step runs in a process of its own, so that its peak of memory is its own. Anonymous memory is what a step needs;
mapped pages are of the files it reads, which the kernel can drop at any time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from moeprune.checkpoint import DTYPES, Checkpoint, TensorInfo, open_checkpoint
from moeprune.configs import read_config, read_routing
from moeprune.criteria import aimer
from moeprune.experts import LayerExperts
from moeprune.file_plan import read_file_plan
from moeprune.footprint import Peak
from moeprune.inspection import inspect, written
from moeprune.masks import Mask, number_kept
from moeprune.meta import meta_model
from moeprune.models import load_model
from moeprune.selection import uniform
from moeprune.surgery import prune_checkpoint
from moeprune.writing import write_checkpoint

GEOMETRIES = Path(__file__).resolve().parents[1] / "tests" / "geometries"
SHARD = 5 * 10**9
RATIO = 0.25
BASE, SCORES, MASK, PRUNED = "base", "scores.pt", "mask.json", "pruned"


def write(folder: Path, config_file: Path, layers: int | None) -> str:
    """Write a checkpoint with random weights, tensor by tensor: the model is never built."""
    config = json.loads(config_file.read_text())
    if layers is not None:
        config["num_hidden_layers"] = layers
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "config.json").write_text(json.dumps(config))
        source = Checkpoint(Path(place), written(meta_model(read_config(Path(place)))))
        contents = {name: (info, partial(random_tensor, name, info)) for name, info in source.tensors.items()}
        (folder / BASE).mkdir()
        write_checkpoint(source, contents, config, folder / BASE, SHARD)
    return f"{source.weight_bytes / 1e9:.2f} GB in {len(open_checkpoint(folder / BASE).weight_files)} files"


def random_tensor(name: str, info: TensorInfo) -> Tensor:
    """Weights as drawn before training, the same for the same name; norms are ones."""
    tensor = torch.empty(info.shape, dtype=DTYPES[info.dtype])
    if tensor.dim() < 2:
        return tensor.fill_(1)
    return tensor.normal_(std=0.02, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def look(folder: Path) -> str:
    """Inspect the checkpoint."""
    base = folder / BASE
    found = inspect(read_config(base), base, open_checkpoint(base).tensors)
    return f"{found.size.parameters / 1e9:.2f}e9 parameters, {found.size.active / 1e9:.2f}e9 active for a token"


def score(folder: Path) -> str:
    """AIMER scores of all experts, one expert in memory at a time."""
    checkpoint = open_checkpoint(folder / BASE)
    plan = read_file_plan(checkpoint)
    scores = torch.stack([aimer.score(LayerExperts(checkpoint, plan, layer)) for layer in plan.layers])
    torch.save({"scores": scores, "layers": plan.layers}, folder / SCORES)
    return f"{scores.numel()} experts; mean {scores.mean():.4f}, of Gaussian weights -0.7979"


def mask(folder: Path) -> str:
    """A quarter of the experts of each layer goes."""
    routing = read_routing(read_config(folder / BASE))
    saved = torch.load(folder / SCORES)
    kept = uniform.select(saved["scores"], number_kept(RATIO, routing.experts), routing)
    made = Mask("", routing.experts, dict(zip(saved["layers"], map(tuple, kept.tolist()), strict=True)))
    (folder / MASK).write_text(made.to_json())
    return f"{kept.shape[1]} of {routing.experts} experts kept in each of {len(kept)} layers"


def prune(folder: Path) -> str:
    """Write the pruned checkpoint."""
    source = open_checkpoint(folder / BASE)
    made = Mask.from_json((folder / MASK).read_text())
    (folder / PRUNED).mkdir()
    prune_checkpoint(source, read_file_plan(source), made, folder / PRUNED, SHARD)
    return f"{open_checkpoint(folder / PRUNED).weight_bytes / 1e9:.2f} GB"


def load(folder: Path) -> str:
    """Load the result with transformers and generate one token."""
    model = load_model(folder / PRUNED)
    start = torch.arange(8)[None]
    with torch.inference_mode():
        token = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=1, do_sample=False)[0, -1]
    return f"{sum(weight.numel() for weight in model.parameters()) / 1e9:.2f}e9 parameters; token {int(token)}"


STEPS: dict[str, Callable[[Path], str]] = {
    "inspect": look,
    "score (aimer)": score,
    "mask (uniform, 25%)": mask,
    "prune": prune,
    "load, one token": load,
}


def measured(work: Callable[[], str]) -> dict[str, str | float]:
    """What a step tells, with its seconds and its peaks of memory; both count what the libraries take too."""
    start = time.perf_counter()
    with Peak() as peak:
        told = work()
    peaks = {kind: size + peak.before[kind] for kind, size in peak.bytes.items()}
    return {"told": told, "seconds": time.perf_counter() - start, **peaks}


def main() -> None:
    """Run the steps, each in a process of its own, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="an empty folder, or one that is made")
    parser.add_argument("--geometry", default="OLMoE-1B-7B-0924", help="a name in tests/geometries")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has: for a try")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    works = {"write": partial(write, config_file=GEOMETRIES / f"{given.geometry}.json", layers=given.layers)} | STEPS
    if given.step:
        print(json.dumps(measured(partial(works[given.step], given.folder))))
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    if any(given.folder.iterdir()):
        sys.exit(f"{given.folder} is not empty: give another folder")
    layers = f", {given.layers} layers" if given.layers else ""
    print(f"{given.geometry}{layers}; {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| step | seconds | anonymous memory, GB | mapped files, GB | |\n|---|---|---|---|---|", flush=True)
    for name in works:
        done = subprocess.run(
            [sys.executable, *sys.argv, "--step", name], stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        peaks = f"{found['anonymous'] / 1e9:.2f} | {found['mapped'] / 1e9:.2f}"
        print(f"| {name} | {found['seconds']:.1f} | {peaks} | {found['told']} |", flush=True)


if __name__ == "__main__":
    main()
