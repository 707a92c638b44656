"""The files others read: corpora, statistics and scores as safetensors. Field names are file names."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from moeprune.corpus import Corpus
from moeprune.statistics import Statistics

FORMATS = {"tokens": "moeprune-tokens/1", "statistics": "moeprune-statistics/1", "scores": "moeprune-scores/1"}
_OWN = ("layer", "tokens", "count", "moments")


def _write(path: Path, kind: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    # The library refuses tensors that share memory, as the scores of a single corpus do with their combination.
    whole = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    content = memoryview(save(whole, metadata={"format": FORMATS[kind], **metadata}))
    # It writes metadata in random order. With the header sorted, equal content is equal bytes.
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(bytes(content[8:end])), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(content[end:])


def _read(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMATS[kind]:
            raise ValueError(f"{path} is not in the format {FORMATS[kind]} but {metadata.get('format')!r}")
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - not a mapping


def save_corpus(path: Path, corpus: Corpus, metadata: dict[str, str]) -> None:
    """Write tokens.safetensors."""
    _write(path, "tokens", vars(corpus), metadata)


def load_corpus(path: Path) -> Corpus:
    """Read tokens.safetensors."""
    tensors, _ = _read(path, "tokens")
    return Corpus(**tensors)


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write statistics.safetensors."""
    tensors = {name: getattr(statistics, name) for name in _OWN} | statistics.sums
    tensors |= {f"moments.{mode}": moments for mode, moments in statistics.other_gates.items()}
    _write(path, "statistics", tensors, {})


def load_statistics(path: Path) -> Statistics:
    """Read statistics.safetensors."""
    tensors, _ = _read(path, "statistics")
    own = {name: tensors.pop(name) for name in _OWN}
    gates = {name: tensors.pop(name) for name in list(tensors) if name.startswith("moments.")}
    gates = {name.removeprefix("moments."): moments for name, moments in gates.items()}
    return Statistics(**own, other_gates=gates, sums=tensors)


def save_scores(path: Path, scores: Tensor, per_corpus: Tensor, layer: Tensor, metadata: dict[str, str]) -> None:
    """Write scores.safetensors."""
    _write(path, "scores", {"scores": scores, "per_corpus": per_corpus, "layer": layer}, metadata)


def load_scores(path: Path) -> tuple[Tensor, Tensor, list[int]]:
    """(scores [L, E], scores per corpus [S, L, E], layers) of scores.safetensors."""
    tensors, _ = _read(path, "scores")
    return tensors["scores"].to(torch.float64), tensors["per_corpus"], tensors["layer"].tolist()
