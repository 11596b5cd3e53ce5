"""The rows of metrics.csv; light, so that a report needs no trainer."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

COLUMNS = (
    *("step", "epoch", "seconds", "train_loss", "val_loss", "val_perplexity"),
    *("learning_rate", "grad_norm", "tokens_per_second"),
    *("mfu", "memory_gb", "gpu_memory_gb", "gpu_utilization"),
)
PERFORMANCE = ("tokens_per_second", "mfu", "memory_gb", "gpu_memory_gb", "gpu_utilization")
"""Written by LogRows (training/performance.py), which says what they are."""
MEASURED = ("seconds", *PERFORMANCE)
"""Columns that differ between two runs of the same settings."""
FILE = Path("metrics") / "metrics.csv"


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """Rows of a metrics.csv in the file's order, every column present, None where a row has no value.

    Rows that are cut short or hold no number as their step are skipped; a missing file has no rows.
    """
    if not path.is_file():
        return []
    rows = []
    for record in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8", errors="replace"))):
        values = {name: _number(record.get(name)) for name in COLUMNS}
        # csv gives None, not "", for the columns that a cut row lacks
        if values["step"] is not None and None not in [record.get(name) for name in record if name is not None]:
            rows.append(values)
    return rows


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def cell(name: str, value: float | None) -> str:
    """One value as the file holds it; steps and epochs as whole numbers."""
    if value is None:
        return ""
    return str(int(value)) if name in ("step", "epoch") and value.is_integer() else repr(value)


def line(cells: Sequence[str]) -> str:
    """One row of the file."""
    return ",".join(cells) + "\n"
