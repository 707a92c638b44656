"""A tiny random model of every Mixture-of-Experts family of transformers, found by asking transformers.

A family is a model type that has a causal language model and whose own config counts routed experts. Its tiny config
is made of the common values it knows by name; the table below holds what a family needs beyond or instead of them.
A family of a later transformers is found by itself and tried with the common values alone.
"""

from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from tiny import VOCABULARY, logits, token_ids
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from moeprune.configs import EXPERT_COUNT_KEYS, NESTED, TOP_K_KEYS

EXPERTS = 8
TOP_K = 2
LARGEST = 1_000_000
"""Parameters of a model that is no longer tiny: the family lacks a row below."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    # At the usual 0.02 routing is almost uniform, and a test could pass for the wrong reason.
    "initializer_range": 0.2,
    # dense layers and shared experts
    "first_k_dense_replace": 1,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    # groups of experts
    "n_group": 2,
    "topk_group": 1,
    # latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    # sparse attention, which looks at no more than these tokens
    "index_topk": 16,
    "index_head_dim": 8,
    "index_n_heads": 2,
    # linear attention
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_heads": 4,
    "linear_head_dim": 8,
    # sliding attention with heads of its own
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_head_dim": 8,
}

_ROWS: dict[str, dict[str, Any]] = {
    "cohere2_moe": {"logit_scale": 1.0},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 128,
        "ffn_config": {"ffn_hidden_size": 16, "moe_top_k": TOP_K, "hidden_size": 32},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek_v2": {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    "deepseek_v4": {"mlp_layer_types": ["hash_moe", "moe", "moe"], "head_dim": 16, "o_lora_rank": 16, "o_groups": 2},
    "doge": {"is_moe": True, "num_experts": 16},  # must be a square
    "dots3_note_text": {"head_dim": 16, "layer_types": ["indexed_attention"] * 3},
    "flint": {"mlp_only_layers": [0]},
    "gemma4_text": {
        "enable_moe_block": True,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "global_head_dim": 8,
    },
    "granitemoehybrid": {"layer_types": ["attention"] * 3, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8},
    "jamba": {"expert_layer_period": 1, "expert_layer_offset": 0},
    "jetmoe": {"kv_channels": 8},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]},
    "llama4_text": {"num_experts_per_tok": 1, "intermediate_size_mlp": 48},
    "longcat_flash": {"num_layers": 2, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "zero_expert_num": 4},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "minimax_m3_vl_text": {"dense_intermediate_size": 32},
    "nemotron_h": {
        "layers_block_type": ["attention", "moe", "moe"],
        "moe_shared_expert_intermediate_size": 16,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "ssm_state_size": 8,
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


@lru_cache
def discovered() -> dict[str, str]:
    """Model types with routed experts, sorted, and the name under which their config writes the number of experts."""
    classes = configs()
    found = {model_type: _count_key(config, classes) for model_type, config in classes.items()}
    return {model_type: found[model_type] for model_type in sorted(found) if found[model_type]}


def configs() -> dict[str, type[PreTrainedConfig]]:
    """The config of every causal language model, but not of code that came with a checkpoint some test loaded."""
    return {
        config.model_type: config
        for config in MODEL_FOR_CAUSAL_LM_MAPPING
        if not config.__module__.startswith("transformers_modules.")
    }


def _count_key(config: type[PreTrainedConfig], families: dict[str, Any]) -> str | None:
    """The name a config writes; that of a part of it with the part before, unless the part is a family of its own."""
    parts = {"": config} | {part: config.sub_configs[part] for part in NESTED if part in config.sub_configs}
    for part, owner in parts.items():
        if (not part or getattr(owner, "model_type", None) not in families) and (names := _names(owner)):
            for key in EXPERT_COUNT_KEYS:
                if key in names:
                    return f"{part}.{_written(owner, key)}".lstrip(".")
    return None


def _names(config: Any) -> set[str]:
    return {field.name for field in fields(config)} | set(config.attribute_map) if is_dataclass(config) else set()


def _written(config: Any, name: str) -> str:
    return config.attribute_map.get(name, name)


def tiny_config(model_type: str, experts: int = EXPERTS) -> PreTrainedConfig:
    """The config of a tiny model; `experts` is the number of routed experts, where the row does not say it."""
    config = configs()[model_type]
    known = {field.name for field in fields(config)}
    values = {name: value for name, value in _COMMON.items() if name in known}
    values |= {name: TOP_K for name in TOP_K_KEYS if name in known}
    values |= {name: experts for name in EXPERT_COUNT_KEYS if name in known} | _ROWS.get(model_type, {})
    part, _, key = discovered()[model_type].rpartition(".")
    if part:
        values[part] = values.get(part, {}) | {key: experts}
    return config(**values)


def tiny_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A model in float32; the same seed gives the same weights. Whatever a family gives each expert differs.

    Fails, saying what to add to the table above, if the family cannot be made so.
    """
    try:
        config = tiny_config(model_type)
        with torch.device("meta"):
            size = AutoModelForCausalLM.from_config(config).num_parameters()
        assert size < LARGEST, f"it would have {size} parameters"
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        _spread(model, torch.Generator().manual_seed(seed + 1))
        assert logits(model, torch.stack(token_ids(24, 24))).isfinite().all(), "its logits are not finite"
    except Exception as error:
        has = "the row" if model_type in _ROWS else "no row"
        pytest.fail(
            f"'{model_type}' has {has} in tests/families.py, and with that no tiny model can be made of it: "
            f"{type(error).__name__}: {error}\nAdd to _ROWS what its config needs beside or instead of _COMMON."
        )
    return model


@torch.no_grad()
def _spread(model: nn.Module, generator: torch.Generator) -> None:
    """Random values where a new model has equal ones, so that no expert's can be mistaken for another's."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("tid2eid"):  # the experts each token is bound to (deepseek_v4)
            order = torch.randn(len(tensor), EXPERTS, generator=generator).argsort(1)
            tensor.copy_(order[:, : tensor.shape[1]])
        elif name.endswith("A_log"):
            tensor.zero_()  # linear attention that forgets at once sums large exponents and loses half of its digits
        elif not tensor.is_floating_point():
            continue
        elif "bias" in name or name.endswith("per_expert_scale"):
            tensor.add_(0.1 * noise)
        elif tensor.dim() > 1 and tensor.min() == tensor.max():
            tensor.copy_(0.2 * noise)
