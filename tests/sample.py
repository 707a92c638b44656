"""A small project to run: a random OLMoE with a tokenizer, two corpora, multiple-choice questions and a recipe."""

import gzip
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import torch
import yaml

EXPERTS, TOP_K, LAYERS = 8, 2, 2
CORPORA = ("wiki", "code")
WORDS = {
    "wiki": [
        "the",
        "river",
        "of",
        "a",
        "small",
        "town",
        "in",
        "north",
        "was",
        "named",
        "after",
        "king",
        "who",
        "built",
        "old",
        "stone",
        "bridge",
        "near",
        "city",
    ],
    "code": [
        "def",
        "return",
        "if",
        "else",
        "for",
        "in",
        "range",
        "self",
        "value",
        "list",
        "print",
        "import",
        "class",
        "none",
        "true",
        "not",
        "and",
        "or",
        "index",
        "key",
    ],
}
RECIPE: dict[str, Any] = {
    "download": {"source": "model"},
    "calibrate": {
        "corpora": [{"name": name, "source": f"sources/{name}.jsonl"} for name in CORPORA],
        "tokens": 256,
        "sequence_length": 16,
        "chunks": 4,
    },
    "observe": {"dtype": "float32"},
    "score": {"criterion": "reap"},
    "mask": {"ratio": 0.25},
    "prune": {"shard_size": "30KB"},
    "runtime": {"device": "cpu", "batch_size": 4, "threads": 1},
}
EVALUATE: dict[str, Any] = {
    "corpora": [{"name": name, "source": f"sources/{name}.heldout.jsonl.gz"} for name in CORPORA],
    "tasks": ["questions/choice.yaml"],
    "sequence_length": 32,
    "generations": 1,
}
TASK: dict[str, Any] = {
    "task": "choice",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "choice.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "context",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [
        {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
    ],
    "metadata": {"version": 1.0},
}


def documents(name: str, count: int, seed: int) -> list[str]:
    """Texts of 6 to 24 words of the corpus' vocabulary."""
    draw = random.Random(f"{name}-{seed}")
    return [" ".join(draw.choices(WORDS[name], k=draw.randint(6, 24))) for _ in range(count)]


def write_lines(path: Path, rows: list[Any]) -> Path:
    """A .jsonl or .jsonl.gz file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())
    return path


def write_tokenizer(folder: Path) -> int:
    """A byte-level BPE tokenizer; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<end>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for name in CORPORA for text in documents(name, 50, 0)], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>").save_pretrained(folder)
    return len(tokenizer.get_vocab())


def write_model(folder: Path, seed: int = 0, shard: str = "60KB") -> Path:
    """A random OLMoE in several shards; its routers are redrawn so that routing is not uniform."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    vocabulary = write_tokenizer(folder)
    config = OlmoeConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = OlmoeForCausalLM(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=1.0 if ".gate.weight" in name else 0.15)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def write_questions(folder: Path, count: int = 24) -> Path:
    """A local lm-eval task beside its data file; returns the YAML."""
    draw = random.Random(7)
    rows = []
    for _ in range(count):
        choices = [" " + " ".join(draw.choices(WORDS["wiki"], k=draw.randint(1, 4))) for _ in range(3)]
        context = " ".join(draw.choices(WORDS["wiki"], k=6))
        rows.append({"context": context, "choices": choices, "answer": draw.randrange(3)})
    write_lines(folder / "choice.jsonl", rows)
    path = folder / "choice.yaml"
    path.write_text(yaml.safe_dump(TASK, sort_keys=False))
    return path


def write_recipe(path: Path, evaluate: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Path:
    """RECIPE with sections updated; measured only if `evaluate` is given."""
    content = {word: RECIPE.get(word, {}) | sections.get(word, {}) for word in RECIPE.keys() | sections.keys()}
    if evaluate is not None:
        content["evaluate"] = evaluate
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def write_project(folder: Path) -> Path:
    """Model, corpora, questions, and two recipes: params/quick.yaml measures nothing, params/whole.yaml all."""
    write_model(folder / "model")
    for name in CORPORA:
        write_lines(folder / f"sources/{name}.jsonl", [{"text": text} for text in documents(name, 60, 1)])
        write_lines(folder / f"sources/{name}.heldout.jsonl.gz", [{"text": text} for text in documents(name, 12, 2)])
    write_questions(folder / "questions")
    write_recipe(folder / "params/quick.yaml")
    write_recipe(folder / "params/whole.yaml", EVALUATE)
    return folder


def git(folder: Path, *words: str) -> str:
    """Output of a git command run in a folder."""
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@example.org"]
    return subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True).stdout
