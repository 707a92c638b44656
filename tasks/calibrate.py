"""calibrate: a corpus source and a tokenizer become blocks of tokens, dealt into chunks."""

import re
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from moeprune.errors import BadInput
from tasks.artifacts import Artifact, Params, Runtime, Step, Store, stage
from tasks.identity import code_digest
from tasks.progress import progress

CODE = ("moeprune.corpus", "moeprune.files")
TOKENS = "tokens.safetensors"
HUB_FILE = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<path>.+)")


class CorpusSource(Params):
    """A named corpus: a .txt, .jsonl, .jsonl.gz, .json.gz or .parquet file, here or in a data set of the Hub."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """A short name for tables and file names."""
    source: str
    """A path, or hf://datasets/owner/name@revision/path/in/repository."""
    field: str = "text"
    """The key of a row that holds a document's text."""


class CalibrateParams(Params):
    """The calibration corpora and how much of each is used."""

    corpora: tuple[CorpusSource, ...] = Field(min_length=1)
    """Each is observed by itself."""
    tokens: int = Field(32768, gt=0)
    """Tokens of each corpus, exactly."""
    sequence_length: int = Field(256, gt=1)
    """Tokens in a block."""
    chunks: int = Field(32, gt=0)
    """Parts that documents are dealt into; a bootstrap resamples them."""
    seed: int = 0
    """Of the drawing of documents."""

    @field_validator("corpora")
    @classmethod
    def _names_differ(cls, corpora: tuple[CorpusSource, ...]) -> tuple[CorpusSource, ...]:
        names = [corpus.name for corpus in corpora]
        if len(set(names)) < len(names):
            raise ValueError(f"two corpora have the same name among {', '.join(names)}: rename one")
        return corpora


def locate(corpus: CorpusSource) -> Path:
    """The corpus' file on this machine; one on the Hub is fetched, or found in its cache.

    Raises BadInput if it is not there or the Hub does not give it out.
    """
    found = HUB_FILE.fullmatch(corpus.source)
    if not found:
        path = Path(corpus.source)
        if not path.is_file():
            raise BadInput(
                f"corpus '{corpus.name}': there is no file {corpus.source}: check the path, or bring "
                "versioned data back with dvc pull"
            )
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(found["repo"], found["path"], repo_type="dataset", revision=found["revision"]))
    except Exception as error:  # the library raises errors of several families; each is told to the user
        raise BadInput(
            f"corpus '{corpus.name}': the Hub does not give out {corpus.source} ({type(error).__name__}): "
            "check its name and the connection"
        ) from error


def step(params: CalibrateParams, corpus: CorpusSource, path: Path, tokenizer: Artifact | None, store: Store) -> Step:
    """`path` is the located source; `tokenizer` the checkpoint seen as its tokenizer."""
    identity = {
        "name": corpus.name,
        "field": corpus.field,
        "source": store.hash_of(path),
        **params.model_dump(exclude={"corpora"}),
    }
    return Step("calibrate", corpus.name, code_digest(CODE), identity, {"download": tokenizer})


@stage(name="calibrate")
def calibrate(
    step: Step, runtime: Runtime, params: CalibrateParams, corpus: CorpusSource, path: Path, trust_remote_code: bool
) -> Artifact:
    """Sample, tokenise, cut and deal out one corpus: tokens.safetensors."""
    store = Store(runtime.store)

    def build(target: Path) -> dict[str, Any]:
        from transformers import AutoTokenizer

        from moeprune.corpus import build_corpus, read_documents
        from moeprune.files import save_corpus

        checkpoint = step.inputs["download"]
        assert checkpoint is not None
        tokenizer = AutoTokenizer.from_pretrained(store.folder(checkpoint), trust_remote_code=trust_remote_code)
        documents = list(read_documents(path, corpus.field))
        with progress(step.title, params.tokens, "tok") as done:
            blocks = build_corpus(
                documents,
                # Not verbose: a document longer than the model's context is cut into blocks anyway.
                lambda text: tokenizer(text, verbose=False).input_ids,
                params.tokens,
                params.sequence_length,
                params.chunks,
                params.seed,
                corpus.name,
                done,
            )
        metadata = {
            "corpus": corpus.name,
            "source_sha256": step.params["source"],
            "tokenizer_sha256": checkpoint.digest,
            "seed": str(params.seed),
        }
        save_corpus(target / TOKENS, blocks, metadata)
        used = len(set(blocks.document.tolist()))
        return {
            "tokens": blocks.tokens,
            "blocks": len(blocks.length),
            "documents": used,
            "of_documents": len(documents),
        }

    return store.produce(step, runtime, build)
