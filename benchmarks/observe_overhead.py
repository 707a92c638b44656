"""What observing costs: the time of an observed pass against the same model's plain forward pass.

    python benchmarks/observe_overhead.py [--model FOLDER]
    python benchmarks/observe_overhead.py --random --experts 64 --hidden 1024 --inner 512 --layers 2

Every round times each variant once, in turn, so that what else the machine does falls on all alike. Only the ratios
mean anything elsewhere: each is the median over rounds of the ratio within a round.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, OlmoeConfig, PreTrainedModel

from moeprune.corpus import Corpus, build_corpus, read_documents
from moeprune.models import load_model
from moeprune.observation import observe_chunk
from moeprune.observer import Observer
from moeprune.statistics import DEPLOYED, GROUPS

ROOT = Path(__file__).resolve().parents[1]
PLAIN = ("eager", "grouped_mm")
OBSERVED = (("core",), ("core", "vectors"), tuple(GROUPS))


def random_model(given: argparse.Namespace) -> PreTrainedModel:
    """An OLMoE of the shape asked for, with a spread of router weights that routes tokens to every expert."""
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=1024,
        hidden_size=given.hidden,
        intermediate_size=given.inner,
        num_hidden_layers=given.layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        num_experts=given.experts,
        num_experts_per_tok=given.top_k,
    )
    with torch.device(given.device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, given.dtype))
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.mlp.gate.weight, std=given.hidden**-0.5)
    return model.eval()


def random_corpus(sequences: int, length: int) -> Corpus:
    """Blocks of random tokens in one chunk."""
    generator = torch.Generator().manual_seed(0)
    return Corpus(
        input_ids=torch.randint(3, 1024, (sequences, length), generator=generator).int(),
        length=torch.full((sequences,), length).int(),
        document=torch.arange(sequences).int(),
        chunk=torch.zeros(sequences).int(),
    )


def calibration_corpus(folder: Path, source: Path, sequences: int, length: int) -> Corpus:
    """Blocks of real text in one chunk, as calibrate makes them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    documents = list(read_documents(source, "text"))
    tokenize: Callable[[str], list[int]] = lambda text: tokenizer(text, verbose=False).input_ids  # noqa: E731
    return build_corpus(documents, tokenize, sequences * length, length, chunks=1, seed=0)


@torch.no_grad()
def plain_pass(model: PreTrainedModel, corpus: Corpus, batch_size: int) -> None:
    """The decoder alone, as observing runs it."""
    device = next(model.parameters()).device
    for ids, mask in corpus.batches(0, batch_size):
        model.get_decoder()(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)


def seconds_of(work: Callable[[], None], device: str, clock: Callable[[], float]) -> float:
    """Time of one call by a clock."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def variants(model: PreTrainedModel, corpus: Corpus, batch_size: int) -> dict[str, Callable[[], None]]:
    """Every way to run the pass, by name."""

    def plain(implementation: str) -> Callable[[], None]:
        def work() -> None:
            model.set_experts_implementation(implementation)
            plain_pass(model, corpus, batch_size)

        return work

    def observed(groups: tuple[str, ...]) -> Callable[[], None]:
        def work() -> None:
            with Observer(model, groups, (DEPLOYED,)) as observer:
                observe_chunk(model, observer, corpus, 0, batch_size)

        return work

    return {f"plain, {implementation}": plain(implementation) for implementation in PLAIN} | {
        f"observed, {' + '.join(groups)}": observed(groups) for groups in OBSERVED
    }


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "demo" / "model")
    parser.add_argument("--corpus", type=Path, default=ROOT / "data" / "sources" / "wiki.calibration.jsonl.gz")
    parser.add_argument("--random", action="store_true", help="a random OLMoE of the shape below, random tokens")
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--inner", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--cpu-time", action="store_true", help="count this process' CPU time: for shared machines")
    given = parser.parse_args()
    clock = time.process_time if given.cpu_time else time.perf_counter
    if given.random:
        model, corpus = random_model(given), random_corpus(given.sequences, given.length)
    else:
        if not given.corpus.is_file():
            sys.exit(f"there is no {given.corpus}: bring it with `dvc pull`, or give --corpus or --random")
        model = load_model(given.model, given.dtype, given.device)
        corpus = calibration_corpus(given.model, given.corpus, given.sequences, given.length)
    works = variants(model, corpus, given.batch_size)
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(given.rounds):
        for name, work in works.items():
            times[name].append(seconds_of(work, given.device, clock))

    def relative(name: str, base: str) -> str:
        ratios = sorted(a / b for a, b in zip(times[name], times[base], strict=True))
        return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"

    config = model.config
    print(
        f"{config.model_type}, {config.num_hidden_layers} layers, hidden {config.hidden_size}, "
        f"{config.num_experts_per_tok} of {config.num_experts} experts of {config.intermediate_size}; "
        f"{corpus.tokens} tokens in batches of {given.batch_size}; {given.dtype}, {given.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; {given.rounds} rounds, "
        f"{'CPU' if given.cpu_time else 'wall'} time\n"
    )
    base = [f"plain, {implementation}" for implementation in PLAIN]
    print(f"| pass | median seconds | tokens/s | times {base[0]} | times {base[1]} |\n|---|---|---|---|---|")
    for name, values in times.items():
        median = statistics.median(values)
        row = [name, f"{median:.3f}", f"{corpus.tokens / median:.0f}", *(relative(name, other) for other in base)]
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
