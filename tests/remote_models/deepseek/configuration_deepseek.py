"""The configuration of DeepSeekMoE (arXiv:2401.06066), with the keys and values of the published 16B model."""

from transformers import LlamaConfig


class DeepseekConfig(LlamaConfig):
    """Every `moe_layer_freq`-th layer from `first_k_dense_replace` on has experts, the others an ordinary MLP."""

    model_type = "deepseek"

    vocab_size: int = 102400
    hidden_size: int = 2048
    intermediate_size: int = 10944
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    max_position_embeddings: int = 4096
    bos_token_id: int | None = 100000
    eos_token_id: int | list[int] | None = 100001
    moe_intermediate_size: int = 1408
    n_routed_experts: int | None = 64
    n_shared_experts: int | None = 2
    num_experts_per_tok: int = 6
    first_k_dense_replace: int = 1
    moe_layer_freq: int = 1
    norm_topk_prob: bool = False
    scoring_func: str = "softmax"
    aux_loss_alpha: float = 0.001
    seq_aux: bool = True

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has routed experts."""
        return (
            self.n_routed_experts is not None
            and layer >= self.first_k_dense_replace
            and layer % self.moe_layer_freq == 0
        )
