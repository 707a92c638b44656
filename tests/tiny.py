"""Tiny random models of real families, and slow references that are obvious.

8 experts, 2 chosen per token, hidden size 32: a forward pass takes milliseconds. The weights of routers and experts
are redrawn with a real spread: at the stock standard deviation of 0.02 routing is almost uniform, and a test could
pass for the wrong reason.

The references compute one token, one expert at a time from the weights alone, in float64, with the router's rule
written out: they share nothing with moeprune and nothing with transformers' experts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 128
EXPERTS = 8
TOP_K = 2
HIDDEN = 32

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "num_experts_per_tok": TOP_K,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_LATENT_ATTENTION = {
    "head_dim": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}

# name: (model type, what it adds to the common values)
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "olmoe": ("olmoe", {"num_experts": EXPERTS, "norm_topk_prob": False}),
    "olmoe-renormalised": ("olmoe", {"num_experts": EXPERTS, "norm_topk_prob": True}),
    "mixtral": ("mixtral", {"num_local_experts": EXPERTS}),
    "qwen2_moe": (
        "qwen2_moe",
        {
            "num_experts": EXPERTS,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
            "norm_topk_prob": False,
        },
    ),
    "qwen3_moe": ("qwen3_moe", {"num_experts": EXPERTS, "moe_intermediate_size": 16, "norm_topk_prob": True}),
    "deepseek_v3": (
        "deepseek_v3",
        _LATENT_ATTENTION
        | {
            "n_routed_experts": EXPERTS,
            "moe_intermediate_size": 16,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "num_hidden_layers": 3,
            "n_group": 2,
            "topk_group": 1,
        },
    ),
    "gpt_oss": ("gpt_oss", {"num_local_experts": EXPERTS}),
}

FAMILIES = tuple(_FAMILIES)
EXPLAINED = tuple(name for name in _FAMILIES if name != "gpt_oss")
"""Families whose routers and experts the references below write out."""


def new_model(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A model in float32; the same arguments give the same weights."""
    model_type, values = _FAMILIES[family]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**_COMMON | values | overrides))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("bias"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
            elif tensor.dim() >= 2:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * tensor.shape[-1] ** -0.5)
    return model.eval()


@lru_cache
def shared_model(family: str) -> PreTrainedModel:
    """`new_model(family)`, built once for all tests: not to be changed."""
    return new_model(family)


def token_ids(*lengths: int, seed: int = 3) -> list[Tensor]:
    """Random sequences of these lengths, without the ids of padding, begin and end."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths]


def padded(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(input ids, attention mask), padded on the right."""
    longest = max(map(len, sequences))
    ids = torch.stack([nn.functional.pad(ids, (0, longest - len(ids))) for ids in sequences])
    mask = torch.stack([(torch.arange(longest) < len(ids)).long() for ids in sequences])
    return ids, mask


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits of the stock forward pass."""
    return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def load(folder: Path) -> PreTrainedModel:
    """The model of a folder, by transformers alone; no weight may be missing, left over or of the wrong shape."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], f"{kind}: {info[kind]}"
    return model.eval()


def moe_blocks(model: nn.Module) -> dict[int, nn.Module]:
    """The blocks that hold router and experts, by layer number."""
    return {i: layer.mlp for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts")}


def router_of(block: nn.Module) -> nn.Module:
    """The router of a block."""
    return block.router if hasattr(block, "router") else block.gate


# --------------------------------------------------------------------------------------- what each expert does


@dataclass(frozen=True)
class Visit:
    """One token at one expert: `output` is not multiplied by the gate, `inner` enters the down projection."""

    token: int
    expert: int
    gates: dict[str, float]
    hidden: Tensor
    inner: Tensor
    output: Tensor

    @property
    def norm(self) -> float:
        """Length of the output."""
        return float(self.output.norm())


@dataclass(frozen=True)
class LayerTruth:
    """All visits of a layer, and of each token the router's probabilities and the residual stream."""

    visits: list[Visit]
    probability: list[Tensor]
    residual: list[Tensor]

    def of(self, expert: int) -> list[Visit]:
        """The visits of one expert."""
        return [visit for visit in self.visits if visit.expert == expert]


@torch.no_grad()
def truth(model: PreTrainedModel, sequences: list[Tensor]) -> dict[int, LayerTruth]:
    """What happens in each layer, each sequence read alone: no padding, no batch."""
    layers = {number: LayerTruth([], [], []) for number in moe_blocks(model)}
    for ids in sequences:
        with inputs_of_blocks(model) as seen:
            logits(model, ids[None])
        for number, (block, hidden, residual) in seen.items():
            for x, h in zip(residual.double(), hidden.double(), strict=True):
                _add_token(layers[number], model.config, block, x, h)
    return layers


@contextmanager
def inputs_of_blocks(model: PreTrainedModel) -> Iterator[dict[int, tuple[nn.Module, Tensor, Tensor]]]:
    """By layer: its block, the block's input and the residual stream, filled by the next forward pass."""
    seen: dict[int, tuple[nn.Module, Tensor, Tensor]] = {}
    handles = []
    for number, block in moe_blocks(model).items():

        def keep(norm: nn.Module, inputs: Any, output: Tensor, number: int = number, block: nn.Module = block) -> None:
            seen[number] = (block, output.flatten(0, -2), inputs[0].flatten(0, -2))

        handles.append(model.model.layers[number].post_attention_layernorm.register_forward_hook(keep))
    yield seen
    for handle in handles:
        handle.remove()


def _add_token(layer: LayerTruth, config: Any, block: nn.Module, x: Tensor, h: Tensor) -> None:
    token = len(layer.residual)
    router = router_of(block)
    z = router.weight.double() @ h
    softmax = z.exp() / z.exp().sum()
    if config.model_type == "deepseek_v3":
        probability = 1 / (1 + (-z).exp())
        chosen = _choose_in_groups(probability + router.e_score_correction_bias.double(), config)
    else:
        probability = softmax
        chosen = sorted(range(len(z)), key=lambda e: -float(z[e]))[:TOP_K]
    gates = {e: float(probability[e]) for e in chosen}
    if config.model_type == "mixtral" or getattr(config, "norm_topk_prob", False):
        gates = {e: gate / sum(gates.values()) for e, gate in gates.items()}
    if config.model_type == "deepseek_v3":
        gates = {e: gate * config.routed_scaling_factor for e, gate in gates.items()}
    for e in chosen:
        w_gate, w_up = block.experts.gate_up_proj[e].double().chunk(2)
        a = w_gate @ h
        inner = a / (1 + (-a).exp()) * (w_up @ h)
        modes = {
            "deployed": gates[e],
            "softmax_full": float(softmax[e]),
            "softmax_topk": float(softmax[e]) / sum(float(softmax[other]) for other in chosen),
        }
        layer.visits.append(Visit(token, e, modes, h, inner, block.experts.down_proj[e].double() @ inner))
    layer.probability.append(probability)
    layer.residual.append(x)


def _choose_in_groups(choice: Tensor, config: Any) -> list[int]:
    """Top-k among the experts of the groups with the largest sums of their two best."""
    size = len(choice) // config.n_group
    groups = [list(range(g * size, (g + 1) * size)) for g in range(config.n_group)]
    groups.sort(key=lambda group: -sum(sorted(choice[group].tolist())[-2:]))
    allowed = [e for group in groups[: config.topk_group] for e in group]
    return sorted(allowed, key=lambda e: -float(choice[e]))[:TOP_K]


# ------------------------------------------------------------------------------------------ what pruning must equal


class RouterLogits(TorchFunctionMode):
    """Sets columns of the routers' logits to minus infinity, whatever the routers do with them afterwards."""

    def __init__(self, removed: dict[int, list[int]]) -> None:
        super().__init__()
        self.removed = removed  # id of a router's weight: experts
        self.hits = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if function is nn.functional.linear and id(args[1]) in self.removed:
            self.hits += 1
            output = output.clone()
            output[..., self.removed[id(args[1])]] = -torch.inf
        return output


def masked_logits(model: PreTrainedModel, ids: Tensor, kept: dict[int, tuple[int, ...]]) -> Tensor:
    """Logits of the whole model in which the experts not kept cannot be chosen: their router logits are -inf.

    Where a correction bias is added to the scores, it is -inf too: a score of 0 plus a bias could still be chosen.
    """
    removed, biases = {}, []
    for number, block in moe_blocks(model).items():
        router = router_of(block)
        gone = sorted(set(range(EXPERTS)) - set(kept[number]))
        # deepseek_v3 casts the weight first, which gives the same tensor for float32
        removed[id(router.weight)] = gone
        if hasattr(router, "e_score_correction_bias"):
            biases.append((router.e_score_correction_bias, router.e_score_correction_bias.clone()))
            router.e_score_correction_bias[gone] = -torch.inf
    try:
        with RouterLogits(removed) as masking:
            output = logits(model, ids)
    finally:
        for bias, before in biases:
            bias.copy_(before)
    assert masking.hits == len(removed), "a router was not masked"
    return output
