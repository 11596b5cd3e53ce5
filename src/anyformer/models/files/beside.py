"""Configuration that lies beside a model's file: config.json, else a YAML file; data only, nothing of it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from anyformer.core.errors import ConstructError

_NAMES = ("config.json", "config.yaml", "config.yml", "hparams.yaml", "params.yaml")
"""The first that is there is read."""


def config_beside(path: Path, config: dict[str, Any] | None) -> tuple[dict[str, Any] | None, Path | None]:
    """Values of the configuration beside the file, overridden by ``config``, and the file that they came from.

    Raises ConstructError for a file that is no JSON or YAML, or that holds something other than names with values.
    """
    beside = next((path.parent / name for name in _NAMES if (path.parent / name).is_file()), None)
    if beside is None:
        return config, None
    kind = "JSON" if beside.suffix == ".json" else "YAML"
    try:
        text = beside.read_text(encoding="utf-8-sig")
        values = json.loads(text) if kind == "JSON" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ConstructError(f"{beside} is not {kind}", str(error)) from error
    if values is None and kind == "YAML":  # nothing but comments
        return config, None
    if not isinstance(values, dict):
        example = '{"vocab_size": 4096}' if kind == "JSON" else "vocab_size: 4096"
        expected = "an object" if kind == "JSON" else "names with values"
        raise ConstructError(f"{beside} holds a {type(values).__name__}", f"expected {expected}: {example}")
    return {**{str(k): v for k, v in values.items()}, **(config or {})}, beside
