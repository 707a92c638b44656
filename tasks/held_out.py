"""Held-out text: how well a model predicts it, and how it goes on from it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from moeprune.errors import BadInput
from tasks.artifacts import Params
from tasks.progress import progress


class EvaluationCorpus(Params):
    """A held-out corpus."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """A short name, which metrics bear."""
    source: str
    """As in calibrate."""
    field: str = "text"
    """As in calibrate."""


def read_corpus(
    model: Any,
    tokenizer: Any,
    corpus: EvaluationCorpus,
    path: Path,
    sequence_length: int,
    batch_size: int,
    limit: int | None,
    title: str,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[int]]:
    """(metrics, a row for each document, the tokens of the first document) of one corpus.

    Raises BadInput for a corpus without text, or a tokenizer without a token to begin a document with.
    """
    import torch

    from moeprune.corpus import read_documents
    from moeprune.perplexity import bits_per_byte, document_nll, perplexity

    texts = list(read_documents(path, corpus.field))[:limit]
    if not texts:
        raise BadInput(f"evaluate.corpora '{corpus.name}': {path} holds no text: give another source")
    # Special tokens are left out: the prefix stands for them, and every token of the text is predicted.
    ids = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if prefix is None:
        raise BadInput(
            "evaluate: the tokenizer has neither a bos nor an eos token to begin a document with: set one "
            "in tokenizer_config.json"
        )
    tokens = torch.tensor([len(document) for document in ids], dtype=torch.float64)
    size = torch.tensor([len(text.encode()) for text in texts], dtype=torch.float64)
    with progress(f"{title}: {corpus.name}", int(tokens.sum()), "tok") as done:
        nll = document_nll(model, ids, prefix, sequence_length, batch_size, done)
    metrics = {
        f"perplexity/{corpus.name}": asdict(perplexity(nll, tokens)),
        f"bits_per_byte/{corpus.name}": asdict(bits_per_byte(nll, size)),
    }
    rows = [
        {
            "kind": "document",
            "set": corpus.name,
            "id": number,
            "nll": float(nll[number]),
            "tokens": int(tokens[number]),
            "bytes": int(size[number]),
        }
        for number in range(len(texts))
    ]
    return metrics, rows, ids[0]


def write_on(model: Any, tokenizer: Any, ids: list[int], name: str) -> dict[str, str]:
    """What the model writes after the first 48 tokens of a document, greedily."""
    import torch

    start = torch.tensor([ids[:48]], device=model.device)
    with torch.no_grad():
        whole = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=48,
            do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )
    return {"corpus": name, "prompt": tokenizer.decode(start[0]), "text": tokenizer.decode(whole[0, start.shape[1] :])}
