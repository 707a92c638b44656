"""A byte-level BPE vocabulary of the demonstration's own, trained on the train split; and text as token arrays."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from demo import corpora
from demo.sources import DOMAINS

VOCABULARY = 4096
END = "<|endoftext|>"
CONTEXT = 256
"""Tokens the model sees at once, in training and in every measurement."""


def build(work: Path, model: Path, characters: int = 2_000_000) -> None:
    """Train on as many characters of every domain and save where `AutoTokenizer` finds it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    text = []
    for domain in DOMAINS:
        room = characters
        for row in corpora.read(work / f"{domain}.train.jsonl.gz"):
            if room > 0:
                text.append(row["text"][:room])
                room -= len(row["text"])
    tokenizer.train_from_iterator(text, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(model)


def load(model: Path) -> PreTrainedTokenizerBase:
    """The saved tokenizer."""
    return AutoTokenizer.from_pretrained(model)


def encoded(tokenizer: PreTrainedTokenizerBase, path: Path) -> list[np.ndarray]:
    """Token ids of every document of a split, after the end-of-text token that the first word is predicted from."""
    texts = [row["text"] for row in corpora.read(path)]
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [np.array([tokenizer.eos_token_id, *row], np.int64) for row in ids]
