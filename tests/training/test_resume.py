"""Interrupted anywhere, a run ends with the weights of one that never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import anyformer
from anyformer import cli
from anyformer.core.errors import CorruptCheckpoint, DataError, Interrupted, SettingsError
from anyformer.core.settings import TrainSettings
from anyformer.core.view import QuietView
from anyformer.runs.checkpoints import list_checkpoints
from anyformer.training import fusedhead
from anyformer.training.coordinator import TrainResult
from anyformer.training.resume import CHANGEABLE, UNCHANGEABLE
from anyformer.training.saving import RunCheckpoint
from anyformer.training.stopping import StopOnSignal
from tests.training.read_runs import rows, untimed_rows, weights
from tests.training.small_models import TINY_FILE, Small, small_text

Fit = Callable[..., TrainResult]
STEPS = 46  # batches of 8 of about 40 in an epoch: the second epoch is under way


class Interrupting(Small):
    """Sends Ctrl-C to its own process in a training step, and notes which batches it saw."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.at = at
        self.seen: list[str] = []
        self.armed = False

    def forward(self, tokens: Tensor) -> Tensor:
        if self.armed and self.training and torch.is_grad_enabled():  # others are proofs
            self.seen.append(str(tokens.tolist()))
            if len(self.seen) == self.at:
                os.kill(os.getpid(), signal.SIGINT)
        return super().forward(tokens)


@pytest.fixture(autouse=True)
def _armed_while_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probing before a run calls the model too; only steps of the run count."""
    start = StopOnSignal.on_train_start

    def on_train_start(self: StopOnSignal, trainer: Any, pl_module: Any) -> None:
        start(self, trainer, pl_module)
        if isinstance(pl_module.model, Interrupting):
            pl_module.model.armed = True

    monkeypatch.setattr(StopOnSignal, "on_train_start", on_train_start)


def module(at: int | None = None, seed: int = 5) -> Interrupting:
    torch.manual_seed(seed)
    return Interrupting(at)


@pytest.mark.parametrize(
    ("stops", "accumulate", "workers"),
    [
        pytest.param([3], 1, 0, marks=pytest.mark.soak),
        ([43], 1, 0),  # in the second epoch
        ([8], 1, 0),  # the step of an evaluation
        pytest.param([5, 37], 1, 0, marks=pytest.mark.soak),
        ([7], 2, 0),  # in the first half of an accumulated step
        pytest.param([60], 2, 0, marks=pytest.mark.soak),
        pytest.param([42], 1, 0, marks=pytest.mark.soak),
        ([42], 1, 2),
        pytest.param([41], 1, 2, marks=pytest.mark.soak),
    ],
)
def test_an_interrupted_run_ends_as_if_it_never_stopped(
    fit: Fit, tmp_path: Path, stops: list[int], accumulate: int, workers: int
) -> None:
    settings: dict[str, Any] = {
        "max_steps": STEPS,
        "accumulate_grad_batches": accumulate,
        "eval_every": 4,
        "log_every": 3,
    }
    whole = module()
    unbroken = fit(whole, name="unbroken", **settings)
    settings["num_workers"] = workers
    seen: list[str] = []
    run = tmp_path / "runs" / "run"
    at, resume = 0, None
    for stop in stops:
        part = module(stop - at, seed=5 if resume is None else 99)
        with pytest.raises(Interrupted, match=r"anyformer train --resume .*run") as caught:
            fit(part, resume=resume, **settings)
        assert caught.value.exit_code == 130
        assert "saved as" in caught.value.detail
        manifest = json.loads((run / "run.json").read_text())
        assert manifest["state"] == "interrupted"
        seen, at, resume = seen + part.seen, stop, str(run)
        at = len(seen)
    part = module(seed=99)  # other first weights: they must come from the checkpoint
    result = fit(part, resume=resume, **settings)
    assert seen + part.seen == whole.seen  # nothing twice, nothing left out
    assert weights(result.run_path) == weights(unbroken.run_path)
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    steps = [row["step"] for row in rows(run)]
    assert steps == sorted(set(steps), key=int)
    assert untimed_rows(run) == untimed_rows(unbroken.run_path)
    assert result.results["val_loss"] == unbroken.results["val_loss"]
    assert result.results["best_checkpoint"] == unbroken.results["best_checkpoint"]
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert kept == {path.name for path in (unbroken.run_path / "checkpoints").iterdir()}


def test_a_run_with_head_and_loss_in_one_goes_on_in_that_way(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusedhead, "FUSE_FROM", 0)
    unbroken = fit(module(), name="unbroken", max_steps=12, eval_every=4)
    fused = [finding for finding in unbroken.findings if finding.name == "fused head"]
    assert [finding.verdict for finding in fused] == ["ok"]
    with pytest.raises(Interrupted):
        fit(module(9), max_steps=12, eval_every=4)
    run = tmp_path / "runs" / "run"
    monkeypatch.setattr(fusedhead, "FUSE_FROM", 1 << 40)  # the run, not its settings, says how it goes on
    result = fit(module(seed=99), resume=str(run), max_steps=12, eval_every=4)
    assert weights(result.run_path) == weights(unbroken.run_path)
    assert result.results["val_loss"] == unbroken.results["val_loss"]
    manifest = json.loads((run / "run.json").read_text())
    assert [f["reason"] for f in manifest["findings"] if f["name"] == "fused head"] == ["as the run began"]


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        ("adamw", "wsd"),
        ("sgd", "linear"),
        ("adafactor", "constant"),
        pytest.param("adafactor", "wsd", marks=pytest.mark.soak),
    ],
)
def test_every_optimizer_and_schedule_goes_on_exactly(fit: Fit, tmp_path: Path, optimizer: str, schedule: str) -> None:
    settings: dict[str, Any] = {"optimizer": optimizer, "schedule": schedule, "learning_rate": None, "max_steps": 14}
    whole = fit(module(), name="unbroken", **settings)
    resume = None
    for at in (2, 10):  # inside the warm-up, and (of wsd) not before the decay
        with pytest.raises(Interrupted):
            fit(module(at, seed=5 if resume is None else 99), resume=resume, **settings)
        resume = str(tmp_path / "runs" / "run")
    result = fit(module(seed=99), resume=resume, **settings)
    assert weights(result.run_path) == weights(whole.run_path)
    assert untimed_rows(result.run_path) == untimed_rows(whole.run_path)


def test_ctrl_c_before_the_first_step_leaves_at_once(fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "anyformer.training.samples.SampleWriter.__call__", lambda self, step: os.kill(os.getpid(), signal.SIGINT)
    )
    with pytest.raises(Interrupted, match="stopped at step 0 of 12") as caught:
        fit()
    assert "nothing to resume" in caught.value.detail
    assert "--resume" not in caught.value.fix
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_leaves_without_saving(fit: Fit, tmp_path: Path) -> None:
    class Twice(Interrupting):
        def forward(self, tokens: Tensor) -> Tensor:
            out = super().forward(tokens)
            if self.armed and self.training and len(self.seen) == self.at:
                until = time.monotonic() + 60
                while not list_checkpoints(tmp_path / "runs" / "run") and time.monotonic() < until:
                    time.sleep(0.05)  # of step 4, which is written beside the training: at once leaves that, too
                os.kill(os.getpid(), signal.SIGINT)
            return out

    torch.manual_seed(5)
    with pytest.raises(Interrupted, match="stopped at step 5 of 12") as caught:
        fit(Twice(6))
    assert "this step is not saved; the newest checkpoint is of step 4" in caught.value.detail
    fit(module(), resume=str(tmp_path / "runs" / "run"))


def test_ctrl_c_while_measuring_after_the_last_step_loses_nothing(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopped(*args: Any, **keywords: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("anyformer.training.measure.score_tokens", stopped)
        with pytest.raises(Interrupted, match="stopped at step 12 of 12"):
            fit()
    result = fit(resume=str(tmp_path / "runs" / "run"))
    assert result.results["steps"] == 12
    assert result.results["tokens_per_second"] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_measuring_leaves_at_once_and_in_order(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    def swallowing(*args: Any, **keywords: Any) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except Exception:  # noqa: BLE001 (as a model's own code may do)
            pytest.fail("held back")

    monkeypatch.setattr("anyformer.training.measure.score_tokens", swallowing)
    with pytest.raises(Interrupted, match="stopped at step 12 of 12") as caught:
        fit()
    assert caught.value.exit_code == 128 + number
    assert json.loads((tmp_path / "runs/run/run.json").read_text())["state"] == "interrupted"


def test_leftovers_of_a_kill_are_gone_after_resuming(fit: Fit, stopped: Path) -> None:
    half = stopped / "checkpoints" / ".step-00000008.abcd0123.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (stopped / ".run.json.abcd0123.tmp").write_text("{")
    fit(resume=str(stopped))
    assert not half.exists()
    assert not list(stopped.glob(".*.tmp"))


def test_another_runs_checkpoint_is_not_gone_on_from(fit: Fit, stopped: Path) -> None:
    other = fit(module(seed=8), name="other", max_steps=6)
    for file in (other.run_path / "checkpoints" / "step-00000006").iterdir():
        (stopped / "checkpoints" / "step-00000006" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CorruptCheckpoint, match="step-00000006 is another run's"):
        fit(resume=str(stopped / "checkpoints" / "step-00000006"))
    result = fit(resume=str(stopped))
    assert any("step-00000006 is another run's" in str(finding.measured) for finding in result.findings)
    assert weights(result.run_path) == weights(fit(module(), name="unbroken").run_path)


@pytest.fixture
def stopped(fit: Fit, tmp_path: Path) -> Path:
    with pytest.raises(Interrupted):
        fit(module(6))
    return tmp_path / "runs" / "run"


@pytest.mark.parametrize(
    ("setting", "value", "before"),
    [
        ("batch_size", 4, 8),
        ("accumulate_grad_batches", 2, 1),
        ("seed", 1, 42),
        ("val_split", 0.2, 0.1),
        ("optimizer", "sgd", "adamw"),
    ],
)
def test_another_order_of_the_data_is_refused_by_name(
    fit: Fit, stopped: Path, setting: str, value: Any, before: Any
) -> None:
    manifest = (stopped / "run.json").read_text()
    with pytest.raises(SettingsError, match=f"{setting} is {value}, but the run .* was started with {before}"):
        fit(resume=str(stopped), **{setting: value})
    with pytest.raises(SettingsError, match="max_length is 12"):
        fit(resume=str(stopped), max_length=12)
    assert (stopped / "run.json").read_text() == manifest


def test_every_setting_may_change_on_resume_or_may_not() -> None:
    own = {"name", "output_dir", "resume", "max_length"}  # a run keeps its own; max_length as derived
    assert sorted({*UNCHANGEABLE, *CHANGEABLE, *own}) == sorted(field.name for field in fields(TrainSettings))
    assert not {*UNCHANGEABLE} & {*CHANGEABLE}


def test_changed_settings_hold_from_there_on_and_are_said(fit: Fit, stopped: Path) -> None:
    result = fit(
        resume=str(stopped), learning_rate=3e-3, schedule="linear", min_lr_ratio=0.5, weight_decay=0.7, beta1=0.6,
        beta2=0.8, warmup_steps=0, early_stopping_patience=9, log_every=1,
    )  # fmt: skip
    rates = {int(row["step"]): float(row["learning_rate"]) for row in rows(stopped)}
    line = [3e-3 * (1 - 0.5 * step / 12) for step in range(13)]
    # a row holds the rate of the next update
    assert [rates[step] for step in range(7, 13)] == pytest.approx(line[7:13])
    matrices, vectors = result.trainer.optimizers[0].param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.7, 0.0)
    assert matrices["betas"] == vectors["betas"] == (0.6, 0.8)
    said = {finding.name: finding.measured for finding in result.findings if finding.reason == "changed on resume"}
    assert said == {
        "learning_rate": "0.003 instead of 0.01",
        "schedule": "linear instead of cosine",
        "min_lr_ratio": "0.5 instead of 0.1",
        "weight_decay": "0.7 instead of derived",
        "beta1": "0.6 instead of 0.9",
        "beta2": "0.8 instead of 0.95",
        "warmup_steps": "0 instead of derived",
        "early_stopping_patience": "9 instead of derived",
    }


def test_a_changed_patience_holds_on_resume(fit: Fit, tmp_path: Path) -> None:
    fit(module(), early_stopping_patience=5)
    result = fit(resume=str(tmp_path / "runs" / "run"), early_stopping_patience=7, max_steps=13)
    assert result.trainer.early_stopping_callback.patience == 7


def test_a_text_that_has_changed_is_refused(fit: Fit, stopped: Path, corpus: Path) -> None:
    corpus.write_text(small_text().replace("cat", "dog"), encoding="utf-8")
    with pytest.raises(DataError, match=r"corpus\.txt has changed since"):
        fit(resume=str(stopped))


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(fit: Fit, stopped: Path) -> None:
    file = stopped / "checkpoints" / "step-00000006" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    result = fit(resume=str(stopped))
    (said,) = [finding for finding in result.findings if finding.verdict == "warn" and finding.name == "checkpoint"]
    assert "step-00000006 is damaged" in said.measured
    assert "step-00000006.damaged" in said.reason
    assert (stopped / "checkpoints" / "step-00000006.damaged").is_dir()
    unbroken = fit(module(), name="unbroken")
    assert weights(result.run_path) == weights(unbroken.run_path)


def test_killed_between_its_last_save_and_the_removal_of_an_older_one(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to train then: the older one goes all the same."""
    with monkeypatch.context() as killed:
        killed.setattr(RunCheckpoint, "_remove_checkpoint", lambda *args: None)
        run = fit(save_top_k=1).run_path
    assert len(list_checkpoints(run)) == 3
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**manifest, "state": "running"}))
    fit(save_top_k=1, resume=str(run))
    assert [path.name for path in list_checkpoints(run)] == ["step-00000012", "step-00000008"]


def test_resuming_an_older_checkpoint_sets_the_later_ones_aside(fit: Fit, stopped: Path) -> None:
    result = fit(resume=str(stopped / "checkpoints" / "step-00000004"))
    assert any("step-00000006.before-resume" in finding.reason for finding in result.findings)
    kept = {path.name for path in (stopped / "checkpoints").iterdir()}
    assert kept == {"step-00000004", "step-00000008", "step-00000012", "step-00000006.before-resume"}
    assert weights(result.run_path) == weights(fit(module(), name="unbroken").run_path)
    steps = [json.loads(line)["step"] for line in (stopped / "samples.jsonl").read_text().splitlines()]
    assert {step: steps.count(step) for step in set(steps)} == {0: 3, 6: 3, 12: 3}


def test_a_damaged_best_checkpoint_gives_way_at_the_end(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anyformer.training import ending

    plain = ending._restore_best

    def damaged(fit_: Any, *args: Any) -> Any:
        best = fit_.checkpoint.best_k_models
        low = float(min(best.values()))
        for number, path in enumerate(sorted(best)):  # as if the first had been the best
            best[path] = torch.tensor(low - 1 + 0.1 * number)
        (Path(min(best)) / "model.safetensors").write_bytes(b"")
        return plain(fit_, *args)

    monkeypatch.setattr(ending, "_restore_best", damaged)
    result = fit()
    assert any("damaged" in finding.measured for finding in result.findings)
    assert result.results["best_checkpoint"] == "checkpoints/step-00000008"
    assert any(finding.measured == "of step 8" for finding in result.findings)


def test_a_finished_run_says_how_to_train_on_and_does(fit: Fit, tmp_path: Path) -> None:
    first = fit()
    with pytest.raises(SettingsError, match="finished at step 12") as caught:
        fit(resume=str(first.run_path))
    assert caught.value.fix == f"to train on: anyformer train --resume {first.run_path} --max_steps 24"
    assert json.loads((first.run_path / "run.json").read_text())["state"] == "finished"
    result = fit(resume=str(first.run_path), max_steps=20)
    assert result.results["steps"] == 20
    assert any("20 steps instead of 12" in finding.measured for finding in result.findings)
    assert [int(row["step"]) for row in rows(first.run_path)] == list(range(1, 21))
    with pytest.raises(SettingsError, match="finished at step 20, beyond the 12 steps"):
        fit(resume=str(first.run_path), max_steps=12)


def test_a_run_that_was_moved_keeps_its_best_checkpoints(fit: Fit, stopped: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    stopped.rename(elsewhere)
    result = fit(resume=str(elsewhere))
    unbroken = fit(module(), name="unbroken")
    kept = sorted(path.name for path in (elsewhere / "checkpoints").iterdir())
    assert kept == sorted(path.name for path in (unbroken.run_path / "checkpoints").iterdir())
    assert result.run_path == elsewhere


def test_a_run_of_relative_paths_is_used_from_another_folder(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.py").write_text(TINY_FILE)
    (tmp_path / "pages").mkdir()
    (tmp_path / "corpus.txt").rename(tmp_path / "pages" / "a.txt")
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"data": "pages/*.txt", "max_length": 16, "precision": "32", "view": QuietView()}
    first = anyformer.train("tiny.py", name="run", max_steps=8, batch_size=8, output_dir="runs", **given)
    (tmp_path / "away" / "pages").mkdir(parents=True)
    (tmp_path / "away" / "pages" / "a.txt").write_text("another text of the same name")
    monkeypatch.chdir(tmp_path / "away")
    assert anyformer.evaluate("../runs/run").loss == pytest.approx(first.results["val_loss"], rel=1e-6)
    assert anyformer.reproduce("../runs/run", view=QuietView()).reproduced
    assert cli.main(["train", "--resume", "../runs/run", "--max_steps", "10", "--quiet"]) == 0
    assert yaml.safe_load(Path("../runs/run/settings.yaml").read_text())["data"] == str(tmp_path / "pages" / "*.txt")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--resume", "runs/run", "--data", "pages/*.txt", "--max_steps", "12", "--quiet"]) == 0
    assert cli.main(["train", "--resume", "runs/run", "--data", "away/pages/*.txt", "--max_steps", "14"]) == 2
    assert rows(tmp_path / "runs" / "run")[-1]["step"] == "12"


def test_the_precision_measured_at_the_start_is_kept(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anyformer.training import coordinator

    with pytest.raises(Interrupted):
        fit(module(6), precision="auto")
    monkeypatch.setattr(coordinator, "choose_precision", lambda *args: pytest.fail("measured anew"))
    run = tmp_path / "runs" / "run"
    before = json.loads((run / "run.json").read_text())["effective"]["precision"]
    fit(precision="auto", resume=str(run))
    assert json.loads((run / "run.json").read_text())["effective"]["precision"] == before


SLEEP = 'time.sleep(float(os.environ.get("SLOW", 0)))'
MODEL = "import os, time" + TINY_FILE.replace("Tiny", "Slow").replace(
    "        return", f"        {SLEEP}\n        return"
)


@pytest.mark.soak  # make test has tests/faults/test_kills.py and test_true_records.py, which do the same in less time
def test_ctrl_c_at_a_real_process_then_resume_gives_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("slow.py").write_text(MODEL)
    Path("text.txt").write_text(small_text())
    flags = ["--data", "text.txt", "--max_steps", "60", "--batch_size", "8", "--max_length", "16"]
    flags += ["--precision", "32", "--log_every", "1"]
    metrics = Path("runs/a/metrics/metrics.csv")
    process = subprocess.Popen(
        [sys.executable, "-m", "anyformer", "train", "slow.py", *flags, "--name", "a"],
        env={**os.environ, "SLOW": "0.05"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (metrics.is_file() and metrics.read_text().count("\n") > 4):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "anyformer: stopped at step" in said
    assert said.endswith("  → anyformer train --resume runs/a\n")
    assert "Traceback" not in said
    assert cli.main(["train", "--resume", "runs/a"]) == 0
    assert cli.main(["train", "slow.py", *flags, "--name", "b"]) == 0
    assert weights(Path("runs/a")) == weights(Path("runs/b"))
    assert [row["step"] for row in rows(Path("runs/a"))] == [str(step) for step in range(1, 61)]
