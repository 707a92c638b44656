"""What is read of a model before it is downloaded: its config and the headers of its safetensors files."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from moeprune.checkpoint import INDEX, SINGLE, Checkpoint, TensorInfo, open_checkpoint, read_index
from moeprune.errors import BadInput
from tasks.artifacts import Store
from tasks.download import DownloadParams, read_config_folder, resolve
from tasks.hub import Source
from tasks.hub_refusals import refusals

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", INDEX)
"""What the names of files with weights end with, in whatever format."""


@dataclass(frozen=True)
class Headers:
    """A folder with config.json (or a config file), and the tensors of the model's files; None if there are none."""

    config: Path
    tensors: dict[str, TensorInfo] | None


def read_headers(params: DownloadParams) -> Headers:
    """The config and headers of a folder, of a file with a config, or of a repository on the Hub.

    Of a repository only config.json and headers are fetched. Raises BadInput for a source that is not there, one that
    is not whole, and one with weights in another format.
    """
    path = Path(params.source)
    if path.is_file():
        return Headers(path.parent if path.name == "config.json" else path, None)
    with tempfile.TemporaryDirectory() as records:  # which commit was resolved is nothing to remember here
        source = resolve(params, Store(Path(records)))
        if source.folder is None:
            found = headers_on_hub(source)
            return Headers(found.folder, dict(found.tensors))
    if (path / "config.json").is_file() and not any(file.name.endswith(WEIGHTS) for file in path.iterdir()):
        return Headers(path, None)
    return Headers(path, dict(open_checkpoint(path).tensors))


def headers_on_hub(source: Source) -> Checkpoint:
    """A repository's files at a commit by their headers, with the folder that holds its config.json.

    Raises BadInput if it holds no config.json or safetensors files, or an index of them that is none; HubUnavailable if
    the Hub does not give them now.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()
    folder = read_config_folder(source)
    if INDEX in source.files and SINGLE not in source.files:
        read_index(folder / INDEX)  # the library does not look at what it reads
    try:
        with refusals(source.repository, source.commit):
            found = HfApi().get_safetensors_metadata(source.repository, revision=source.commit)
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise BadInput(
            f"{source.repository} at {source.commit} holds no safetensors files that can be read "
            f"({type(error).__name__}): only such checkpoints can be pruned"
        ) from error
    tensors = {
        name: TensorInfo(file, tensor.dtype, tuple(tensor.shape), tensor.data_offsets[1] - tensor.data_offsets[0])
        for file, metadata in sorted(found.files_metadata.items())
        for name, tensor in metadata.tensors.items()
    }
    return Checkpoint(folder, tensors)
