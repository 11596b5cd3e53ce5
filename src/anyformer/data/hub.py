"""Datasets from the Hugging Face hub, by name and configuration."""

from __future__ import annotations

from typing import Any

from anyformer.core.errors import DataNotFound
from anyformer.core.optional import require


def load_hub_dataset(name: str, config_name: str | None = None, split: str = "train") -> Any:
    """The split of a dataset on the hub (or of its local cache), as a ``datasets.Dataset``.

    Raises DataNotFound where there is no such dataset, configuration or split, or the hub cannot be reached.
    """
    datasets = require("datasets", purpose="reading a dataset from the hub")
    try:
        return datasets.load_dataset(name, config_name, split=split)
    except (OSError, ValueError) as error:  # the library's own errors are subclasses of these two
        which = f"{name!r}" + (f", configuration {config_name!r}" if config_name else "")
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataNotFound(
            f"the dataset {which} cannot be had",
            reason,
            "check the name on the hub and the network, or give a file: dataset_path='corpus.txt'",
        ) from error
