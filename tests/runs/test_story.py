"""A run's folder tells what happened to it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from anyformer import cli
from tests.test_readme import MODEL, TEXT

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Path:
    """Stopped once, its newest checkpoint damaged, resumed with another rate."""
    monkeypatch.chdir(tmp_path)
    Path("my_model.py").write_text(MODEL)
    Path("corpus.txt").write_text(TEXT * 3)
    flags = ["--data", "corpus.txt", "--max_length", "16", "--batch_size", "4", "--eval_every", "2", "--name", "a"]
    assert cli.main(["train", "my_model.py", *flags, "--max_steps", "6", "--quiet"]) == 0
    newest = Path("runs/a/checkpoints/step-00000006/model.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])
    resume = ["train", "--resume", "runs/a", "--max_steps", "8", "--learning_rate", "0.002", "--quiet"]
    assert cli.main(resume) == 0
    capsys.readouterr()
    return Path("runs/a")


def shown(capsys: Capture, *argv: str) -> str:
    assert cli.main(["runs", *argv]) == 0
    return capsys.readouterr().out


def test_the_story_of_a_run(run: Path, capsys: Capture) -> None:
    story = json.loads(shown(capsys, "show", "a", "--json"))
    assert (story["state"], story["step"], story["total_steps"], story["next"]) == ("finished", 8, 8, None)
    assert [event["event"] for event in story["history"]] == ["began", "finished", "resumed", "finished"]
    resumed = story["history"][2]
    assert (resumed["step"], resumed["after"]) == (4, "finished")
    assert "step-00000006 is damaged" in resumed["damaged"][0]
    assert "learning_rate: 0.002 instead of derived" in resumed["changed"]
    assert "step-00000006.damaged" in story["set_aside"]
    assert story["checkpoints"][0]["step"] == 8
    lines = shown(capsys, "show", "runs/a")
    assert "runs/a: finished at step 8 of 8" in lines
    assert "resumed from step 4, after it was finished" in lines
    assert "step-00000006 is damaged" in lines
    assert "bad steps" not in lines
    (run / "bad_batches").mkdir()
    (run / "bad_batches" / "step-00000003.json").write_text(
        '{"step": 3, "action": "skipped", "reason": "the loss is nan"}'
    )
    (run / "bad_batches" / "step-00000004.json").write_text('{"step": 4')
    assert "step 3: skipped, the loss is nan" in shown(capsys, "show", "a")
    assert "runs/a  finished     step 8 of 8  held-out loss" in shown(capsys)
    assert [one["run"] for one in json.loads(shown(capsys, "--json"))["runs"]] == ["runs/a"]


def test_a_killed_run_is_told_from_one_that_runs(run: Path, capsys: Capture) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "state": "running"}))
    with (run / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as a process that trains it holds it
        assert "runs/a: running at step 8" in shown(capsys, "show", "a")
    lines = shown(capsys, "show", "a")
    assert "runs/a: killed at step 8" in lines
    assert lines.rstrip().endswith("next: anyformer train --resume runs/a")
    # telling it needs no torch
    code = "import sys; from anyformer import cli; cli.main(['runs', 'show', 'a']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, stdout=subprocess.DEVNULL).returncode == 0


def test_what_is_no_run_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["runs", "show", "b"]) == 2
    assert "b is not a run" in capsys.readouterr().err
    for wrong in (["show"], ["shwo", "a"], ["show", "--json"]):
        assert cli.main(["runs", *wrong]) == 2
        assert "anyformer runs show NAME" in "".join(capsys.readouterr())
    assert "no runs in runs/" in shown(capsys)
