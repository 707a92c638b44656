"""Corpora: exact budgets, whole documents, fair chunks, the same bytes for the same seed."""

import gzip
import json
from collections import Counter

import pyarrow
import pytest
import torch
from pyarrow import parquet

from moeprune.corpus import Corpus, build_corpus, read_documents
from moeprune.errors import BadInput
from moeprune.files import load_corpus, save_corpus

# Each document repeats a token of its own, so that a token tells where it came from.
LENGTHS = [5, 40, 3, 17, 25, 8, 60, 11, 33, 9, 14, 21, 2, 30, 19, 7]
DOCUMENTS = [" ".join([str(number)] * length) for number, length in enumerate(LENGTHS, 1)]


def tokenize(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def build(tokens: int = 200, length: int = 8, chunks: int = 4, seed: int = 0, documents=DOCUMENTS) -> Corpus:
    return build_corpus(documents, tokenize, tokens, length, chunks, seed)


def blocks(corpus: Corpus) -> list[list[int]]:
    return [ids[:length].tolist() for ids, length in zip(corpus.input_ids, corpus.length.tolist(), strict=True)]


@pytest.mark.parametrize(("tokens", "chunks"), [(1, 1), (63, 1), (240, 1), (4, 4), (63, 4), (240, 4)])
def test_budget_is_met_exactly(tokens, chunks):
    corpus = build(tokens, chunks=chunks)
    assert corpus.tokens == tokens == sum(map(len, blocks(corpus)))
    assert corpus.chunks == chunks


def test_block_holds_one_document_from_its_beginning_in_order():
    corpus = build()
    assert corpus.input_ids.shape[1] == 8
    for ids, document in zip(blocks(corpus), corpus.document.tolist(), strict=True):
        assert set(ids) == {document + 1}
    numbered = build_corpus(["a", "bb"], lambda text: list(range(100 * len(text), 100 * len(text) + 20)), 20, 8, 2, 0)
    assert sorted(blocks(numbered)) == [
        [100, 101, 102, 103, 104, 105, 106, 107],
        [108, 109],
        [200, 201, 202, 203, 204, 205, 206, 207],
        [208, 209],
    ]


def test_positions_behind_the_length_are_zero():
    corpus = build()
    behind = torch.arange(8) >= corpus.length[:, None]
    assert behind.any() and not corpus.input_ids[behind].any()
    assert torch.all(corpus.length > 0)


def test_document_lies_in_one_chunk_and_is_drawn_once():
    corpus = build(tokens=240, chunks=4)
    where: dict[int, set[int]] = {}
    for document, chunk in zip(corpus.document.tolist(), corpus.chunk.tolist(), strict=True):
        where.setdefault(document, set()).add(chunk)
    assert all(len(chunks) == 1 for chunks in where.values())
    taken = Counter(dict.fromkeys(where, 0))
    for document, length in zip(corpus.document.tolist(), corpus.length.tolist(), strict=True):
        taken[document] += length
    assert all(count <= LENGTHS[document] for document, count in taken.items())


def test_chunks_are_sorted_and_balanced():
    documents = [" ".join(["1"] * (3 + number % 9)) for number in range(400)]
    corpus = build(tokens=1600, chunks=8, documents=documents)
    assert corpus.chunk.tolist() == sorted(corpus.chunk.tolist())
    sizes = [int(corpus.length[corpus.chunk == chunk].sum()) for chunk in range(8)]
    assert max(sizes) - min(sizes) <= max(3 + number % 9 for number in range(400))


def test_no_document_outweighs_a_chunk():
    documents = [" ".join(["1"] * 10_000), *(" ".join([str(number)] * 30) for number in range(2, 30))]
    corpus = build(tokens=400, chunks=4, documents=documents)
    heaviest = max(int(corpus.length[corpus.document == document].sum()) for document in set(corpus.document.tolist()))
    assert heaviest <= 100


def test_every_document_is_drawn_equally_often():
    documents = [str(number) for number in range(1, 11)]
    drawn = Counter(document for seed in range(400) for document in build(4, 8, 1, seed, documents).document.tolist())
    # 400 draws of 4 of 10: 160 each, with a standard deviation of 9.8
    assert set(drawn) == set(range(10)) and all(abs(count - 160) < 5 * 9.8 for count in drawn.values())


def test_seed_changes_the_sample_and_the_same_seed_gives_the_same_bytes(tmp_path):
    metadata = {"corpus": "c", "seed": "0"}
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        save_corpus(tmp_path / name, build(seed=seed), metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()
    save_corpus(tmp_path / "d", build(), dict(reversed(metadata.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "d").read_bytes()
    loaded = load_corpus(tmp_path / "a")
    assert all(torch.equal(value, getattr(loaded, name)) for name, value in vars(build()).items())


def test_corpus_of_which_the_tokenizer_makes_nothing_is_refused_by_its_name():
    with pytest.raises(BadInput, match=r"makes no tokens of corpus 'corpus' \(2 documents\): give a checkpoint"):
        build_corpus(["a", "b"], lambda text: [], 4, 8, 1, 0)


def test_corpus_too_short_empty_or_of_too_few_documents_is_refused():
    with pytest.raises(BadInput, match=rf"tokens: 9999 tokens wanted, but corpus 'corpus' gives {sum(LENGTHS)} "):
        build(tokens=9999, chunks=1)
    with pytest.raises(BadInput, match="holds no text"):
        build(documents=[])
    with pytest.raises(BadInput, match=r"lower calibrate\.tokens or chunks"):
        build(tokens=100, chunks=4, documents=DOCUMENTS[6:7])  # one document gives at most a chunk


def test_corpus_that_fills_fewer_chunks_than_wanted_is_refused():
    # 3 tokens for 2 chunks, at most 2 of each document: 2 + 1 fill both; 2 tokens of 3 chunks cannot
    assert build(tokens=3, chunks=2, documents=DOCUMENTS[1:4]).chunks == 2
    with pytest.raises(BadInput, match="chunks: 3 chunks wanted, but corpus 'corpus' fills only 2"):
        build(tokens=2, chunks=3, documents=DOCUMENTS[1:4])


# ------------------------------------------------------------------------------------------------- reading files

TEXTS = ["first", "zweitens: größer", "third\nwith two lines"]


def write(folder, kind, texts=TEXTS, field="text"):
    path = folder / f"corpus{kind}"
    if kind == ".txt":
        path.write_text(texts[0], encoding="utf-8")
    elif kind == ".parquet":
        parquet.write_table(pyarrow.table({field: texts, "number": list(range(len(texts)))}), path)
    else:
        lines = "".join(json.dumps({field: text, "title": "t"}, ensure_ascii=False) + "\n" for text in texts)
        data = lines.encode()
        path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".parquet"])
def test_read_files_of_rows_alike_without_empty_documents(tmp_path, kind):
    path = write(tmp_path, kind, ["first", "", *TEXTS[1:], "  \n"])
    assert list(read_documents(path, "text")) == TEXTS


def test_read_text_file_is_one_document(tmp_path):
    assert list(read_documents(write(tmp_path, ".txt", ["one\n\ntwo größer\n"]), "text")) == ["one\n\ntwo größer\n"]
    assert list(read_documents(write(tmp_path, ".txt", [" \n"]), "text")) == []


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".parquet"])
def test_read_wrong_field_is_refused_with_the_nearest(tmp_path, kind):
    with pytest.raises(BadInput, match="field 'txt' is unknown: did you mean 'text'"):
        list(read_documents(write(tmp_path, kind), "txt"))


def test_read_field_that_holds_no_text_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(BadInput, match="line 2: field 'text'"):
        list(read_documents(tmp_path / "a.jsonl", "text"))
    with pytest.raises(BadInput, match="field 'number'"):
        list(read_documents(write(tmp_path, ".parquet"), "number"))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"text": "cut', "not JSON"),
        ('["text"]', "field"),
        ("null", "field"),
        ('{"title": "t"}', "did you mean 'title'"),
    ],
)
def test_read_bad_line_is_refused_by_its_number(tmp_path, line, what):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n\n{line}\n')
    with pytest.raises(BadInput, match=f"line 3.*{what}"):
        list(read_documents(tmp_path / "a.jsonl", "text"))


def test_read_unknown_suffix_or_missing_file_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text\nfine\n")
    with pytest.raises(BadInput, match=r"its kind is unknown: give a \.txt, \.jsonl"):
        list(read_documents(tmp_path / "a.csv", "text"))
    with pytest.raises(BadInput, match="no such file"):
        list(read_documents(tmp_path / "b.txt", "text"))


def test_read_file_that_is_not_what_its_name_says_is_refused(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"not gzip")
    (tmp_path / "b.parquet").write_bytes(b"not parquet")
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"text": "fine"}\n' * 1000)[:-10])
    for name in ("a.jsonl.gz", "b.parquet", "c.txt", "d.jsonl.gz"):
        with pytest.raises(BadInput, match=name):
            list(read_documents(tmp_path / name, "text"))
