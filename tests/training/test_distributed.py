"""Several processes train one run as one process would; what one of them meets with, all of them end with."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer import api
from anyformer.core.errors import Interrupted, SettingsError, TrainingError
from anyformer.core.settings import TrainSettings
from anyformer.core.view import QuietView
from anyformer.runs.checkpoints import list_checkpoints, read_weights
from anyformer.training.helpers import program
from anyformer.training.places import Place, place_of, require_devices
from anyformer.training.sharing import agreed, from_first, of_all, process_count, shared_loss, stream_seed
from anyformer.training.team import gathered
from tests.training.family_models import MeanClassifier, Translator, labelled, reversed_pairs
from tests.training.processes import free_port, together, torchrun_environment
from tests.training.small_models import Small

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
STEADY: dict[str, Any] = {"schedule": "constant", "warmup_steps": 0}
"""A rate that does not depend on the length of the run."""


class Spoilt(nn.Module):
    """Small, and what a test does to it: it also has a parameter that nothing uses, and a buffer."""

    def __init__(self, dropout: float = 0.0, at: int = 0, act: Callable[[], float | None] = lambda: None) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.inner = Small(dropout=dropout)
        self.spare = nn.Parameter(torch.ones(3))
        self.register_buffer("scale", torch.ones(1))
        self.at, self.act, self.calls = at, act, 0

    def forward(self, tokens: Tensor) -> Tensor:
        factor = None
        if self.training and torch.is_grad_enabled() and process_count() > 1:
            self.calls += 1
            if self.calls == self.at:
                factor = self.act()
        logits: Tensor = self.inner(tokens) * self.scale
        return logits if factor is None else logits * factor


@pytest.fixture
def train(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Train as a script would; returns (results, weights) of this process."""
    monkeypatch.chdir(tmp_path)

    def run(module: nn.Module | None = None, data: Any = None, **settings: Any) -> tuple[dict[str, Any], Any]:
        values: dict[str, Any] = {"max_length": 16, "batch_size": 8, "max_steps": 12, "learning_rate": 1e-2}
        values |= {"precision": "32", "eval_every": 4, "log_every": 1}
        given = None if "resume" in settings else (data or str(corpus))
        torch.manual_seed(5)
        result = api.train(module or Small(dropout=0.0), given, view=QuietView(), **{**values, **settings})
        return result.results, {name: value.clone() for name, value in result.adapter.model.state_dict().items()}

    return run


def table(run: Path, column: str) -> list[float]:
    """A column of the metrics, where it is filled."""
    with (run / "metrics" / "metrics.csv").open() as stream:
        return [float(row[column]) for row in csv.DictReader(stream) if row[column]]


def manifest(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "run.json").read_text())
    return record


def assert_equal_weights(
    first: dict[str, Tensor], second: dict[str, Tensor], atol: float = 0.0, but: str = "!"
) -> None:
    """but: the bias of keys has no gradient but rounding, of which AdamW makes whole steps."""
    assert first.keys() == second.keys()
    for name in (name for name in first if not name.endswith(but)):
        torch.testing.assert_close(first[name], second[name], rtol=0.0, atol=atol, msg=name)


# one run, in one process and in two


@pytest.mark.parametrize(
    "objective",
    [pytest.param("causal", marks=pytest.mark.soak), "seq2seq", pytest.param("classification", marks=pytest.mark.soak)],
)
def test_two_processes_train_as_one(train: Any, tmp_path: Path, objective: str) -> None:
    models: dict[str, Any] = {"causal": Spoilt, "seq2seq": Translator, "classification": MeanClassifier}
    given: dict[str, Any] = {"max_epochs": 2, "max_steps": None, "batch_size": 7, "accumulate_grad_batches": 2}
    data: Any = None
    if objective != "causal":  # padded examples: each process has another number of targets
        given |= {"batch_size": 6, "accumulate_grad_batches": 1, "max_epochs": None, "max_steps": 8}
        data = reversed_pairs() if objective == "seq2seq" else labelled()

    def module() -> nn.Module:
        torch.manual_seed(5)
        return models[objective](dropout=0.0)

    alone = train(module(), data, name="one", **given)
    first, second = together(lambda rank: train(module(), data, name="two", **given))
    assert first[0] == second[0]
    assert_equal_weights(first[1], second[1])
    assert_equal_weights(first[1], alone[1], atol=1e-5, but="in_proj_bias")
    assert first[0]["steps"] == alone[0]["steps"]
    assert first[0]["val_loss"] == pytest.approx(alone[0]["val_loss"], abs=1e-5)
    for column in ("train_loss", "val_loss", "grad_norm"):
        one, two = (table(tmp_path / "runs" / name, column) for name in ("one", "two"))
        assert len(one) > 1
        assert two == pytest.approx(one, abs=1e-5), column
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["one", "two"]
    record = manifest(tmp_path / "runs" / "two")
    assert (record["state"], record["settings"]["devices"]) == ("finished", 2)
    unused = [f["reason"] for f in record["findings"] if f["name"] == "unused parameters"]
    assert [reason.split(":")[0] for reason in unused] == (["spare"] if objective == "causal" else [])


def test_resume_in_one_process_in_two_and_in_one_again(train: Any, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    whole = train(name="whole", **STEADY)
    train(name="run", max_steps=3, **STEADY)
    both = together(lambda rank: train(resume=str(run), max_steps=9, **STEADY))
    assert both[0][0]["steps"] == both[1][0]["steps"] == 9
    last = train(resume=str(run), max_steps=12, devices=1, **STEADY)
    assert_equal_weights(last[1], whole[1], atol=1e-5)
    assert last[0]["val_loss"] == pytest.approx(whole[0]["val_loss"], abs=1e-5)
    losses = table(run, "train_loss")
    assert losses == pytest.approx(table(tmp_path / "runs" / "whole", "train_loss"), abs=1e-5)
    changed = [event.get("changed") for event in manifest(run)["history"] if event["event"] == "resumed"]
    devices = [change for event in changed for change in event if "devices" in change]
    assert devices == ["devices: 2 instead of 1", "devices: 1 instead of 2"]


@pytest.mark.parametrize("told", [pytest.param(0, marks=pytest.mark.soak), 1])
def test_a_signal_to_any_process_saves_and_ends_all_and_they_go_on_exactly(
    train: Any, tmp_path: Path, told: int
) -> None:
    """With dropout: the same number of processes gives the same bits."""

    def act() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def stopped(rank: int) -> Any:
        return train(Spoilt(0.2, at=6 if rank == told else 0, act=act), name="run")

    whole = together(lambda rank: train(Spoilt(0.2), name="whole"))
    first, second = together(stopped)
    assert (type(first), type(second)) == (Interrupted, Interrupted)
    assert first.exit_code == second.exit_code == 143
    run = tmp_path / "runs" / "run"
    assert next(path.name for path in list_checkpoints(run)) == "step-00000006"
    assert manifest(run)["state"] == "interrupted"
    resumed = together(lambda rank: train(Spoilt(0.2), resume=str(run)))
    assert_equal_weights(resumed[0][1], whole[0][1])
    assert_equal_weights(resumed[1][1], whole[0][1])
    masks = [read_weights(tmp_path / "runs" / name / "checkpoints" / "step-00000012") for name in ("run", "whole")]
    assert_equal_weights(*masks)


def test_each_process_has_a_stream_of_dropout_of_its_own() -> None:
    assert stream_seed(42, 0, 0) == 42  # as a run of one process
    assert len({stream_seed(42, step, rank) for step in (0, 5) for rank in range(4)}) == 8


@pytest.mark.soak
@pytest.mark.parametrize("bad", [0, 1])
def test_what_one_process_fails_of_ends_all_with_one_message(train: Any, tmp_path: Path, bad: int) -> None:
    def act() -> None:
        raise ZeroDivisionError("a fault of the model")

    values = together(lambda rank: train(Spoilt(at=6 if rank == bad else 0, act=act), name="run"))
    error = values[0]
    assert "a fault of the model" in str(error)
    if bad:
        assert isinstance(error, TrainingError)
        assert error.what.startswith("process 1 of 2 failed: ZeroDivisionError")
        assert "step-00000004" in error.detail  # what is kept
    assert isinstance(values[1], TrainingError if not bad else ZeroDivisionError)
    record = manifest(tmp_path / "runs" / "run")
    assert record["state"] == "failed"
    assert "a fault of the model" in record["error"]


@pytest.mark.soak
def test_a_process_that_dies_ends_the_others(train: Any, tmp_path: Path) -> None:
    def act() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def alive(rank: int) -> Any:
        if rank == 1:
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
                return "died"
        return train(Spoilt(at=6 if rank == 1 else 0, act=act), name="run")

    error, died = together(alive)
    assert died == "died"
    assert isinstance(error, TrainingError)
    assert error.what == "another process of this run has ended"
    assert manifest(tmp_path / "runs" / "run")["state"] == "failed"


def test_what_the_first_fails_of_before_training_ends_those_who_wait(train: Any) -> None:
    first, second = together(lambda rank: train(data="nothing-there.txt", name="run"))
    assert type(first).__name__ == "DataNotFound"
    assert isinstance(second, TrainingError)
    assert "nothing-there.txt" in str(second)
    assert second.exit_code == 2


@pytest.mark.soak
def test_bad_steps_are_skipped_by_all_and_early_stopping_agrees(train: Any, tmp_path: Path) -> None:
    def module(rank: int) -> nn.Module:
        return Spoilt(at=3 if rank == 1 else 0, act=lambda: torch.nan)

    given = {"bad_steps": "skip", "early_stopping_patience": 1, "learning_rate": 3.0, "eval_every": 2}
    first, second = together(lambda rank: train(module(rank), name="run", max_steps=40, **given))
    assert first[0] == second[0]
    assert first[0]["stopped_early"]
    (file,) = (tmp_path / "runs" / "run" / "bad_batches").iterdir()
    record = json.loads(file.read_text())
    assert record["step"] == 3
    assert len(record["input_ids"]) == 8


# the loss


def _loss(head: nn.Linear, hidden: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(head(hidden).flatten(0, 1), labels.flatten(), label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("counts", [(30, 3), (0, 9), (7, 0)])
def test_the_loss_of_ragged_parts_is_the_mean_over_all_targets(counts: tuple[int, int], smoothing: float) -> None:
    """Counts of targets that differ, and a process without any: gradients are those of one process."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(4, 16, 5, generator=generator)
    labels = torch.full((4, 16), -100)
    for rows, count in zip((labels[:2], labels[2:]), counts, strict=True):
        rows.view(-1)[torch.randperm(32, generator=generator)[:count]] = 1
        rows[rows == 1] = torch.randint(7, (count,), generator=generator)
    torch.manual_seed(2)
    whole = nn.Linear(5, 7)
    expected = _loss(whole, hidden, labels, smoothing)
    expected.backward()  # type: ignore[no-untyped-call]

    def task(rank: int) -> Any:
        os.environ["RANK"] = str(rank)
        dist.init_process_group("gloo")
        torch.manual_seed(2)
        head = nn.Linear(5, 7)
        part = slice(2 * rank, 2 * rank + 2)
        loss, mean = shared_loss(_loss(head, hidden[part], labels[part], smoothing), "masked", {"labels": labels[part]})
        loss.backward()  # type: ignore[no-untyped-call]
        dist.all_reduce(head.weight.grad, dist.ReduceOp.SUM)
        told = agreed(rank * 3), from_first(f"of {rank}"), of_all(rank)
        return float(mean), (head.weight.grad / 2).tolist(), told

    for mean, gradient, told in together(task):
        assert mean == pytest.approx(float(expected), abs=1e-6)
        assert whole.weight.grad is not None
        torch.testing.assert_close(torch.tensor(gradient), whole.weight.grad, rtol=1e-5, atol=1e-7)
        assert told == (3, "of 0", [0, 1])
    means = [_loss(whole, hidden[p], labels[p], smoothing).item() for p in (slice(0, 2), slice(2, 4))]
    assert sum(means) / 2 != pytest.approx(float(expected), abs=1e-4)  # or NaN: what is not done


# who is who


def _settings(**given: Any) -> TrainSettings:
    return TrainSettings(use_gpu=False, **given)


def test_places_by_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_of(_settings(), "") == (Place(), ())
    place, _ = place_of(_settings(devices=3), "anyformer train x")
    assert place.starts
    assert place.size == 3
    assert place.rank == 0
    with monkeypatch.context() as patch:
        for name, value in torchrun_environment(1, 2, 29500).items():
            patch.setenv(name, value)
        place, _ = place_of(_settings(), "")
        assert (place.rank, place.size, place.starts, place.port) == (1, 2, False, 29500)
        with pytest.raises(SettingsError, match="make 3 processes, but torchrun has started 2"):
            place_of(_settings(devices=3), "")
    slurm = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_ID": "7"}
    slurm |= {"SLURM_NODELIST": "alpha[3-4]", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train"}
    with monkeypatch.context() as patch:
        for name, value in slurm.items():
            patch.setenv(name, value)
        assert place_of(_settings(), "")[0] == Place()  # tasks that have nothing to do with each other
        place, _ = place_of(_settings(devices=2, num_nodes=2), "")
        assert (place.rank, place.local_rank, place.node_rank, place.size) == (3, 1, 1, 4)
        assert place.address == "alpha3"
        with pytest.raises(SettingsError, match="SLURM has started 4 tasks"):
            place_of(_settings(devices=2), "")
    with pytest.raises(SettingsError, match="NODE_RANK is not set"):
        place_of(_settings(num_nodes=2), "anyformer train x")


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(SettingsError, match="batch_size is 2, but 3 processes"):
        require_devices(_settings(devices=3, batch_size=2), Place(local_size=3))
    place, (finding,) = place_of(_settings(strategy="ddp"), "")
    assert place.size == 1
    assert finding.measured == "ddp is not used"


def test_in_a_notebook_one_device_is_taken_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    said: list[Any] = []
    view = QuietView()
    monkeypatch.setattr(view, "finding", said.append)
    with gathered(_settings(devices=2), "", view) as (team, settings):
        assert (team.size, settings.devices) == (1, 1)
    (finding,) = said
    assert finding.verdict == "warn"
    assert (finding.measured, finding.expected) == ("1 is used", "2")
    assert "notebook" in finding.reason


def test_the_program_that_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    again = program("anyformer train 'a b.py' --devices 2")
    assert again == [sys.executable, "-m", "anyformer", "train", "a b.py", "--devices", "2"]
    monkeypatch.setattr(sys, "argv", ["script.py", "--x"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert program("") == [sys.executable, str(Path("script.py").resolve()), "--x"]


# real processes


@pytest.fixture
def command(tmp_path: Path, corpus: Path) -> list[str]:
    (tmp_path / "model.py").write_text(Path(sys.modules["tests.training.small_models"].__file__ or "").read_text())
    return [
        *("train", "model.py:Small", "--data", str(corpus), "--max_length", "16", "--batch_size", "8"),
        *("--precision", "32", "--log_every", "10", "--name", "run", "--tokenizer", "char"),
    ]


def started(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for_rows(run: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while not (run / "metrics" / "metrics.csv").is_file():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)


def left_behind(process: subprocess.Popen[str]) -> list[str]:
    """Processes that were started by one that has ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"ANYFORMER_LED_BY={process.pid}".encode() in entry.read_bytes().split(b"\0"):
                found.append(entry.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.soak
def test_the_command_starts_its_processes_and_one_speaks(tmp_path: Path, command: list[str]) -> None:
    arguments = ["-m", "anyformer", *command, "--devices", "2", "--max_steps", "12", "--json"]
    process = started(arguments, tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    record = json.loads(out)  # one object, of one process
    assert record["results"]["steps"] == 12
    kept = manifest(tmp_path / "runs" / "run")["settings"]
    assert (kept["devices"], kept["num_nodes"]) == (2, 1)
    assert err.count("tokenizer  characters") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    assert not left_behind(process)


@pytest.mark.soak
@pytest.mark.parametrize("launcher", ["ours", "torchrun"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_ends_all_in_order(
    tmp_path: Path, command: list[str], launcher: str, number: int
) -> None:
    run = tmp_path / "runs" / "run"
    how = ["-m", "anyformer", *command, "--max_steps", "1000000", "--eval_every", "1000000"]
    if launcher == "torchrun":
        port = ["--nproc_per_node", "2", "--master_port", str(free_port())]
        how = ["-m", "torch.distributed.run", *port, *how]
    else:
        how += ["--devices", "2"]
    process = started(how, tmp_path)
    wait_for_rows(run, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert launcher == "torchrun" or process.returncode == 128 + number, err
    assert process.returncode != 0
    record = manifest(run)
    assert record["state"] == "interrupted", err
    newest = list_checkpoints(run)[0]
    assert f"saved as {newest}" in err.replace(str(tmp_path) + "/", "") or str(newest.relative_to(tmp_path)) in err
    assert err.count("anyformer: stopped at step") == 1
    assert not left_behind(process)


@pytest.mark.soak
def test_a_killed_process_of_a_command_ends_it_with_one_message(tmp_path: Path, command: list[str]) -> None:
    more = ["--devices", "2", "--max_steps", "1000000", "--eval_every", "1000000"]
    process = started(["-m", "anyformer", *command, *more], tmp_path)
    wait_for_rows(tmp_path / "runs" / "run", process)
    (helper,) = left_behind(process)
    os.kill(int(helper), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.count("anyformer: ") == 1
    assert "process 1 of 2 was killed (SIGKILL)" in err
    assert manifest(tmp_path / "runs" / "run")["state"] == "failed"


@pytest.mark.soak
def test_a_killed_first_process_leaves_none_behind(tmp_path: Path, command: list[str]) -> None:
    more = ["--devices", "2", "--max_steps", "1000000", "--eval_every", "1000000"]
    process = started(["-m", "anyformer", *command, *more], tmp_path)
    wait_for_rows(tmp_path / "runs" / "run", process)
    process.kill()
    process.communicate(timeout=60)
    end = time.monotonic() + 60
    while left_behind(process) and time.monotonic() < end:
        time.sleep(0.2)
    assert not left_behind(process)


@pytest.mark.soak
def test_a_script_is_started_again_and_its_end_runs_once(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "small_models.py").write_text(
        Path(sys.modules["tests.training.small_models"].__file__ or "").read_text()
    )
    (tmp_path / "script.py").write_text(
        "import anyformer, torch\nfrom small_models import Small\nprint('begins')\n"
        f"result = anyformer.train(Small(), {str(corpus)!r}, max_length=16, batch_size=8, max_steps=4, devices=2,\n"
        "    precision='32', name='run')\n"
        "print('ends', result.results['steps'])\n"
    )
    process = started(["script.py"], tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.splitlines() == ["begins", "ends 4"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    assert not left_behind(process)
