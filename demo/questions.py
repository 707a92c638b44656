"""Multiple choice from held-out text: which of four continuations, equal in tokens, follows the context?

The three wrong ones follow some other context in other documents of the same domain. Contexts and continuations begin
and end between words, and a question is kept only if tokenising its texts gives back the very tokens it was cut from.
"""

import json
import random
from pathlib import Path

import numpy as np
import yaml
from transformers import PreTrainedTokenizerBase

from demo import corpora
from demo import tokenizer as tokenizing
from demo.sources import DOMAINS

CONTEXT, CONTINUATION = 64, 20
PER_DOMAIN = 280
SEED = 20261122

Candidate = tuple[str, str, str]
"""Document, context, continuation."""

TASK = {
    "task": "continuation",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "continuation.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "context",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
    "metadata": {"version": 1.0},
}


def build(shared: Path, model: Path, out: Path) -> None:
    """Write the questions and their lm-eval task."""
    tokenizer, draw = tokenizing.load(model), random.Random(SEED)
    rows = [row for domain in DOMAINS for row in domain_questions(domain, tokenizer, shared, draw)]
    out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "continuation.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    (out / "continuation.yaml").write_text(yaml.safe_dump(TASK, sort_keys=False))


def domain_questions(domain: str, tokenizer: PreTrainedTokenizerBase, shared: Path, draw: random.Random) -> list[dict]:
    """PER_DOMAIN questions, right answers in every position equally often."""
    path = shared / f"{domain}.heldout.jsonl.gz"
    pools = []
    for row, ids in zip(corpora.read(path), tokenizing.encoded(tokenizer, path), strict=True):
        found = candidates(row["id"], ids, tokenizer)
        draw.shuffle(found)
        pools.append(found)
    everything = [candidate for pool in pools for candidate in pool]
    # One question of each document in turn, so that long documents do not crowd out short ones.
    turns = [pool[i] for i in range(max(map(len, pools))) for pool in pools if i < len(pool)][:PER_DOMAIN]
    questions = []
    for number, (document, context, right) in enumerate(turns):
        others = sorted({text for name, _, text in everything if name != document and text != right})
        choices = draw.sample(others, 3)
        answer = number % 4
        choices.insert(answer, right)
        questions.append(
            {"context": context, "choices": choices, "answer": answer, "domain": domain, "document": document}
        )
    # Positions of the right answer are equally frequent; in the file they must not follow a pattern.
    draw.shuffle(questions)
    return questions


def candidates(document: str, ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[Candidate]:
    """Windows of the document, without overlap, which survive the way through text."""
    found, at, size = [], 1, CONTEXT + CONTINUATION
    while at + size < len(ids):
        window = ids[at : at + size + 1].tolist()
        text = [tokenizer.decode(part) for part in (window[:CONTEXT], window[CONTEXT:size], window[size:])]
        context, continuation, after = text
        between_words = continuation[:1].isspace() and after[:1].isspace() and not context[-1:].isspace()
        if between_words and continuation.strip() and survives(tokenizer, context, continuation, window[:size]):
            found.append((document, context, continuation))
            at += size
        else:
            at += 1
    return found


def survives(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str, ids: list[int]) -> bool:
    """Do context, continuation and both together tokenise to what they were cut from?"""
    parts = [
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (context, continuation, context + continuation)
    ]
    return parts == [ids[:CONTEXT], ids[CONTEXT:], ids]
