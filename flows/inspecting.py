"""Inspecting a source without downloading its weights."""

from moeprune.configs import read_config
from moeprune.errors import BadInput
from moeprune.inspection import Inspection, inspect
from tasks.download import DownloadParams
from tasks.headers import read_headers


def inspect_source(source: str, revision: str | None = None, trust_remote_code: bool = False) -> Inspection:
    """Inspect a folder, a config file or a repository on the Hub. BadInput for what cannot be inspected."""
    try:
        headers = read_headers(DownloadParams(source=source, revision=revision, trust_remote_code=trust_remote_code))
        config = read_config(headers.config, trust_remote_code)
        return inspect(config, headers.config, headers.tensors, trust_remote_code)
    except BadInput as refusal:  # messages name the keys of a recipe, and there is none here
        line = str(refusal).removeprefix("download.source: ")
        raise BadInput(line.replace("set download.trust_remote_code: true", "give --trust-remote-code")) from refusal
