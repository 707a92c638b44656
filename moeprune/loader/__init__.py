"""Checkpoints whose layers hold different numbers of experts: told by their config, loaded by the code beside them.

`modeling_moeprune.py` is written beside such a checkpoint. Here the copy in this package is run, never one in a folder:
no leave to run remote code is needed.
"""

import json
from pathlib import Path
from typing import Any

FORMAT = "moeprune-uneven/1"
FILE = Path(__file__).with_name("modeling_moeprune.py")


def is_uneven(source: Path) -> bool:
    """Whether a folder holds such a checkpoint, or a config file is of one."""
    return counts(_content(source)) is not None


def counts(config: Any) -> dict[str, int] | None:
    """Experts by the path of each layer, by a transformers config or a raw one; None if all hold equally many."""
    content = config if isinstance(config, dict) else vars(config)
    found = content.get("moeprune")
    return found["experts"] if isinstance(found, dict) and found.get("format") == FORMAT else None


def stock_config(source: Path) -> Any:
    """Give transformers' own config of such a checkpoint, with the largest number of experts for all layers."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from moeprune.loader.modeling_moeprune import MODEL_TYPE

    content = {key: value for key, value in _content(source).items() if key != "auto_map"}
    content["model_type"] = content["model_type"].removeprefix(MODEL_TYPE)
    return CONFIG_MAPPING[content["model_type"]].from_dict(content)


def model_class(folder: Path) -> Any:
    """The class that loads such a checkpoint."""
    from moeprune.loader import modeling_moeprune

    (name,) = _content(folder)["architectures"]
    return getattr(modeling_moeprune, name)


def _content(source: Path) -> dict[str, Any]:
    path = source if source.is_file() else source / "config.json"
    content: Any = json.loads(path.read_text()) if path.is_file() else {}
    return content if isinstance(content, dict) else {}
