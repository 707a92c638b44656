"""Splits: every domain into train, calibration and held-out text by whole article, package, book or case."""

import gzip
import hashlib
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from demo.sources import BOOK_SPLIT, CODE, DOMAINS, Document, articles, cases, chapters, fingerprint, modules, passages

SPLITS = ("heldout", "calibration", "train")
"""In the order in which duplicates are resolved: a text in two splits stays in the first."""
SHINGLE = 8
"""Words per shingle."""
OVERLAP = 0.3
"""A document with this share of its shingles in documents already kept is a near duplicate."""
PACKAGE_CHARACTERS = 600_000
"""Taken of one package at most."""
SEED = 20261122

Split = dict[str, list[Document]]


def build(packages: Path, shared: Path, work: Path) -> None:
    """Write calibration and held-out text to `shared` (committed), train text and all counts to `work`."""
    raw = {"wiki": wiki(packages), "code": code(packages), "fiction": fiction(packages), "law": law(packages)}
    counts = {}
    for domain in DOMAINS:
        split, dropped = deduplicated(raw[domain])
        for name, documents in split.items():
            folder = work if name == "train" else shared
            write(folder / f"{domain}.{name}.jsonl.gz", documents)
            size = sum(len(d.text.encode()) for d in documents)
            counts[f"{domain}.{name}"] = {"documents": len(documents), "bytes": size, **dropped[name]}
            print(
                f"{domain:8} {name:12} {len(documents):6} documents {size:9} bytes, dropped {dropped[name]}", flush=True
            )
        groups = [{d.group for d in split[name]} for name in SPLITS]
        assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2]), domain
    (work / "corpora.json").write_text(json.dumps(counts, indent=1))


def deal(documents: Iterable[Document], heldout: int, calibration: int, longest: tuple[int, int]) -> Split:
    """Seeded shuffle, then fill held-out and calibration to so many characters each, with documents up to so long."""
    pool = sorted(documents, key=lambda d: d.id)
    random.Random(SEED).shuffle(pool)
    split: Split = {"heldout": [], "calibration": [], "train": []}
    room = {"heldout": heldout, "calibration": calibration}
    for document in pool:
        size = len(document.text)
        if size <= longest[0] and size <= room["heldout"]:
            name = "heldout"
        elif size <= longest[1] and size <= room["calibration"]:
            name = "calibration"
        else:
            name = "train"
        split[name].append(document)
        if name != "train":
            room[name] -= size
    return split


def wiki(packages: Path) -> Split:
    """Long articles in every split; short paragraphs in train."""
    split = deal(articles(packages), heldout=250_000, calibration=900_000, longest=(16_000, 40_000))
    # Paragraphs are for training only, and never on the subject of an article in another split.
    taken = {d.group.lower() for name in ("heldout", "calibration") for d in split[name]}
    split["train"] += [d for d in passages(packages) if d.group.lower() not in taken]
    return split


def code(packages: Path) -> Split:
    """Whole packages."""
    return {name: [d for p in CODE if p.use == f"code {name}" for d in sample(modules(p, packages))] for name in SPLITS}


def sample(documents: Iterable[Document], most: int = PACKAGE_CHARACTERS) -> list[Document]:
    """A seeded choice of documents up to `most` characters, so that no package outweighs the others."""
    pool, chosen = sorted(documents, key=lambda d: d.id), []
    random.Random(SEED).shuffle(pool)
    for document in pool:
        if len(document.text) <= most:
            chosen.append(document)
            most -= len(document.text)
    return chosen


def fiction(packages: Path) -> Split:
    """Whole novels."""
    documents = list(chapters(packages))
    return {name: [d for d in documents if BOOK_SPLIT[d.group] == name] for name in SPLITS}


def law(packages: Path) -> Split:
    """Whole cases."""
    return deal(cases(packages), heldout=420_000, calibration=700_000, longest=(12_000, 40_000))


def shingles(text: str) -> np.ndarray:
    """64-bit hashes of every run of SHINGLE words, distinct."""
    tokens = re.findall(r"\w+", text.lower())
    runs = {" ".join(tokens[i : i + SHINGLE]) for i in range(max(1, len(tokens) - SHINGLE + 1))}
    return np.array(
        [int.from_bytes(hashlib.blake2b(r.encode(), digest_size=8).digest()) for r in sorted(runs)], np.uint64
    )


def deduplicated(split: Split) -> tuple[Split, dict[str, dict[str, int]]]:
    """Drop exact duplicates (equal words) and near duplicates (shared shingles), held-out text having precedence."""
    kept: Split = {}
    dropped = {name: {"exact": 0, "near": 0} for name in SPLITS}
    texts: set[str] = set()
    seen: set[int] = set()
    for name in SPLITS:
        kept[name] = []
        for document in split[name]:
            own, key = shingles(document.text).tolist(), fingerprint(document.text)
            if key in texts:
                dropped[name]["exact"] += 1
            elif sum(s in seen for s in own) >= OVERLAP * len(own):
                dropped[name]["near"] += 1
            else:
                kept[name].append(document)
                texts.add(key)
                seen.update(own)
    return kept, dropped


def write(path: Path, documents: list[Document]) -> None:
    """JSON lines, gzipped to the same bytes every time: no time stamp and no file name in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (json.dumps({"text": d.text, "id": d.id, "source": d.source}, ensure_ascii=False) for d in documents)
    with path.open("wb") as raw, gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as out:
        out.write("".join(f"{row}\n" for row in rows).encode())


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a split."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
