"""Does an audit of one sample of text tell how masks of other samples of it vary? Asked of samples that share nothing.

    python -m demo.build corpora            # the text: fetches the packages it comes from
    python benchmarks/independent_samples.py [--draws 12] [--tokens 32768] [--chunks 32]

The documents of each of the demo's training texts are dealt into samples, each calibrated and observed by itself.
"truth" is the chance-corrected agreement of the masks of two samples, mean over all pairs and layers, with its 90%
interval (jackknife over samples); "halves" and "resamples" are what an audit of one sample says of it, mean over
samples, and "in" says that the interval meets what lies between; "covered" is the share of 90% intervals of scores that
hold the mean score of all the other samples.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from scipy.stats import t as student_t
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedModel

from demo.sources import DOMAINS
from moeprune.comparing import mask_agreement
from moeprune.corpus import build_corpus, read_documents
from moeprune.criteria import find
from moeprune.errors import BadInput
from moeprune.models import load_model
from moeprune.observation import observe_chunk
from moeprune.observer import Observer
from moeprune.routing import Routing
from moeprune.sensitivity import Sensitivity, sensitivity
from moeprune.statistics import DEPLOYED, Statistics

DEMO = Path(__file__).resolve().parents[1] / "demo"
CRITERIA = ("reap", "man", "msan", "ean", "gate_weighted_ean", "seer", "frequency")


def samples(domain: str, model: PreTrainedModel, given: argparse.Namespace) -> list[Statistics]:
    """The statistics of as many separate samples as the domain's documents give, up to `given.draws`."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    left = list(read_documents(DEMO / "work" / f"{domain}.train.jsonl.gz", "text"))
    found: list[Statistics] = []
    for number in tqdm(range(given.draws), desc=domain):
        try:
            corpus = build_corpus(
                left, lambda text: tokenizer(text, verbose=False).input_ids, given.tokens, 256, given.chunks, number
            )
        except BadInput:  # what is left is too little for another
            break
        used = set(corpus.document.tolist())
        left = [text for place, text in enumerate(left) if place not in used]
        with Observer(model, ("core",), (DEPLOYED,)) as observer:
            chunks = [observe_chunk(model, observer, corpus, chunk, 16) for chunk in range(corpus.chunks)]
        found.append(sum(chunks[1:], chunks[0]))
    return found


def agreement(masks: Tensor) -> tuple[float, float]:
    """Mean over pairs of N masks [N, L, E], and half its 90% interval by the jackknife."""
    of_pairs = mask_agreement(masks)[0].mean(-1)
    number = len(of_pairs)

    def mean(which: Sequence[int]) -> float:
        part = of_pairs[list(which)][:, list(which)]
        return float((part.sum() - part.diagonal().sum()) / (len(which) * (len(which) - 1)))

    without = torch.tensor([mean([i for i in range(number) if i != left_out]) for left_out in range(number)])
    error = math.sqrt((number - 1) / number * float((without - without.mean()).square().sum()))
    return mean(range(number)), student_t.ppf(0.95, number - 1) * error


def covered(audits: Sequence[Sensitivity], word: str) -> float:
    """The share of the samples' intervals that hold the mean of the other samples' scores."""
    scores = torch.stack([audit.criteria[word].scores for audit in audits])
    others = (scores.sum(0) - scores) / (len(scores) - 1)
    lower = torch.stack([audit.criteria[word].lower for audit in audits])
    upper = torch.stack([audit.criteria[word].upper for audit in audits])
    return float(((lower <= others) & (others <= upper)).double().mean())


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--chunks", type=int, default=32)
    parser.add_argument("--resamples", type=int, default=1000)
    given = parser.parse_args()
    model = load_model(DEMO / "model", "float32", "cpu")
    routing = Routing(model.config.num_experts, model.config.num_experts_per_tok)
    keeps = {"25%": 3 * routing.experts // 4, "50%": routing.experts // 2}
    criteria = {word: find(word).score for word in CRITERIA}
    print("| text | samples | criterion | removed | halves | truth | resamples | | covered |")
    print("|---|---|---|---|---|---|---|---|---|")
    places = {"in": 0, "below": 0, "above": 0}
    for domain in DOMAINS:
        drawn = samples(domain, model, given)
        audits = [
            sensitivity({domain: one}, criteria, list(keeps.values()), routing, resamples=given.resamples, seed=number)
            for number, one in enumerate(drawn)
        ]
        for word in CRITERIA:
            for removed, keep in keeps.items():
                masks = [audit.criteria[word].masks[keep] for audit in audits]
                low = sum(float(mask.halves.mean()) for mask in masks) / len(masks)
                high = sum(mask.stability.overall().value for mask in masks) / len(masks)
                truth, half = agreement(torch.stack([mask.kept for mask in masks]))
                place = "below" if truth + half < low else "above" if truth - half > high else "in"
                places[place] += 1
                share = f"{100 * covered(audits, word):.0f}%"
                cells = [domain, len(drawn), word, removed, f"{low:.2f}", f"{truth:.2f} ± {half:.2f}", f"{high:.2f}"]
                print(f"| {' | '.join(map(str, [*cells, place, share]))} |", flush=True)
    print(f"\nTruth in the bracket {places['in']} times, below {places['below']}, above {places['above']}.")


if __name__ == "__main__":
    main()
