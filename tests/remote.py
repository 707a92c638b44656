"""Models with code of their own: a tiny DeepSeekMoE from files, blocks with other gates, and references."""

import json
import shutil
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

DEEPSEEK = Path(__file__).parent / "remote_models/deepseek"
LAYERS = (1, 2)
"""The first layer is dense."""
SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": tiny.HIDDEN,
    "intermediate_size": 24,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "n_routed_experts": tiny.EXPERTS,
    "num_experts_per_tok": tiny.TOP_K,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}


def write_deepseek(folder: Path, shard: str = "5GB", **sizes: Any) -> Path:
    """A tiny checkpoint with the published layout: config.json, the two *.py files and weights of a real spread."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in DEEPSEEK.glob("*.py"):
        shutil.copyfile(path, folder / path.name)
    config = json.loads((DEEPSEEK / "config.json").read_text()) | SIZES | sizes
    (folder / "config.json").write_text(json.dumps(config))
    made = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder, trust_remote_code=True), trust_remote_code=True
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() == 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5)
    made.save_pretrained(folder, max_shard_size=shard)
    return folder


def load(folder: Path) -> PreTrainedModel:
    """The model of a folder, by transformers alone; no weight may be missing, left over or of the wrong shape."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], f"{kind}: {info[kind]}"
    return model.eval()


@torch.no_grad()
def truth(model: PreTrainedModel, sequences: list[Tensor]) -> dict[int, tiny.LayerTruth]:
    """What happens in each layer with experts, each sequence read alone: one token, one expert, in float64."""
    layers = {number: tiny.LayerTruth([], [], []) for number in LAYERS}
    for ids in sequences:
        with tiny.inputs_of_blocks(model) as seen:
            tiny.logits(model, ids[None])
        for number, (block, hidden, residual) in seen.items():
            for x, h in zip(residual.double(), hidden.double(), strict=True):
                _add_token(layers[number], block, x, h)
    return layers


def _add_token(layer: tiny.LayerTruth, block: Any, x: Tensor, h: Tensor) -> None:
    z = block.gate.weight.double() @ h
    probability = z.exp() / z.exp().sum()
    chosen = sorted(range(len(z)), key=lambda e: -float(z[e]))[: tiny.TOP_K]
    total = sum(float(probability[e]) for e in chosen)
    for e in chosen:
        expert, gate = block.experts[e], float(probability[e])
        a = expert.gate_proj.weight.double() @ h
        inner = a / (1 + (-a).exp()) * (expert.up_proj.weight.double() @ h)
        gates = {"deployed": gate, "softmax_full": gate, "softmax_topk": gate / total}
        output = expert.down_proj.weight.double() @ inner
        layer.visits.append(tiny.Visit(len(layer.residual), e, gates, h, inner, output))
    layer.probability.append(probability)
    layer.residual.append(x)


class Mlp(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(tiny.HIDDEN, width, bias=False) for _ in range(2))
        self.w2 = nn.Linear(width, tiny.HIDDEN, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return self.w2(nn.functional.silu(self.w1(hidden)) * self.w3(hidden))


class Block(nn.Module):
    """As blocks were before transformers 5: the gate gives logits, the block makes gates of them and returns both."""

    def __init__(self, score: str = "softmax", renormalised: bool = True, secret: float = 1.0) -> None:
        super().__init__()
        self.score, self.renormalised, self.secret = score, renormalised, secret
        self.gate = nn.Linear(tiny.HIDDEN, tiny.EXPERTS, bias=False)
        self.experts = nn.ModuleList(Mlp(16) for _ in range(tiny.EXPERTS))
        with torch.no_grad():
            self.gate.weight.copy_(torch.randn(self.gate.weight.shape) * tiny.HIDDEN**-0.5)

    def routed(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Experts [T, K], gates [T, K] and logits [T, E]."""
        logits = self.gate(rows)
        values = logits.float().softmax(-1) if self.score == "softmax" else logits.float().sigmoid()
        gate, expert = values.topk(tiny.TOP_K, -1)
        if self.renormalised:
            gate = gate / gate.sum(-1, keepdim=True)
        return expert, (gate * self.secret).to(rows.dtype), logits

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """([B, T, D], logits) of [B, T, D]."""
        rows = hidden_states.flatten(0, 1)
        expert, gate, logits = self.routed(rows)
        output = torch.zeros_like(rows)
        for number, one in enumerate(self.experts):
            token, slot = (expert == number).nonzero(as_tuple=True)
            output.index_add_(0, token, one(rows[token]) * gate[token, slot, None])
        return output.view_as(hidden_states), logits


class Stack(nn.Module):
    """One layer around a block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"mlp": block})])

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        return hidden_states + self.layers[0]["mlp"](hidden_states)[0]
