"""Train the demonstration model: a stock `OlmoeForCausalLM`, language modelling plus load balancing layer by layer.

The balancing loss is transformers' own, taken of each layer by itself and averaged: pooled over the layers, as in the
model's forward pass, one layer's idle experts are made up for by another's, and a quarter of all experts end up unused.
It is taken over the whole batch, which holds every domain, so that experts may still specialise.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, OlmoeConfig, OlmoeForCausalLM
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

from demo import tokenizer as tokenizing
from demo.sources import DOMAINS
from demo.tokenizer import CONTEXT, VOCABULARY


@dataclass(frozen=True)
class Recipe:
    """All that decides the outcome, besides the text and the shape of the model."""

    steps: int = 2400
    rows: tuple[int, ...] = (10, 10, 6, 6)
    """Rows of a batch from each of DOMAINS; the two small train splits get fewer: their text comes round more often."""
    lr: float = 3e-3
    warmup: int = 150
    floor: float = 0.03
    """Share of the learning rate that the cosine ends at."""
    weight_decay: float = 0.1
    clip: float = 1.0
    balance: float = 0.1
    """Coefficient of the layers' mean load-balancing loss."""
    z_loss: float = 1e-3
    """Coefficient of the mean squared log-sum-exp of the router's logits, which keeps the softmax from saturating."""
    seed: int = 20261122
    checkpoint_every: int = 200


def configuration(recipe: Recipe, eos: int) -> OlmoeConfig:
    """Four layers of sixteen experts, two at work for a token."""
    return OlmoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=16,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        router_aux_loss_coef=recipe.balance,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=eos,
        eos_token_id=eos,
        pad_token_id=eos,
    )


def router_losses(logits: tuple[Tensor, ...], experts: int, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over layers of the balancing loss (`top_k` if uniform) and of the z-loss, and each layer's routed shares."""
    balance = torch.stack([load_balancing_loss_func((layer.float(),), experts, top_k) for layer in logits]).mean()
    z = torch.stack([layer.float().logsumexp(-1).square().mean() for layer in logits]).mean()
    with torch.no_grad():
        shares = torch.stack([F.one_hot(layer.topk(top_k).indices, experts).float().mean((0, 1)) for layer in logits])
    return balance, z, shares


def batches(streams: list[np.ndarray], recipe: Recipe, start: int) -> Iterator[Tensor]:
    """Windows of CONTEXT + 1 tokens at random places, seeded by step, so that a resumed run draws the same."""
    for step in range(start, recipe.steps):
        random = np.random.default_rng((recipe.seed, step))
        rows = [
            stream[at : at + CONTEXT + 1]
            for stream, count in zip(streams, recipe.rows, strict=True)
            for at in random.integers(0, len(stream) - CONTEXT, count)
        ]
        yield torch.from_numpy(np.stack(rows))


def rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / (recipe.steps - recipe.warmup)
    return recipe.lr * (recipe.floor + (1 - recipe.floor) * (1 + math.cos(math.pi * progress)) / 2)


@torch.no_grad()
def perplexity(model: OlmoeForCausalLM, block: Tensor) -> float:
    """Of the last CONTEXT tokens of every row."""
    logits = model(input_ids=block[:, :-1]).logits
    return math.exp(F.cross_entropy(logits.flatten(0, 1).float(), block[:, 1:].flatten()).item())


def run(work: Path, shared: Path, out: Path, log: Path, recipe: Recipe) -> None:
    """Train, or go on from work/checkpoint.pt; the model so far is in `out` after every checkpoint."""
    torch.manual_seed(recipe.seed)
    tokenizer = tokenizing.load(out)
    model = OlmoeForCausalLM(configuration(recipe, tokenizer.eos_token_id))
    # Measured on two cores with AMX: bfloat16 matrix products with grouped_mm are a quarter faster than eager float32.
    model.set_experts_implementation("grouped_mm")
    model.set_attn_implementation("eager")
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), fused=True)

    checkpoint, start, spent = work / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, spent = state["step"], state["seconds"]
    lines = log.open("a" if start else "w")

    def say(line: str) -> None:
        print(line, file=lines, flush=True)

    streams = [np.concatenate(tokenizing.encoded(tokenizer, work / f"{d}.train.jsonl.gz")) for d in DOMAINS]
    # The run is watched on calibration text: held-out text is for the final figures only.
    watched = [np.concatenate(tokenizing.encoded(tokenizer, shared / f"{d}.calibration.jsonl.gz")) for d in DOMAINS]
    blocks = [torch.from_numpy(w[: 24 * CONTEXT + 1].astype(np.int64)).unfold(0, CONTEXT + 1, CONTEXT) for w in watched]
    if not start:
        say(f"# {asdict(recipe)}")
        say(f"# parameters {sum(p.numel() for p in model.parameters())}, threads {torch.get_num_threads()}")
        say(f"# train tokens {dict(zip(DOMAINS, map(len, streams), strict=True))}")

    began = time.perf_counter() - spent
    shares = torch.zeros(model.config.num_hidden_layers, model.config.num_experts)
    for step, batch in enumerate(batches(streams, recipe, start), start):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, recipe)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(input_ids=batch[:, :-1], output_router_logits=True)
        language = F.cross_entropy(output.logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        balance, z, routed = router_losses(
            output.router_logits, model.config.num_experts, model.config.num_experts_per_tok
        )
        (language + recipe.balance * balance + recipe.z_loss * z).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()

        shares += routed
        done, seconds = step + 1, time.perf_counter() - began
        if done % 20 == 0:
            worst = (shares / shares.sum(1, keepdim=True)).min().item()
            shares.zero_()
            speed = done * batch.shape[0] * CONTEXT / seconds
            say(
                f"step {done} loss {language.item():.3f} balance {balance.item():.4f} z {z.item():.2f} "
                f"min share {worst:.4f} tokens/s {speed:.0f} seconds {seconds:.0f}"
            )
        if done % recipe.checkpoint_every == 0 or done == recipe.steps:
            model.eval()
            found = (f"{domain} {perplexity(model, block):.1f}" for domain, block in zip(DOMAINS, blocks, strict=True))
            say(f"step {done} perplexity on calibration text: {', '.join(found)}")
            model.train()
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done, "seconds": seconds}
            torch.save(state, work / "checkpoint.part")
            (work / "checkpoint.part").replace(checkpoint)
            export(model, tokenizer.eos_token_id, out)


def export(model: OlmoeForCausalLM, eos: int, out: Path) -> None:
    """Save in bfloat16 in the stock format; the model in training stays as it is."""
    rounded = OlmoeForCausalLM(model.config)
    rounded.load_state_dict(model.state_dict())
    rounded.generation_config = GenerationConfig(bos_token_id=eos, eos_token_id=eos, pad_token_id=eos, do_sample=False)
    rounded.to(torch.bfloat16).save_pretrained(out)
