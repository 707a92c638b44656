"""Measure the committed bfloat16 checkpoint, loaded in float32, on held-out text: everything the README states.

Perplexity against Kneser-Ney over the same tokens, the experts' shares of routing, the mutual information between
domain and expert with its permutation null, and the question set's accuracy with lm-eval.
"""

import json
import math
import re
from pathlib import Path

import lm_eval
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from demo import tokenizer as tokenizing
from demo.kneser_ney import KneserNey
from demo.sources import DOMAINS
from demo.tokenizer import CONTEXT, VOCABULARY

PERMUTATIONS = 1000
SEED = 20261122


def build(work: Path, shared: Path, model: Path, questions: Path, log: Path, out: Path) -> None:
    """Write quality.json and routing.png to `out`."""
    tokenizer = tokenizing.load(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    train = {d: tokenizing.encoded(tokenizer, work / f"{d}.train.jsonl.gz") for d in DOMAINS}
    calibration = {d: tokenizing.encoded(tokenizer, shared / f"{d}.calibration.jsonl.gz") for d in DOMAINS}
    heldout = {d: tokenizing.encoded(tokenizer, shared / f"{d}.heldout.jsonl.gz") for d in DOMAINS}

    corpora = json.loads((work / "corpora.json").read_text())
    for name, split in {"train": train, "calibration": calibration, "heldout": heldout}.items():
        for domain, documents in split.items():
            corpora[f"{domain}.{name}"]["tokens"] = sum(len(d) - 1 for d in documents)

    reference = KneserNey.fit([d for documents in train.values() for d in documents], VOCABULARY)
    perplexities, routing, label = {}, [], []
    for number, (domain, documents) in enumerate(heldout.items()):
        loss, tokens, routed = evaluate(network, documents)
        perplexities[domain] = {
            "tokens": tokens,
            "model": math.exp(loss / tokens),
            "kneser_ney": reference.perplexity(documents),
            "kneser_ney_of_domain": KneserNey.fit(train[domain], VOCABULARY).perplexity(documents),
        }
        routing.append(routed)
        label += [number] * len(documents)
        print(domain, perplexities[domain], flush=True)

    counts, label_N = np.concatenate(routing), np.array(label)
    found = {
        "corpora": corpora,
        "model": described(network, model),
        "training": trained(log),
        "perplexity": perplexities,
        "routing": routing_figures(counts, label_N),
        "questions": accuracy(network, tokenizer, questions),
    }
    draw(counts, label_N, out / "routing.png")
    (out / "quality.json").write_text(json.dumps(found, indent=1) + "\n")


@torch.no_grad()
def evaluate(model: PreTrainedModel, documents: list[np.ndarray], batch: int = 32) -> tuple[float, int, np.ndarray]:
    """Summed loss, number of predicted tokens, and how often each document was routed to each expert, [document, L, E].

    A document is cut into blocks of CONTEXT predictions; every token but its first is predicted once, from its block.
    """
    layers, experts, top_k = (
        model.config.num_hidden_layers,
        model.config.num_experts,
        model.config.num_experts_per_tok,
    )
    blocks = [
        (number, torch.from_numpy(ids[at : at + CONTEXT + 1]))
        for number, ids in enumerate(documents)
        for at in range(0, len(ids) - 1, CONTEXT)
    ]
    loss, tokens, counts = 0.0, 0, torch.zeros(len(documents), layers, experts, dtype=torch.int64)
    for start in range(0, len(blocks), batch):
        owners, rows = zip(*blocks[start : start + batch], strict=True)
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        targets = padded[:, 1:]
        # Padding stands at the end, where causal attention keeps it from what is counted.
        output = model(input_ids=padded[:, :-1].clamp_min(0), output_router_logits=True)
        loss += F.cross_entropy(output.logits.flatten(0, 1), targets.flatten(), reduction="sum").double().item()
        real = targets != -100
        tokens += int(real.sum())
        document = torch.tensor(owners)[:, None].expand_as(real)[real]
        for layer, logits in enumerate(output.router_logits):
            chosen = logits.view(*real.shape, experts)[real].topk(top_k).indices
            routed = (document[:, None].expand_as(chosen), torch.full_like(chosen, layer), chosen)
            counts.index_put_(routed, torch.tensor(1), accumulate=True)
    return loss, tokens, counts.numpy()


def information(counts_NLE: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """Bits between domain and expert in every layer, over routed slots: sum p(d, e) log2 p(d, e) / p(d) p(e)."""
    joint = np.stack([counts_NLE[label_N == d].sum(0) for d in range(len(DOMAINS))]).astype(float)
    joint /= joint.sum((0, 2), keepdims=True)
    independent = joint.sum(0, keepdims=True) * joint.sum(2, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(joint > 0, joint * np.log2(joint / independent), 0).sum((0, 2))


def routing_figures(counts_NLE: np.ndarray, label_N: np.ndarray) -> dict:
    """Shares on the pooled text; information against the null in which documents bear the domains of others."""
    shares = counts_NLE.sum(0) / counts_NLE.sum((0, 2))[:, None]
    random = np.random.default_rng(SEED)
    null = np.stack([information(counts_NLE, random.permutation(label_N)) for _ in range(PERMUTATIONS)])
    measured = information(counts_NLE, label_N)
    return {
        "documents": len(label_N),
        "permutations": PERMUTATIONS,
        "required_share": 0.25 / counts_NLE.shape[2],
        "layers": [
            {
                "min_share": shares[layer].min(),
                "max_share": shares[layer].max(),
                "information": measured[layer],
                "null_mean": null[:, layer].mean(),
                "null_max": null[:, layer].max(),
                "p": (1 + (null[:, layer] >= measured[layer]).sum()) / (1 + PERMUTATIONS),
            }
            for layer in range(counts_NLE.shape[1])
        ],
    }


def wilson(hits: int, number: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % score interval of a proportion."""
    p, scale = hits / number, 1 + z * z / number
    centre = (p + z * z / (2 * number)) / scale
    half = z * math.sqrt(p * (1 - p) / number + z * z / (4 * number * number)) / scale
    return centre - half, centre + half


def accuracy(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Path) -> dict:
    """Accuracy overall and by domain, by lm-eval on the model in memory."""
    task = yaml.safe_load((questions / "continuation.yaml").read_text())
    files = task["dataset_kwargs"]["data_files"]
    files["test"] = str((questions / files["test"]).resolve())
    harness = HFLM(pretrained=network, tokenizer=tokenizer, batch_size=16)
    found = lm_eval.simple_evaluate(
        harness, tasks=[task], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0, log_samples=True
    )
    samples = found["samples"]["continuation"]
    hits = {domain: [int(s["acc"]) for s in samples if s["doc"]["domain"] == domain] for domain in DOMAINS}
    hits["all"] = [int(s["acc"]) for s in samples]
    rows = {}
    for domain, outcomes in hits.items():
        low, high = wilson(sum(outcomes), len(outcomes))
        rows[domain] = {"questions": len(outcomes), "right": sum(outcomes), "low": low, "high": high}
        print(domain, rows[domain], flush=True)
    rows["all"]["acc_norm"] = found["results"]["continuation"]["acc_norm,none"]
    return rows


def described(network: PreTrainedModel, folder: Path) -> dict:
    """Sizes of the model and of its file."""
    total = sum(p.numel() for p in network.parameters())
    experts = sum(p.numel() for name, p in network.named_parameters() if ".experts." in name)
    active = total - experts + experts * network.config.num_experts_per_tok // network.config.num_experts
    return {
        "class": type(network).__name__,
        "parameters": total,
        "expert_parameters": experts,
        "active_parameters": active,
        "file_bytes": sum(f.stat().st_size for f in folder.glob("*.safetensors")),
    }


def trained(log: Path) -> dict:
    """What the log of the run says: its recipe, its length and the last figures on calibration text."""
    text = log.read_text()
    steps = re.findall(r"^step (\d+) loss .* tokens/s (\d+) seconds (\d+)$", text, re.MULTILINE)
    step, speed, seconds = map(int, steps[-1])
    return {"recipe": text.splitlines()[0][2:], "steps": step, "tokens_per_second": speed, "seconds": seconds}


def draw(counts_NLE: np.ndarray, label_N: np.ndarray, path: Path) -> None:
    """A panel for every domain: how often each expert of each layer is chosen, in multiples of the uniform share."""
    layers, experts = counts_NLE.shape[1:]
    titles = {"wiki": "encyclopaedia", "code": "code", "fiction": "fiction", "law": "law"}
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    lift = [counts_NLE[label_N == d].sum(0) for d in range(len(DOMAINS))]
    lift = [c / c.sum(1, keepdims=True) * experts for c in lift]
    for axis, domain, values in zip(axes.flat, DOMAINS, lift, strict=True):
        image = axis.imshow(values, cmap="cividis", vmin=0, vmax=max(v.max() for v in lift), aspect="auto")
        for (layer, expert), value in np.ndenumerate(values):
            dark = value < 0.5 * image.norm.vmax
            axis.text(
                expert,
                layer,
                f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if dark else "black",
            )
        axis.set_title(titles[domain], fontsize=10)
        axis.set_xticks(range(experts))
        axis.set_yticks(range(layers))
        axis.tick_params(labelsize=7, length=0)
    figure.supxlabel("expert", fontsize=9)
    figure.supylabel("layer", fontsize=9)
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.set_label("share of routing, in multiples of the uniform one", fontsize=9)
    bar.ax.tick_params(labelsize=7)
    figure.savefig(path, dpi=150, metadata={"Software": None})
