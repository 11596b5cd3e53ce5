"""The trackers themselves: TensorBoard, Weights & Biases, MLflow behind one small protocol.

Each runs in a process of its own (``python -m anyformer.runs.trackers``), which runs/tracking.py starts, feeds and,
where it fails or hangs, ends: these libraries start threads and processes, wait for networks, and hold up the end of
whatever process they are imported in. Imports no torch.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

from anyformer.core.optional import require

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

PROJECT = "anyformer"
"""W&B's project and MLflow's experiment, where WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME name none."""
_ORPHAN_SECONDS = 30.0
"""How long a tracker may take to put away what it has once the training process is gone."""
_RUN_TAG = "anyformer.run"


class Row(NamedTuple):
    """One row of metrics.csv."""

    step: int
    time: float
    """When it was written, in seconds since 1970."""
    figures: dict[str, float]


@dataclass(frozen=True)
class About:
    """The run that is tracked."""

    folder: str
    """Where a tracker keeps its files: the run's ``metrics``, as a whole path."""
    name: str
    id: str
    """Identity of the run, the same after each resume."""
    resumed_at: int | None
    """The step that it goes on from; None where it begins."""
    settings: dict[str, Any]
    """Settings, and what was derived, as plain values."""
    mode: str = ""
    """Of W&B: online or offline."""
    pid: int = 0
    """The training process."""


class Tracker(Protocol):
    """What takes a run's rows. May raise and may hang: nobody waits for it but its own process."""

    def start(self, about: About) -> Container[int]:
        """Open the run, or go on with it; returns the steps that it holds already."""

    def log(self, rows: list[Row]) -> None:
        """Take rows, each of a later step than the one before, and have them put away."""

    def finish(self, state: str, figures: Mapping[str, float]) -> None:
        """The run ended: finished, paused, interrupted, failed or killed; with its final figures where there are."""


class TensorBoard:
    """Event files in ``metrics/tensorboard``; a resumed run writes one more."""

    def start(self, about: About) -> Container[int]:
        accumulator = require("tensorboard.backend.event_processing.event_accumulator", "track")
        files = require("tensorboard.summary.writer.event_file_writer", "track")
        folder = Path(about.folder) / "tensorboard"
        held: set[int] = set()
        if about.resumed_at is not None and folder.is_dir():
            before = accumulator.EventAccumulator(str(folder), size_guidance={accumulator.SCALARS: 0})
            before.Reload()
            held = {event.step for tag in before.Tags()["scalars"] for event in before.Scalars(tag)}
        self._protos = require("tensorboard.compat.proto.event_pb2"), require("tensorboard.compat.proto.summary_pb2")
        self._writer = files.EventFileWriter(str(folder))
        if about.resumed_at is not None and max(held, default=0) > about.resumed_at:
            events = self._protos[0]  # readers forget what was written from this step on (TensorBoard's own way)
            started = events.SessionLog(status=events.SessionLog.START)
            self._writer.add_event(events.Event(wall_time=time.time(), step=about.resumed_at + 1, session_log=started))
            held = {step for step in held if step <= about.resumed_at}
        return held

    def log(self, rows: list[Row]) -> None:
        events, summaries = self._protos
        for row in rows:
            values = [summaries.Summary.Value(tag=tag, simple_value=value) for tag, value in row.figures.items()]
            summary = summaries.Summary(value=values)
            self._writer.add_event(events.Event(wall_time=row.time, step=row.step, summary=summary))
        self._writer.flush()

    def finish(self, state: str, figures: Mapping[str, float]) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of W&B under the run's own identity, so that resuming goes on with it.

    It takes rows in the order of their steps alone: those that a killed run wrote beyond its checkpoint stay.
    Offline, each part of the run is a folder in ``metrics/wandb``; ``wandb sync`` joins them.
    """

    def start(self, about: About) -> Container[int]:
        offline = about.mode == "offline"
        if offline:
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # that would ask the network
        wandb = require("wandb", "track")
        held = range(0)
        if offline and about.resumed_at is not None:
            held = range(max(offline_steps(Path(about.folder) / "wandb", about.id), default=-1) + 1)
        self._run = wandb.init(
            mode=about.mode,
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=about.id,
            name=about.name,
            dir=about.folder,
            resume="allow",
            config=about.settings,
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True, x_stats_pid=about.pid or os.getpid()),
        )
        if not offline and self._run.resumed:
            held = range(self._run.starting_step)
        return held

    def log(self, rows: list[Row]) -> None:
        for row in rows:
            self._run.log(row.figures, step=row.step)

    def finish(self, state: str, figures: Mapping[str, float]) -> None:
        self._run.summary.update({f"final_{name}": value for name, value in figures.items()})
        self._run.finish(exit_code=0 if state in ("finished", "paused") else 1)


class MLflow:
    """A run in ``metrics/mlflow.db`` (SQLite), or where MLFLOW_TRACKING_URI says; found again by a tag.

    What it has been given stays, so rows that a killed run wrote beyond its checkpoint are not given again.
    """

    def start(self, about: About) -> Container[int]:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        mlflow = require("mlflow", "track")
        self._entities = require("mlflow.entities", "track")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = mlflow.MlflowClient(uri or f"sqlite:///{Path(about.folder) / 'mlflow.db'}")
        files = None if uri else (Path(about.folder) / "mlflow").as_uri()  # else ./mlruns, wherever one is
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT, files)
        found = self._client.search_runs([experiment], f"tags.`{_RUN_TAG}` = '{about.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return {metric.step for metric in self._client.get_metric_history(self._id, "seconds")}
        self._id = self._client.create_run(experiment, tags={_RUN_TAG: about.id}, run_name=about.name).info.run_id
        given = [self._entities.Param(name, str(value)[:500]) for name, value in about.settings.items()]
        for first in range(0, len(given), 100):  # as many as one request takes
            self._client.log_batch(self._id, params=given[first : first + 100])
        return ()

    def _experiment(self, name: str, files: str | None) -> str:
        known = self._client.get_experiment_by_name(name)
        return str(known.experiment_id if known is not None else self._client.create_experiment(name, files))

    def log(self, rows: list[Row]) -> None:
        metrics = [
            self._entities.Metric(name, value, int(row.time * 1000), row.step)
            for row in rows
            for name, value in row.figures.items()
        ]
        for first in range(0, len(metrics), 1000):  # as many as one request takes
            self._client.log_batch(self._id, metrics=metrics[first : first + 1000])

    def finish(self, state: str, figures: Mapping[str, float]) -> None:
        if figures:
            self.log([Row(int(figures.get("steps", 0)), time.time(), {f"final_{n}": v for n, v in figures.items()})])
        status = {"finished": "FINISHED", "failed": "FAILED"}.get(state, "KILLED")
        self._client.set_terminated(self._id, status)


TRACKERS: dict[str, Callable[[], Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def offline_steps(folder: Path, run_id: str) -> list[int]:
    """Steps of the rows that W&B holds of a run in its offline folders."""
    proto = require("wandb.proto.wandb_internal_pb2", "track")
    steps = []
    for file in sorted(folder.glob(f"offline-run-*-{run_id}/run-{run_id}.wandb")):
        for data in wandb_records(file):
            record = proto.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                steps.append(int(record.history.step.num))
    return steps


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file, up to where it is cut.

    It is a log as LevelDB writes it (github.com/google/leveldb, doc/log_format.md) after 7 bytes of its own: blocks of
    32 KiB; chunks of a checksum (4 bytes), a length (2), a kind (1: whole, 2: first, 3: middle, 4: last) and the data.
    """
    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left  # too little for a chunk's head
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        chunk = data[place + 7 : place + 7 + length]
        if kind not in (1, 2, 3, 4) or len(chunk) < length:
            return
        parts = chunk if kind in (1, 2) else parts + chunk
        if kind in (1, 4):
            yield parts
        place += 7 + length


def serve(trackers: Mapping[str, Callable[[], Tracker]]) -> int:
    """Answer the training process: one JSON object a line in, one out. Returns the exit code."""
    jobs, answers = _own_streams()
    parent = os.getppid()
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    try:
        first = json.loads(jobs.readline())
        about = About(**first["about"])
        with _alone(Path(about.folder), first["tracker"]):
            tracker = trackers[first["tracker"]]()
            held = tracker.start(about)
            _take(tracker, first["rows"], held)
            _answer(answers, {})
            for line in jobs:
                job = json.loads(line)
                if "rows" in job:
                    _take(tracker, job["rows"], held)
                else:
                    tracker.finish(job["state"], job["figures"])
                _answer(answers, {})
                if "state" in job:
                    return 0
            tracker.finish("killed", {})  # nobody is there any more
    except BaseException as error:  # noqa: BLE001 - whatever it is, the training process is told
        text = " ".join(str(error).split())[:300]
        _answer(answers, {"problem": f"{type(error).__name__}: {text}" if text else type(error).__name__})
        return 1
    return 0


def _take(tracker: Tracker, rows: list[list[Any]], held: Container[int]) -> None:
    wanted = [Row(*row) for row in rows if row[0] not in held]
    if wanted:
        tracker.log(wanted)


def _own_streams() -> tuple[TextIO, TextIO]:
    """Our way in and out, kept from the libraries, which print what they like, and from the processes they start."""
    jobs = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nothing, stream)
    return jobs, answers


def _answer(answers: TextIO, answer: dict[str, Any]) -> None:
    try:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    except OSError:  # the training process is gone; what is here is put away all the same
        return


def _end_after(parent: int) -> None:
    """End this process, whatever it hangs in, some time after the training process did."""
    while os.getppid() == parent:
        time.sleep(1)
    time.sleep(_ORPHAN_SECONDS)
    os._exit(1)


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Wait for the tracker of a killed run, which may still be putting away its last rows."""
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    with (folder / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(serve(TRACKERS))
