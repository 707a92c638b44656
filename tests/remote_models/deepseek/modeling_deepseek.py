"""DeepSeekMoE (arXiv:2401.06066) for the tests: Llama's attention, many small experts beside shared ones.

Laid out as the published checkpoint is: a gate that does its own product and returns (experts, weights, loss), the
experts an `nn.ModuleList` of ordinary MLPs. Its tensors have the published names, one of each expert's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from .configuration_deepseek import DeepseekConfig


class DeepseekMLP(nn.Module):
    """A gated MLP of the width given."""

    def __init__(self, config: DeepseekConfig, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class MoEGate(nn.Module):
    """Softmax over all experts, then the best k of them; in training also the balance loss."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        if config.scoring_func != "softmax":
            raise NotImplementedError(f"scoring_func {config.scoring_func}")
        self.top_k, self.n_routed_experts = config.num_experts_per_tok, config.n_routed_experts
        self.norm_topk_prob = config.norm_topk_prob
        self.alpha, self.seq_aux = config.aux_loss_alpha, config.seq_aux
        self.weight = nn.Parameter(torch.empty(self.n_routed_experts, config.hidden_size))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """[B, T, D] to (experts [BT, K], their weights [BT, K], a loss or None)."""
        rows = hidden_states.flatten(0, -2)
        scores = nn.functional.linear(rows, self.weight).softmax(-1)
        weight, expert = scores.topk(self.top_k, -1, sorted=False)
        if self.norm_topk_prob and self.top_k > 1:
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        loss = self._balance(scores, expert, len(hidden_states)) if self.training and self.alpha > 0 else None
        return expert, weight, loss

    def _balance(self, scores: Tensor, expert: Tensor, sequences: int) -> Tensor:
        """The sum over experts of their share of visits times their mean score (the paper's eq. 12-14)."""
        groups = sequences if self.seq_aux else 1
        visits = nn.functional.one_hot(expert, self.n_routed_experts).sum(1).to(scores.dtype)
        share = visits.unflatten(0, (groups, -1)).mean(1) * self.n_routed_experts / self.top_k
        return (share * scores.unflatten(0, (groups, -1)).mean(1)).sum(1).mean() * self.alpha


class AddAuxiliaryLoss(torch.autograd.Function):
    """Hands an output through; the loss beside it takes part in the backward pass with weight 1."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, loss: Tensor) -> Tensor:
        """The output."""
        ctx.loss = loss.detach()
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient as it is, and 1."""
        return gradient, torch.ones_like(ctx.loss)


class DeepseekMoE(nn.Module):
    """The routed experts' weighted sum and the shared experts' output."""

    def __init__(self, config: DeepseekConfig) -> None:
        super().__init__()
        self.config = config
        self.num_experts_per_tok = config.num_experts_per_tok
        self.experts = nn.ModuleList(
            DeepseekMLP(config, config.moe_intermediate_size) for _ in range(config.n_routed_experts)
        )
        self.gate = MoEGate(config)
        if config.n_shared_experts is not None:
            self.shared_experts = DeepseekMLP(config, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        expert, weight, loss = self.gate(hidden_states)
        rows = hidden_states.flatten(0, -2)
        if self.training:
            output = self._routed(rows, expert, weight)
            output = output if loss is None else AddAuxiliaryLoss.apply(output, loss)
        else:
            with torch.no_grad():  # as published: no gradient passes through experts outside training
                output = self._routed(rows, expert, weight)
        output = output.view_as(hidden_states)
        if self.config.n_shared_experts is not None:
            output = output + self.shared_experts(hidden_states)
        return output

    def _routed(self, rows: Tensor, expert: Tensor, weight: Tensor) -> Tensor:
        order = expert.flatten().argsort()
        ends = expert.flatten().bincount(minlength=len(self.experts)).cumsum(0).tolist()
        output = torch.zeros_like(rows)
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if start < end:
                chosen = order[start:end]
                token = chosen // self.num_experts_per_tok
                output = output.index_add(
                    0, token, self.experts[number](rows[token]) * weight.flatten()[chosen, None].to(rows.dtype)
                )
        return output


class DeepseekDecoderLayer(LlamaDecoderLayer):
    """Llama's layer with another MLP."""

    def __init__(self, config: DeepseekConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        if config.has_experts(layer_idx):
            self.mlp = DeepseekMoE(config)


class DeepseekPreTrainedModel(LlamaPreTrainedModel):
    """What the models below have in common."""

    config: DeepseekConfig
    _no_split_modules = ["DeepseekDecoderLayer"]  # noqa: RUF012 - as in every model of transformers

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MoEGate):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5)


class DeepseekModel(DeepseekPreTrainedModel, LlamaModel):
    """The decoder."""

    def __init__(self, config: DeepseekConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)  # not LlamaModel's, which makes layers of its own
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(DeepseekDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()


class DeepseekForCausalLM(DeepseekPreTrainedModel, LlamaForCausalLM):
    """The decoder and its head."""

    def __init__(self, config: DeepseekConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.model = DeepseekModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
