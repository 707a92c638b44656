"""Memory of loading a checkpoint and of one forward pass, measured in a process of its own.

    python -m moeprune.footprint FOLDER --dtype float32 --device cpu --tokens 256

prints one JSON object of byte counts. Anonymous memory is what the model needs; mapped file pages (the safetensors
file itself) can be dropped by the kernel at any time. Both are sampled every few milliseconds.
"""

import argparse
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

from moeprune.errors import BadInput

REFUSED = 2
FIELDS = {"anonymous": "RssAnon:", "mapped": "RssFile:"}


def measure(folder: Path, dtype: str, device: str, tokens: int, trust_remote_code: bool = False) -> dict[str, int]:
    """Bytes by "load_peak_anonymous", "load_peak_mapped", "forward_peak_anonymous", ...; measured in a child process.

    What Python and the libraries hold before loading is subtracted. On an accelerator also "load_peak_device" and
    "forward_peak_device". Raises BadInput as loading does, and RuntimeError with the child's last line if it fails
    otherwise.
    """
    command = [
        sys.executable,
        "-m",
        "moeprune.footprint",
        str(folder),
        "--dtype",
        dtype,
        "--device",
        device,
        "--tokens",
        str(tokens),
    ]
    if trust_remote_code:
        command.append("--trust-remote-code")
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode == REFUSED:
        raise BadInput(child.stderr.strip().splitlines()[-1])
    if child.returncode:
        raise RuntimeError(f"measuring memory failed: {child.stderr.strip().splitlines()[-1:]}")
    result: dict[str, int] = json.loads(child.stdout.splitlines()[-1])
    return result


def resident() -> dict[str, int]:
    """Anonymous and file-mapped resident bytes of this process (Linux)."""
    status = Path("/proc/self/status").read_text().split()
    return {kind: int(status[status.index(field) + 1]) * 1024 for kind, field in FIELDS.items()}


class Peak:
    """`with Peak() as peak:` samples resident memory; `peak.bytes` is the largest growth since it began."""

    def __enter__(self) -> "Peak":
        self.before = resident()
        self.bytes = dict.fromkeys(FIELDS, 0)
        self.done = threading.Event()
        self.sampler = threading.Thread(target=self._watch)
        self.sampler.start()
        return self

    def _watch(self) -> None:
        while True:
            now = resident()
            self.bytes = {kind: max(peak, now[kind] - self.before[kind]) for kind, peak in self.bytes.items()}
            if self.done.wait(0.003):
                return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        final = resident()
        self.done.set()
        self.sampler.join()
        self.bytes = {k: max(peak, final[k] - self.before[k]) for k, peak in self.bytes.items()}


def _measure_here(folder: Path, dtype: str, device: str, tokens: int, trust_remote_code: bool) -> dict[str, int]:
    import torch

    from moeprune.models import load_model

    torch.zeros(1).to(device)
    start = resident()
    found: dict[str, int] = {}
    on_device = device != "cpu"
    with Peak() as peak:
        model = load_model(folder, dtype, device, trust_remote_code)
    found |= {f"load_peak_{kind}": size for kind, size in peak.bytes.items()}
    if on_device:
        found["load_peak_device"] = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    loaded = resident()
    ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
    with Peak() as peak, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    # Counted from before loading: what a machine must have to run the model, not what the pass adds.
    found |= {f"forward_peak_{kind}": size + loaded[kind] - start[kind] for kind, size in peak.bytes.items()}
    if on_device:
        found["forward_peak_device"] = torch.cuda.max_memory_allocated()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--trust-remote-code", action="store_true")
    given = parser.parse_args()
    try:
        print(json.dumps(_measure_here(given.folder, given.dtype, given.device, given.tokens, given.trust_remote_code)))
    except BadInput as refusal:
        print(refusal, file=sys.stderr)
        sys.exit(REFUSED)
