"""metrics.csv, read back with pandas-free means: csv itself."""

from __future__ import annotations

import csv
import errno
import math
import warnings
from pathlib import Path

import pytest
import torch

from anyformer.runs.metrics import CsvMetrics
from anyformer.runs.table import COLUMNS, read_metrics


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics" / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_rows_are_filled_by_step_and_flushed_when_it_changes(tmp_path: Path) -> None:
    log = CsvMetrics(tmp_path)
    log.log_metrics({"train_loss": torch.tensor(2.5), "epoch": 0, "unknown": 1.0}, step=9)
    log.log_metrics({"learning_rate": 1e-3}, step=9)
    assert not (tmp_path / "metrics").exists()
    log.log_metrics({"val_loss": 0.1 + 0.2, "val_perplexity": float("nan"), "epoch": 1}, step=19)
    assert [row["step"] for row in rows(tmp_path)] == ["9"]
    log.finalize("success")
    first, second = rows(tmp_path)
    assert tuple(first) == COLUMNS
    assert first["train_loss"] == "2.5"
    assert first["learning_rate"] == "0.001"
    assert first["epoch"] == "0"
    assert float(first["seconds"]) >= 0
    assert first["val_loss"] == ""
    assert float(second["val_loss"]) == 0.1 + 0.2  # repr: no digit lost
    assert second["val_perplexity"] == "nan"
    assert math.isnan(read_metrics(tmp_path / "metrics/metrics.csv")[1]["val_perplexity"] or 0)


def test_only_an_epoch_makes_no_row(tmp_path: Path) -> None:
    log = CsvMetrics(tmp_path)
    log.log_metrics({"epoch": 1, "other": 2.0}, step=3)
    log.save()
    assert not (tmp_path / "metrics" / "metrics.csv").exists()


def test_resume_drops_rows_beyond_the_checkpoint(tmp_path: Path) -> None:
    log = CsvMetrics(tmp_path)
    for step in (10, 20, 30, 40):
        log.log_metrics({"train_loss": float(step), "seconds": step * 2.0, "epoch": 0}, step=step)
    log.save()
    again = CsvMetrics(tmp_path, resume_from=20)
    assert [row["step"] for row in rows(tmp_path)] == ["10", "20"]
    again.log_metrics({"train_loss": 0.5}, step=30)
    again.save()
    assert [(row["step"], row["train_loss"]) for row in rows(tmp_path)] == [
        ("10", "10.0"),
        ("20", "20.0"),
        ("30", "0.5"),
    ]
    assert float(rows(tmp_path)[-1]["seconds"]) >= 40.0  # time goes on where it stood


def test_a_row_cut_short_by_a_crash_is_no_row(tmp_path: Path) -> None:
    log = CsvMetrics(tmp_path)
    log.log_metrics({"train_loss": 1.0}, step=1)
    log.save()
    file = tmp_path / "metrics" / "metrics.csv"
    with file.open("a") as stream:
        stream.write("2,0,1.0,3.")
    again = CsvMetrics(tmp_path)
    again.log_metrics({"train_loss": 2.0}, step=3)
    again.save()
    assert [row["step"] for row in read_metrics(file)] == [1.0, 3.0]


def test_a_full_disk_warns_once_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = CsvMetrics(tmp_path)
    real = CsvMetrics._append

    def full(self: CsvMetrics, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CsvMetrics, "_append", full)
    log.log_metrics({"train_loss": 1.0}, step=1)
    with pytest.warns(UserWarning, match="No space left on device; training goes on"):
        log.log_metrics({"train_loss": 2.0}, step=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.log_metrics({"train_loss": 3.0}, step=3)
    monkeypatch.setattr(CsvMetrics, "_append", real)
    log.save()
    assert [row["train_loss"] for row in rows(tmp_path)] == ["1.0", "2.0", "3.0"]


def test_missing_file(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none.csv") == []
    assert CsvMetrics(tmp_path, resume_from=5).version == ""
