"""What a run has left on the disk, read with other means than the package's own."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

from safetensors.torch import load_file

from anyformer.runs.table import MEASURED


def rows(run: Path) -> list[dict[str, str]]:
    """The rows of its metrics."""
    with (run / "metrics" / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def untimed_rows(run: Path) -> list[dict[str, str]]:
    """Its metrics without what the clock says."""
    return [{key: row[key] for key in row if key not in MEASURED} for row in rows(run)]


def weights(run: Path) -> str:
    """sha256 of the newest checkpoint's name and tensors; the file's header has no fixed order."""
    newest = max((run / "checkpoints").glob("step-????????"))
    digest = hashlib.sha256(newest.name.encode())
    for name, tensor in sorted(load_file(newest / "model.safetensors").items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
