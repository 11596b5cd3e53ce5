"""The real libraries, offline: what was logged is read back by their own readers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from anyformer.core import optional
from anyformer.core.errors import DependencyError
from anyformer.core.view import QuietView
from anyformer.runs.trackers import PROJECT, About, MLflow, Row, TensorBoard, wandb_records
from anyformer.runs.tracking import Trackers

SETTINGS = {"learning_rate": 0.1, "prompt": None, "data": "corpus.txt"}


def about(folder: Path, resumed_at: int | None = None, **given: Any) -> About:
    return About(str(folder), "run", "abc123", resumed_at, {**SETTINGS, **given}, mode="offline")


def row(step: int, **figures: float) -> Row:
    return Row(step, 1_700_000_000.0 + step, {"seconds": step / 10, "train_loss": 1 / step, **figures})


def scalars(folder: Path, tag: str = "train_loss") -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard(tmp_path: Path) -> None:
    tracker = TensorBoard()
    assert 10 not in tracker.start(about(tmp_path))
    tracker.log([row(10, val_loss=2.5), row(20)])
    tracker.log([row(30, odd=math.nan)])
    tracker.finish("finished", {})
    assert scalars(tmp_path) == [(step, pytest.approx(1 / step)) for step in (10, 20, 30)]
    assert scalars(tmp_path, "val_loss") == [(10, 2.5)]
    assert math.isnan(scalars(tmp_path, "odd")[0][1])


def test_tensorboard_goes_on_and_forgets_what_lies_beyond_the_checkpoint(tmp_path: Path) -> None:
    first = TensorBoard()
    first.start(about(tmp_path))
    first.log([row(step) for step in (10, 20, 30, 40)])  # and then the process was killed
    again = TensorBoard()
    held = again.start(about(tmp_path, resumed_at=20))
    assert [step in held for step in (10, 20, 30, 40)] == [True, True, False, False]
    again.log([Row(30, 1.7e9, {"train_loss": 5.0}), Row(35, 1.7e9, {"train_loss": 6.0})])
    again.finish("finished", {})
    assert scalars(tmp_path) == [(10, pytest.approx(0.1)), (20, pytest.approx(0.05)), (30, 5.0), (35, 6.0)]


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of all parts of a run, in their order, without what W&B adds to them."""
    found = []
    for file in sorted((folder / "wandb").glob("offline-run-*/run-abc123.wandb")):
        for data in wandb_records(file):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
                found.append({"step": record.history.step.num or items["_step"], **items})
    return [{key: value for key, value in row.items() if key[0] != "_"} for row in found]


def wandb_record(folder: Path, kind: str) -> list[Any]:
    files = sorted((folder / "wandb").glob("offline-run-*/run-abc123.wandb"))
    records = [wandb_internal_pb2.Record.FromString(data) for file in files for data in wandb_records(file)]
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def test_wandb_offline_goes_on_under_the_same_id(tmp_path: Path) -> None:
    trackers = Trackers(["wandb"], about(tmp_path), [], QuietView())
    for step in (10, 20, 30):
        trackers.offer(step, {"train_loss": 1 / step})
    trackers.close("failed", {}, 60.0)
    assert not trackers.findings
    assert wandb_rows(tmp_path) == [{"step": step, "train_loss": 1 / step} for step in (10, 20, 30)]
    # 15 it never got; 20 and 30 are done again, the same
    before = [Row(step, 1.7e9, {"train_loss": 1 / step}) for step in (10, 20)]
    trackers = Trackers(["wandb"], about(tmp_path, resumed_at=20, learning_rate=0.2), before, QuietView())
    for step in (30, 40):
        trackers.offer(step, {"train_loss": 1 / step})
    trackers.close("finished", {"val_loss": 0.5}, 60.0)
    assert not trackers.findings
    assert wandb_rows(tmp_path) == [{"step": step, "train_loss": 1 / step} for step in (10, 20, 30, 40)]
    runs = wandb_record(tmp_path, "run")
    assert {(run.run_id, run.project, run.display_name) for run in runs} == {("abc123", PROJECT, "run")}
    config = {update.key: json.loads(update.value_json) for update in runs[-1].config.update}
    assert (config["learning_rate"], config["data"]) == (0.2, "corpus.txt")
    summary = {u.key: u.value_json for s in wandb_record(tmp_path, "summary") for u in s.update}
    assert summary["final_val_loss"] == "0.5"
    assert [record.exit_code for record in wandb_record(tmp_path, "exit")] == [1, 0]


@pytest.mark.soak  # importing MLflow and making its tables takes six seconds
def test_mlflow_in_sqlite_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "metrics"
    folder.mkdir()
    first = MLflow()
    assert 10 not in first.start(about(folder))
    first.log([row(10, val_loss=2.5), row(20)])
    first.log([row(30)])  # killed here
    again = MLflow()
    held = again.start(about(folder, resumed_at=20, learning_rate=0.2))  # a parameter cannot change: it stays
    assert [step in held for step in (10, 20, 30, 40)] == [True, True, True, False]
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(PROJECT)
    (running,) = client.search_runs([experiment.experiment_id])
    assert running.info.status == "RUNNING"
    again.log([row(step) for step in range(40, 240)])  # more than one request takes
    again.finish("finished", {"val_loss": 0.5, "steps": 240.0})
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params == {"learning_rate": "0.1", "prompt": "None", "data": "corpus.txt"}
    found = client.get_metric_history(run.info.run_id, "train_loss")
    assert sorted((m.step, m.value) for m in found) == [(step, 1 / step) for step in (10, 20, 30, *range(40, 240))]
    assert found[0].timestamp == 1_700_000_010_000
    assert run.data.metrics["final_val_loss"] == 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics"]  # no mlruns beside it


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DependencyError, match="no_such_package is not installed; --wandb needs it") as error:
        optional.require_there("no_such_package", "track", "--wandb")
    assert error.value.fix == "pip install 'anyformer[track]'"


def test_the_module_that_trackers_run_in_imports_no_torch() -> None:
    code = "import sys, anyformer.runs.trackers, anyformer.runs.tracking; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
