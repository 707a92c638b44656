"""Corpora as blocks of tokens: documents sampled without replacement, cut into blocks, dealt into chunks."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from moeprune.errors import BadInput, known_word

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".json.gz", ".parquet")  # .json.gz: lines, as C4 is published


@dataclass(frozen=True)
class Corpus:
    """Blocks of tokens. A block holds one document or part of one; a document lies in one chunk.

    Positions of a block from `length` on are padding. Blocks are sorted by chunk.
    """

    input_ids: Int32[Tensor, "B T"]
    length: Int32[Tensor, "B"]
    document: Int32[Tensor, "B"]
    chunk: Int32[Tensor, "B"]

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return int(self.chunk.max()) + 1

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.length.sum())

    def batches(self, chunk: int, size: int) -> Iterator[tuple[Int64[Tensor, "b t"], Int64[Tensor, "b t"]]]:
        """(input ids, attention mask) of a chunk's blocks, `size` at a time, cut to the longest of them."""
        rows = (self.chunk == chunk).nonzero().flatten()
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            lengths = self.length[batch].long()
            longest = int(lengths.max())
            mask = (torch.arange(longest) < lengths[:, None]).long()
            yield self.input_ids[batch, :longest].long(), mask


def read_documents(path: Path, field: str) -> Iterator[str]:
    """The documents of a file, in order, without empty ones.

    .txt is one document; .jsonl, .jsonl.gz, .json.gz and .parquet hold one a row, under `field`. Raises BadInput for
    another kind of file, a row that is not JSON, a field that is not there, or a file that is not what its name says.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"corpus {path}: there is no such file: give a {', '.join(SUFFIXES)} file")
    if not path.name.endswith(SUFFIXES):
        raise BadInput(f"corpus {path}: its kind is unknown: give a {', '.join(SUFFIXES)} file")
    try:
        if path.name.endswith(".txt"):
            texts: Iterator[str] = iter([path.read_text(encoding="utf-8")])
        else:
            texts = _parquet(path, field) if path.suffix == ".parquet" else _json_lines(path, field)
        yield from (text for text in texts if text.strip())
    except BadInput:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:  # gzip, UTF-8 and Arrow each have errors of their own
        raise BadInput(f"corpus {path}: it cannot be read ({error}): fetch or write the file again") from error


def _json_lines(path: Path, field: str) -> Iterator[str]:
    opener: Callable[..., object] = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:  # type: ignore[attr-defined]
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise BadInput(f"corpus {path}, line {number}: not JSON ({error.msg}): mend the file") from error
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                names = [key for key, value in row.items() if isinstance(value, str)] if isinstance(row, dict) else []
                raise _no_field(path, field, names, f"line {number}")
            yield row[field]


def _parquet(path: Path, field: str) -> Iterator[str]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        if field not in file.schema_arrow.names:
            raise _no_field(path, field, file.schema_arrow.names, "schema")
        for batch in file.iter_batches(columns=[field]):
            for text in batch.column(0).to_pylist():
                if not isinstance(text, str | None):
                    raise _no_field(path, field, file.schema_arrow.names, "schema")
                yield text or ""


def _no_field(path: Path, field: str, names: Sequence[str], where: str) -> BadInput:
    try:
        known_word(field, names, f"corpus {path}, {where}: field")
    except BadInput as error:
        return error
    return BadInput(f"corpus {path}, {where}: field '{field}' holds no text")


def build_corpus(
    documents: Sequence[str],
    tokenize: Callable[[str], list[int]],
    tokens: int,
    sequence_length: int,
    chunks: int,
    seed: int,
    name: str = "corpus",
    progress: Callable[[int], None] = lambda taken: None,
) -> Corpus:
    """Exactly `tokens` tokens of whole documents, drawn without replacement in an order fixed by `seed`.

    A document gives at most its first ceil(tokens / chunks) tokens, so that no document outweighs a chunk and a
    bootstrap over chunks resamples documents; it is cut into blocks of `sequence_length`. Each document goes to the
    chunk with the fewest tokens so far; the last one is cut to meet the budget. `progress` is told tokens taken.

    Raises BadInput if the corpus is empty, too small for the budget, or has too few documents for the chunks.
    """
    if not documents:
        raise BadInput(f"calibrate.corpora '{name}': the corpus holds no text: give another source")
    most = -(-tokens // chunks)
    filled = [0] * chunks
    rows: list[tuple[int, int, list[int]]] = []
    taken = available = 0
    for document in torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist():
        ids = tokenize(documents[document])
        available += len(ids)
        ids = ids[: min(most, tokens - taken)]
        if not ids:
            continue
        chunk = filled.index(min(filled))
        filled[chunk] += len(ids)
        taken += len(ids)
        rows += [(chunk, document, ids[i : i + sequence_length]) for i in range(0, len(ids), sequence_length)]
        progress(len(ids))
        if taken == tokens:
            break
    if documents and not available:
        raise BadInput(
            f"download.source: its tokenizer makes no tokens of corpus '{name}' ({len(documents)} documents): give a "
            "checkpoint with its tokenizer files"
        )
    if taken < tokens:
        raise BadInput(
            f"calibrate.tokens: {tokens} tokens wanted, but corpus '{name}' gives {taken} ({len(documents)} documents "
            f"of {available} tokens, each at most tokens/chunks = {most}): lower calibrate.tokens or chunks, "
            "or give a larger corpus"
        )
    if not all(filled):
        raise BadInput(
            f"calibrate.chunks: {chunks} chunks wanted, but corpus '{name}' fills only "
            f"{sum(map(bool, filled))}: lower calibrate.chunks"
        )
    rows.sort(key=lambda row: row[0])
    input_ids = torch.zeros(len(rows), sequence_length, dtype=torch.int32)
    for i, (_, _, ids) in enumerate(rows):
        input_ids[i, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
    return Corpus(
        input_ids=input_ids,
        length=torch.tensor([len(ids) for _, _, ids in rows], dtype=torch.int32),
        document=torch.tensor([document for _, document, _ in rows], dtype=torch.int32),
        chunk=torch.tensor([chunk for chunk, _, _ in rows], dtype=torch.int32),
    )
