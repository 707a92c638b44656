"""The card of a model that is handed over: a README.md with the Hub's metadata in front.

It says what was removed and how, on which text that was decided, what it cost, where every part came from, under whose
terms it may be used, and how to load it.
"""

from collections.abc import Iterator
from typing import Any

from flows.handover import tables
from flows.handover.facts import Facts
from moeprune.catalogue import catalogue
from moeprune.masks import Mask
from tasks.hub_refusals import endpoint

HUB_DATA = "hf://datasets/"
LOAD = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{address}", dtype="auto"{trust})
tokenizer = AutoTokenizer.from_pretrained("{address}"{trust})
```"""


def card(facts: Facts, address: str) -> str:
    """The text of README.md. `address` is what `from_pretrained` is to be given: a Hub id or a path."""
    from huggingface_hub import ModelCardData

    return f"---\n{ModelCardData(**_metadata(facts)).to_yaml()}\n---\n\n{body(facts, address)}"


def body(facts: Facts, address: str) -> str:
    """The card without the metadata in front."""
    sections = {
        "What was removed": _removed(facts),
        "Calibration": tables.calibration(facts),
        "Results": tables.results(facts),
        "How to load it": _loading(facts, address),
        "Licence": _licence(facts),
        "Lineage": tables.lineage(facts),
    }
    text = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"# {facts.made.model.name}\n\n{_summary(facts)}\n\n{text}\n"


def _metadata(facts: Facts) -> dict[str, Any]:
    sources = [corpus["source"] for corpus in (facts.recipe.get("calibrate") or {}).get("corpora", [])]
    named = [
        source.removeprefix(HUB_DATA).split("@")[0].split("/") for source in sources if source.startswith(HUB_DATA)
    ]
    return {
        "base_model": facts.base.repository,
        **facts.base.licence,
        "language": facts.base.metadata.get("language"),
        "library_name": "transformers",
        "pipeline_tag": facts.base.metadata.get("pipeline_tag", "text-generation"),
        "datasets": list(dict.fromkeys("/".join(parts[:2]) for parts in named)) or None,
        "tags": list(_tags(facts)),
    }


def _tags(facts: Facts) -> Iterator[str]:
    yield from ("moe", "pruning", "sparsity" if facts.sparse else "expert-pruning", "moeprune")
    if facts.made.kind == "distilled":
        yield "distillation"
    if facts.trusted:
        yield "custom_code"


def _base(facts: Facts) -> str:
    """The base model, so that it can be found and held against its hash."""
    base, digest = facts.base, facts.made.base.digest
    if base.repository is None:
        return f"{tables.code(facts.made.base.name)} (sha256 `{digest[:16]}…`)"
    return f"[{base.repository}]({endpoint()}/{base.repository}/tree/{base.commit}) at commit `{base.commit}`"


def _summary(facts: Facts) -> str:
    if facts.sparse:
        what = f"weights inside its experts set to zero (sparsity {facts.sparsity})"
    else:
        mask = Mask.from_json(facts.mask)
        whole, left = mask.experts * len(mask.counts), sum(mask.counts.values())
        what = f"{whole - left} of its {whole} routed experts removed ({1 - left / whole:.1%})"
    trained = ", then distilled towards it" if facts.made.kind == "distilled" else ""
    return f"This is {_base(facts)} with {what}{trained}. It was made and measured by moeprune from its `recipe.yaml`."


def _removed(facts: Facts) -> str:
    papers = {(entry.kind, entry.word): entry.paper for entry in catalogue()}
    selection = "" if facts.sparse else facts.recipe["mask"]["selection"]
    chosen = [("criterion", facts.criterion or ""), ("selection", selection)]
    lines = [f"Chosen by `{facts.made.lineage.run.tags['method']}`:", ""]
    lines += [f"- {kind} `{word}`: {papers[kind, word]}" for kind, word in chosen if (kind, word) in papers]
    if facts.sparse:
        text = f"Inside each expert, weights are set to zero (sparsity {facts.sparsity}). They are stored all the same."
        return "\n".join([*lines, "", text])
    mask = Mask.from_json(facts.mask)
    numbers = sorted(set(mask.counts.values()))
    each = f"{numbers[0]}" if len(numbers) == 1 else f"between {numbers[0]} and {numbers[-1]}"
    lines += [
        "",
        f"Each of {len(mask.counts)} layers keeps {each} of {mask.experts} experts, and its router their rows; the "
        "other weights are the base model's, unchanged. Prediction heads with experts of their own, if the base model "
        "has any, are left out.",
    ]
    if distil := facts.recipe.get("distill"):
        settings = ", ".join(f"{name} {value}" for name, value in distil.items() if value is not None)
        lines += [
            "",
            f"Distilling towards the base model, on the calibration text, then trained all weights: {settings}.",
        ]
    return "\n".join([*lines, "", tables.removed(mask)])


def _loading(facts: Facts, address: str) -> str:
    trusted = facts.trusted
    lines = [LOAD.format(address=address, trust=", trust_remote_code=True" if trusted else ""), ""]
    if facts.uneven:
        lines += [
            "Layers keep different numbers of experts, so the class that builds them comes with the checkpoint "
            "(`modeling_moeprune.py`) and `trust_remote_code=True` is needed. vLLM and llama.cpp cannot read it."
        ]
    else:
        trust = " --trust-remote-code" if trusted else ""
        lines += [f"```sh\nvllm serve {address}{trust}\n```", ""]
        lines += ["It is an ordinary checkpoint: what loads the base model loads it, with fewer experts."]
        if facts.sparse:
            lines[-1] = "It is an ordinary, dense checkpoint: its zeros save neither memory nor time."
    return "\n".join(lines)


def _licence(facts: Facts) -> str:
    licence, files = facts.base.licence, ", ".join(f"`{name}`" for name in sorted(facts.base.files))
    if not licence:
        why = facts.silent or "nothing there states one"
        return f"The base model's licence could not be carried over ({why}): find out its terms before you share this."
    named = licence.get("license_name") or licence.get("license")
    return f"That of the base model, `{named}`" + (f"; its terms are in {files}." if files else ".")
