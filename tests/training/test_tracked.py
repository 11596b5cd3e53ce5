"""Runs that are tracked: every tracker has the rows of metrics.csv, each once, and none of them stops a training."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anyformer.core.errors import DependencyError, Interrupted
from anyformer.runs import tracking
from anyformer.runs.trackers import wandb_records
from anyformer.training.coordinator import TrainResult
from anyformer.training.stopping import StopOnSignal
from tests.training.read_runs import weights
from tests.training.small_models import TINY_FILE, Small, small_text

Fit = Callable[..., TrainResult]
FAKES = str(Path(__file__).parents[1] / "runs" / "fake_trackers.py")
LONG = pytest.mark.soak
ALL: dict[str, Any] = {"tensorboard": True, "wandb": "offline", "mlflow": True}
SOURCE = str(Path(tracking.__file__).parents[2])


class Breaking(Small):
    """Raises, or sends Ctrl-C to its own process, in a training step."""

    def __init__(self, at: int, kind: str) -> None:
        torch.manual_seed(5)
        super().__init__()
        self.left, self.kind, self.armed = at, kind, False

    def forward(self, tokens: Tensor) -> Tensor:
        if self.armed and self.training and torch.is_grad_enabled():
            self.left -= 1
            if self.left == 0 and self.kind == "raise":
                raise RuntimeError("the model broke")
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)
        return super().forward(tokens)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say what stands for each tracker."""

    def put(**kinds: str) -> None:
        words = [f"{name}={kind}" for name, kind in kinds.items()]
        monkeypatch.setattr(tracking, "COMMAND", (sys.executable, FAKES, *words))

    return put


@pytest.fixture(autouse=True)
def _armed_while_training(monkeypatch: pytest.MonkeyPatch) -> None:
    start = StopOnSignal.on_train_start

    def on_train_start(self: StopOnSignal, trainer: Any, pl_module: Any) -> None:
        start(self, trainer, pl_module)
        if isinstance(pl_module.model, Breaking):
            pl_module.model.armed = True

    monkeypatch.setattr(StopOnSignal, "on_train_start", on_train_start)


def table(run: Path) -> dict[int, dict[str, float]]:
    """metrics.csv by step, without what is empty."""
    with (run / "metrics" / "metrics.csv").open() as stream:
        found = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(stream)]
    return {int(row.pop("step")): row for row in found}


def kept(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics" / "keeping.jsonl").read_text().splitlines()]


def test_trackers_that_fail_and_hang_change_nothing_of_a_run(
    fit: Fit, fake: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyformer.training.tracked.WAIT", 1.0)
    plain = fit(name="plain")
    fake(tensorboard="hangs_at_log", wandb="fails_at_start", mlflow="keeping")
    result = fit(name="tracked", **ALL)
    assert weights(result.run_path) == weights(plain.run_path)
    lines = kept(result.run_path)
    assert {line["step"]: line["figures"] for line in lines if "step" in line} == table(result.run_path)
    assert sum("step" in line for line in lines) == 12
    assert lines[0]["about"]["model"] == "Small"
    assert (lines[0]["about"]["batch_size"], lines[0]["about"]["total_steps"]) == (8, 12)
    assert lines[-1]["state"] == "finished"
    assert lines[-1]["figures"]["val_loss"] == result.results["val_loss"]
    record = json.loads((result.run_path / "run.json").read_text())
    assert record["state"] == "finished"
    for findings in (record["findings"], [finding.to_dict() for finding in result.findings]):
        said = {f["name"]: f["measured"] for f in findings if "left behind" in f["reason"]}
        assert len([f for f in findings if "left behind" in f["reason"]]) == 2
        assert said["wandb"] == "ConnectionError: no server at start see the manual"
        assert said["tensorboard"] == "it did not come to its end in time"


@pytest.mark.parametrize(
    ("kind", "at", "state"), [pytest.param("signal", 6, "interrupted", marks=LONG), ("raise", 7, "failed")]
)
def test_a_resumed_run_goes_on_in_its_tracker(
    fit: Fit, fake: Callable[..., None], tmp_path: Path, kind: str, at: int, state: str
) -> None:
    fake(mlflow="keeping")
    with pytest.raises((Interrupted, RuntimeError), match="stopped at step 6" if kind == "signal" else "broke"):
        fit(Breaking(at, kind), mlflow=True)
    run = tmp_path / "runs" / "run"
    before = [line["step"] for line in kept(run) if "step" in line]
    assert before == list(range(1, 7 if kind == "signal" else 6))  # of step 6 an evaluation could still follow
    result = fit(Small(), mlflow=True, resume=str(run))
    lines = kept(run)
    assert [line["step"] for line in lines if "step" in line] == list(range(1, 13))
    assert [line["state"] for line in lines if "state" in line] == [state, "finished"]
    assert [line["resumed_at"] for line in lines if "about" in line] == [None, 6 if kind == "signal" else 4]
    rows = table(result.run_path)
    for line in lines:
        if "step" in line:
            assert line["figures"]["train_loss"] == rows[line["step"]]["train_loss"]


@LONG
def test_a_tracker_that_joins_on_resume_gets_the_rows_from_the_beginning(
    fit: Fit, fake: Callable[..., None], tmp_path: Path
) -> None:
    fake(wandb="keeping")
    run = fit(max_steps=4).run_path
    assert not (run / "metrics" / "keeping.jsonl").exists()
    fit(max_steps=6, wandb="online", resume=str(run))
    lines = [line for line in kept(run) if "step" in line]
    assert {line["step"]: line["figures"] for line in lines} == table(run)
    moments = [line["time"] for line in lines]
    assert moments == sorted(moments)
    assert time.time() - 120 < moments[0] <= moments[-1] <= time.time()


def test_a_missing_package_is_said_before_anything_is_read(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sqlalchemy" else there(name))
    with pytest.raises(DependencyError, match="sqlalchemy is not installed; --mlflow needs it"):
        fit(mlflow=True, data=str(tmp_path / "nothing.txt"))
    assert not (tmp_path / "runs").exists()


# the real libraries, in real processes


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Begin ``anyformer train`` in a process of its own."""
    (tmp_path / "tiny.py").write_text(TINY_FILE)
    (tmp_path / "corpus.txt").write_text(small_text(20_000))
    usual = ["--max_length", "16", "--batch_size", "4", "--precision", "32", "--eval_every", "100"]

    def begin(*words: str, **environment: str) -> subprocess.Popen[str]:
        known = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
        command = [sys.executable, "-m", "anyformer", "train", *words]
        if "--resume" not in words:
            command += ["tiny.py", "--data", "corpus.txt", "--name", "run", *usual]
        paths = {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"}
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=tmp_path, env={**known, **paths, **environment}, **streams)

    return begin


def in_tensorboard(run: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "metrics" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("train_loss")]


def in_wandb(run: Path) -> list[tuple[int, float]]:
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted((run / "metrics" / "wandb").glob("offline-run-*/run-*.wandb")):
        for record in (Record.FromString(data) for data in wandb_records(file)):
            items = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
            if "train_loss" in items:
                found.append((int(items["_step"]), items["train_loss"]))
    return found


def in_mlflow(run: Path) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'metrics' / 'mlflow.db'}")
    (found,) = client.search_runs([client.get_experiment_by_name("anyformer").experiment_id])
    assert found.info.status == "FINISHED"
    return sorted((m.step, m.value) for m in client.get_metric_history(found.info.run_id, "train_loss"))


@LONG
def test_killed_three_times_each_tracker_has_each_row_once(
    train: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    flags = ["--tensorboard", "--wandb", "offline", "--mlflow", "--log_every", "20", "--max_steps", "3000"]
    run = tmp_path / "runs" / "run"
    for number in range(3):
        process = train(*flags, "--resume", str(run)) if number else train(*flags)
        newest = max(table(run), default=0) if number else 0
        end = time.monotonic() + 240
        while not (run / "metrics" / "metrics.csv").exists() or max(table(run), default=0) < newest + 200:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = train("--resume", str(run))  # with other settings the rows beyond its checkpoint would be others
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    expected = [(step, row["train_loss"]) for step, row in sorted(table(run).items()) if "train_loss" in row]
    assert [step for step, _ in expected] == list(range(20, 3001, 20))
    for read in (in_tensorboard, in_wandb, in_mlflow):
        found = read(run)
        assert [step for step, _ in found] == [step for step, _ in expected], read
        assert all(math.isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in zip(found, expected, strict=True)), read


@LONG
def test_wandb_whose_server_never_answers_holds_nothing_up(
    train: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        begin = time.monotonic()
        process = train(
            *("--wandb", "online", "--max_steps", "300", "--max_time", "1h"),
            WANDB_BASE_URL=address,
            WANDB_API_KEY="a" * 40,
        )
        out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    assert "it did not come to its end in time" in out
    assert out.count("left behind") == 1
    assert time.monotonic() - begin < 200
    assert max(table(tmp_path / "runs" / "run")) == 300
