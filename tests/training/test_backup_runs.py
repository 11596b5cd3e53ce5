"""``--backup`` and ``--resume auto``: a run that lost its machine ends like one that never stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from anyformer import api, cli
from anyformer.core.errors import CheckpointError, CorruptCheckpoint, DependencyError, Interrupted, SettingsError
from anyformer.core.view import QuietView
from anyformer.training import coordinator
from anyformer.training.coordinator import TrainResult
from anyformer.training.stopping import StopOnSignal
from tests.training.read_runs import untimed_rows, weights
from tests.training.small_models import Small

SETTINGS: dict[str, Any] = {
    "max_length": 16,
    "batch_size": 8,
    "max_steps": 14,
    "learning_rate": 1e-2,
    "precision": "32",
    "eval_every": 4,
    "log_every": 1,
    "save_top_k": 1,
}


class Said(QuietView):
    def __init__(self) -> None:
        self.text = ""

    def line(self, text: str = "") -> None:
        self.text += text + "\n"

    def finding(self, finding: Any) -> None:
        self.text += f"{finding.verdict} {finding.name}: {finding.measured} ({finding.reason})\n"


@pytest.fixture
def files(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file, the text, and a place for backups; the folder of work is the current one."""
    (tmp_path / "tiny.py").write_text(Path(sys.modules["tests.training.small_models"].__file__ or "").read_text())
    monkeypatch.chdir(tmp_path)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return tmp_path


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Ctrl-C at a step of the next run."""
    wanted: list[int | None] = [None]
    end = StopOnSignal.on_train_batch_end

    def on_train_batch_end(self: StopOnSignal, trainer: Any, *args: Any) -> None:
        if trainer.global_step == wanted[0]:
            os.kill(os.getpid(), signal.SIGINT)
        end(self, trainer, *args)

    monkeypatch.setattr(StopOnSignal, "on_train_batch_end", on_train_batch_end)

    def stop(step: int | None) -> None:
        wanted[0] = step

    return stop


def train(view: Any = None, **settings: Any) -> TrainResult:
    values = {**SETTINGS, **settings}
    return api.train("tiny.py", "corpus.txt", view=view or QuietView(), **values)


LONG = pytest.mark.soak


@pytest.mark.parametrize(
    ("stop", "url"),
    [
        (6, "memory://bucket/runs"),
        *(pytest.param(stop, "elsewhere/drive", marks=LONG) for stop in (2, 6, 9)),
        *(pytest.param(stop, "memory://bucket/runs", marks=LONG) for stop in (2, 9)),
    ],
)
def test_a_run_that_lost_its_machine_ends_as_if_nothing_had_happened(
    files: Path, stop_at: Any, stop: int, url: str
) -> None:
    whole = train(name="whole")
    stop_at(stop)
    with pytest.raises(Interrupted):
        train(backup=url, resume="auto")
    stop_at(None)
    shutil.rmtree(files / "runs" / "tiny-corpus")
    view = Said()
    result = train(view, backup=url, resume="auto")  # the same line again
    assert result.run_path == Path("runs/tiny-corpus")
    assert f"the run was restored from {url}/tiny-corpus" in view.text
    assert weights(result.run_path) == weights(whole.run_path)
    assert untimed_rows(result.run_path) == untimed_rows(whole.run_path)
    assert result.results["val_loss"] == whole.results["val_loss"]
    kept = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (result.run_path, whole.run_path)]
    assert kept[0] == kept[1]
    record = json.loads((result.run_path / "run.json").read_text())
    assert (record["state"], record["settings"]["resume"]) == ("finished", None)
    (said,) = [finding for finding in record["findings"] if finding["name"] == "backup"]
    assert said["verdict"] == "ok"
    fs, path = fsspec.url_to_fs(url)
    there = json.loads(fs.cat_file(f"{path}/tiny-corpus/run.json"))
    assert there["state"] == "finished"
    assert there["findings"] == record["findings"]
    assert not (result.run_path / ".backup").exists()


def test_the_same_line_begins_goes_on_and_is_content(files: Path, stop_at: Any) -> None:
    stop_at(6)
    view = Said()
    with pytest.raises(Interrupted):
        train(view, resume="auto")
    assert "nothing to go on with in runs: a new run begins" in view.text
    stop_at(None)
    result = train(resume="auto")
    assert result.results["steps"] == 14
    assert result.run_path == Path("runs/tiny-corpus")
    before = weights(result.run_path)
    again = train(resume="auto")  # finished: measured anew, no error, nothing trained
    assert (again.run_path, again.results["steps"], weights(again.run_path)) == (result.run_path, 14, before)
    assert os.listdir("runs") == ["tiny-corpus"]


@LONG
def test_auto_means_the_newest_run_of_the_name(files: Path, stop_at: Any) -> None:
    def made(name: str, created: str) -> None:
        record = json.loads((files / "runs" / name / "run.json").read_text())
        (files / "runs" / name / "run.json").write_text(json.dumps({**record, "created": created}))

    for _ in range(2):
        train(name="exp", max_steps=4)
    train(name="exp-2b", max_steps=4)
    made("exp", "2026-01-01T00:00:00+00:00")
    made("exp-2", "2026-01-02T00:00:00+00:00")
    made("exp-2b", "2026-01-03T00:00:00+00:00")
    assert train(name="exp", resume="auto", max_steps=6).run_path == Path("runs/exp-2")
    assert json.loads(Path("runs/exp/run.json").read_text())["results"]["steps"] == 4
    shutil.rmtree("runs/exp-2/checkpoints")  # nothing there to go on with
    Path("runs/exp-2/checkpoints").mkdir()
    assert train(name="exp", resume="auto", max_steps=6).run_path == Path("runs/exp")
    assert train(name="other", resume="auto", max_steps=4).run_path == Path("runs/other")
    result = api.train(resume="auto", max_steps=8, view=QuietView())  # no model: the newest of all
    assert (result.run_path, result.results["steps"]) == (Path("runs/other"), 8)
    shutil.rmtree("runs")
    with pytest.raises(SettingsError, match="no run with a checkpoint in runs"):
        api.train(resume="auto", view=QuietView())
    with pytest.raises(SettingsError, match="a model given as an object has none"):
        api.train(Small(), "corpus.txt", resume="auto", view=QuietView(), **SETTINGS)
    assert (
        api.train(Small(), "corpus.txt", resume="auto", name="n", view=QuietView(), **SETTINGS).results["steps"] == 14
    )


def test_on_the_command_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{name}={value}" for name, value in SETTINGS.items() if name != "max_steps"]
    line = ["train", "tiny.py", "--data", "corpus.txt", *flags, "--backup", "drive", "--resume", "auto", "--json"]
    assert cli.main([*line, "--max_steps", "4"]) == 0
    shutil.rmtree("runs")
    capsys.readouterr()
    assert cli.main([*line, "--max_steps", "8"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["results"]["steps"] == 8
    assert "the run was restored from drive/tiny-corpus" in shown.err
    shutil.rmtree("runs")
    # without the model and its settings: they come back with the run
    assert cli.main(["train", "--resume=auto", "--backup", "drive", "--max_steps", "10", "--quiet"]) == 0
    assert json.loads(Path("runs/tiny-corpus/run.json").read_text())["settings"]["batch_size"] == 8
    assert cli.main(["train", "--resume=auto", "--output_dir", "none", "--quiet"]) == 2
    assert "no run with a checkpoint in none" in capsys.readouterr().err


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


@pytest.mark.parametrize("how", ["path", pytest.param("auto", marks=LONG)])
def test_a_damaged_newest_comes_from_the_backup(files: Path, stop_at: Any, how: str) -> None:
    whole = train(name="whole")
    stop_at(10)
    with pytest.raises(Interrupted):
        train(backup="drive")
    stop_at(None)
    for file in Path("runs/tiny-corpus/checkpoints").glob("*/state.pt"):
        flip(file)
    view = Said()
    resume = "auto" if how == "auto" else "runs/tiny-corpus"
    result = train(view, backup="drive", resume=resume)
    assert "step-00000010 came from drive/tiny-corpus" in view.text
    assert weights(result.run_path) == weights(whole.run_path)
    assert Path("runs/tiny-corpus/checkpoints/step-00000010.damaged").is_dir()


@LONG
def test_damage_in_the_backup_gives_way_to_the_next_older_one(files: Path, stop_at: Any) -> None:
    whole = train(name="whole")
    stop_at(10)
    with pytest.raises(Interrupted):
        train(backup="drive")
    stop_at(None)
    shutil.copytree("drive", "intact")
    flip(Path("drive/tiny-corpus/checkpoints/step-00000010/model.safetensors"))
    shutil.rmtree("runs/tiny-corpus")
    view = Said()
    result = train(view, backup="drive", resume="auto")
    assert "step-00000010 in drive/tiny-corpus" in view.text.replace("/checkpoints", "")
    assert weights(result.run_path) == weights(whole.run_path)
    for part, match in (
        ("checkpoints/*/state.pt", "none of the"),
        ("tokenizer/tokenizer.json", "tokenizer.json is dam"),
    ):
        shutil.rmtree("runs/tiny-corpus")
        shutil.rmtree("drive")
        shutil.copytree("intact", "drive")
        for file in Path("drive/tiny-corpus").glob(part):
            flip(file)
        with pytest.raises(CorruptCheckpoint, match=match):
            train(backup="drive", resume="auto")
        assert not Path("runs/tiny-corpus").exists()
        assert not list(Path("runs").glob(".*"))
        Path("runs/tiny-corpus").mkdir()


def test_two_runs_of_one_name_keep_apart(files: Path) -> None:
    """The machine is gone, and nobody said auto: the new run must not write over the old one's copy."""
    first = train(backup="drive", max_steps=4)
    kept = weights(Path("drive/tiny-corpus"))
    shutil.rmtree("runs")
    second = train(backup="drive", max_steps=8, seed=7)
    assert first.run_path == second.run_path
    assert weights(Path("drive/tiny-corpus")) == kept
    assert weights(Path("drive/tiny-corpus-2")) == weights(second.run_path)
    assert "drive/tiny-corpus-2" in next(f.measured for f in second.findings if f.name == "backup")


@LONG
def test_a_run_that_goes_back_takes_its_backup_with_it(files: Path) -> None:
    train(backup="drive", max_steps=12, save_top_k=5)
    train(backup="drive", max_steps=6, save_top_k=5, resume="runs/tiny-corpus/checkpoints/step-00000004")
    there = sorted(path.name for path in Path("drive/tiny-corpus/checkpoints").iterdir())
    assert there == ["step-00000004", "step-00000006"]


def test_a_backup_that_fails_stops_nothing(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.runs.backup.WAIT", 0.2)
    Path("drive").write_text("a file where the folder should be")
    view = Said()
    result = train(view, backup="drive")
    assert result.results["steps"] == 14
    assert view.text.count("the training goes on, and it is tried again") == 1
    assert "waiting for the backup of" in view.text
    (said,) = [finding for finding in result.findings if finding.name == "backup"]
    assert said.verdict == "warn"
    assert "not copied: step-00000" in said.measured
    assert said.to_dict() in json.loads((result.run_path / "run.json").read_text())["findings"]
    assert weights(result.run_path) == weights(train(name="without").run_path)
    # going on: what is here counts
    again = Said()
    assert train(again, backup="drive", resume="auto", max_steps=16).results["steps"] == 16
    assert "cannot be reached" in again.text or "warn backup" in again.text


def test_nobody_begins_anew_where_the_backup_cannot_be_asked(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(self: Any) -> list[str]:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("anyformer.runs.remote.RemoteFolder.names", down)
    with pytest.raises(CheckpointError, match="nobody knows whether there is a run to go on with") as caught:
        train(backup="memory://bucket", resume="auto")
    assert "no route to host" in caught.value.detail
    assert not Path("runs").exists()


def test_what_can_never_work_is_said_before_anything_is_read(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "prepare_text", lambda *args, **keywords: pytest.fail("read"))
    for place in ("runs", str(files / "runs"), f"file://{files}/runs"):
        with pytest.raises(SettingsError, match="is the folder of the run itself"):
            train(backup=place)
    with pytest.raises(SettingsError, match="knows no nowhere://"):
        train(backup="nowhere://bucket")
    with pytest.raises(SettingsError, match="backup is empty"):
        train(backup=" ")
    with pytest.raises(DependencyError, match="gcsfs is not installed"):
        train(backup="gs://bucket")
    assert not Path("runs").exists()


def test_a_stopped_run_does_not_wait_for_long(files: Path, stop_at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.runs.backup.WAIT_STOPPED", 0.1)
    Path("drive").write_text("a file")
    stop_at(6)
    view = Said()
    with pytest.raises(Interrupted):
        train(view, backup="drive")
    assert "at most 0:00" in view.text
    assert json.loads(Path("runs/tiny-corpus/run.json").read_text())["state"] == "interrupted"
