"""Trackers that fail or hang are left behind, and everything else goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from anyformer.core.findings import Finding
from anyformer.core.view import QuietView
from anyformer.runs import tracking
from anyformer.runs.trackers import About, Row
from anyformer.runs.tracking import Trackers

LONG = pytest.mark.soak
FAKES = str(Path(__file__).parent / "fake_trackers.py")


class Said(QuietView):
    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def finding(self, finding: Finding) -> None:
        self.findings.append(finding)


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "COMMAND", (sys.executable, FAKES))


def about(folder: Path, **given: Any) -> About:
    return About(**{"folder": str(folder), "name": "run", "id": "abc", "resumed_at": None, "settings": {}, **given})


def kept(folder: Path, name: str = "keeping") -> list[dict[str, Any]]:
    file = folder / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def steps(folder: Path, name: str = "keeping") -> list[int]:
    return [line["step"] for line in kept(folder, name) if "step" in line]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def test_rows_come_in_order_each_once_and_the_end_last(tmp_path: Path) -> None:
    trackers = Trackers(["keeping"], about(tmp_path, settings={"lr": 0.1}), [], Said())
    for step in range(1, 2501):  # more than go into one message
        trackers.offer(step, {"train_loss": step / 2, "odd": float("nan")})
    trackers.close("finished", {"val_loss": 1.5}, 20.0)
    lines = kept(tmp_path)
    assert lines[0] == {"about": {"lr": 0.1}, "resumed_at": None}
    assert steps(tmp_path) == list(range(1, 2501))
    assert lines[7]["figures"]["train_loss"] == 3.5
    assert abs(lines[7]["time"] - time.time()) < 60
    assert lines[-1] == {"state": "finished", "figures": {"val_loss": 1.5}}
    assert trackers.findings == []


def test_what_a_tracker_lacks_is_given_again_and_what_it_has_is_not(tmp_path: Path) -> None:
    trackers = Trackers(["keeping"], about(tmp_path), [], Said())
    for step in (10, 20, 40):
        trackers.offer(step, {"train_loss": 1.0})
    trackers.close("failed", {}, 20.0)
    before = [Row(step, 0.0, {"train_loss": 1.0}) for step in (10, 20, 30)]  # 30 it never got; 40 is done again
    trackers = Trackers(["keeping"], about(tmp_path, resumed_at=30), before, Said())
    for step in (40, 50):
        trackers.offer(step, {"train_loss": 1.0})
    trackers.close("finished", {}, 20.0)
    assert sorted(steps(tmp_path)) == [10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        pytest.param("fails_at_start", "ConnectionError: no server at start see the manual", marks=LONG),
        ("fails_at_log", "ConnectionError: no server at log see the manual"),
        pytest.param("fails_at_finish", "ConnectionError: no server at finish see the manual", marks=LONG),
        ("dying", "its process ended with code 7"),
        pytest.param("unknown", "KeyError: 'unknown'", marks=LONG),
    ],
)
def test_one_that_fails_is_left_behind_with_one_warning(tmp_path: Path, name: str, reason: str) -> None:
    said = Said()
    trackers = Trackers([name, "keeping"], about(tmp_path), [], said)
    for step in range(1, 31):
        trackers.offer(step, {"train_loss": 1.0})
        time.sleep(0.01)
    trackers.close("finished", {}, 20.0)
    assert [(f.name, f.verdict, f.measured) for f in said.findings] == [(name, "warn", reason)]
    assert "left behind" in said.findings[0].reason
    assert trackers.findings == said.findings
    assert steps(tmp_path) == list(range(1, 31))  # the other one has them all


@pytest.mark.parametrize("at", [pytest.param("start", marks=LONG), "log", pytest.param("finish", marks=LONG)])
def test_one_that_hangs_is_left_behind_and_its_processes_are_gone(
    tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 0.5)
    said, name = Said(), f"hangs_at_{at}"
    trackers = Trackers([name, "keeping"], about(tmp_path), [], said)
    slowest = 0.0
    if at != "finish":
        until(lambda: any("pids" in line for line in kept(tmp_path, name)) or trackers.offer(1, {"train_loss": 1.0}))
    for step in range(2, 40):
        begin = time.monotonic()
        trackers.offer(step, {"train_loss": 1.0})
        slowest = max(slowest, time.monotonic() - begin)
        time.sleep(0.02)
    begin = time.monotonic()
    trackers.close("finished", {}, 0.7)
    assert time.monotonic() - begin < 8
    assert slowest < 1.5  # a kill and a wait for the process to go; not 600 s
    expected = "did not come to its end in time" if at == "finish" else "no answer for"
    assert [(f.name, f.verdict) for f in said.findings] == [(name, "warn")]
    assert expected in said.findings[0].measured
    (pids,) = [line["pids"] for line in kept(tmp_path, name) if "pids" in line]
    until(lambda: not any(alive(pid) for pid in pids))
    assert steps(tmp_path)[-1] == 39
    until(lambda: not any(t.name.startswith("tracker ") for t in threading.enumerate()))


def test_a_program_that_cannot_be_started_is_a_failing_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "COMMAND", (str(tmp_path / "no-python"),))
    said = Said()
    trackers = Trackers(["keeping"], about(tmp_path), [], said)
    trackers.close("finished", {}, 20.0)
    assert "No such file" in said.findings[0].measured


def test_rows_are_bounded_while_a_tracker_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "MOST_ROWS", 100)
    said = Said()
    trackers = Trackers(["hangs_at_start"], about(tmp_path), [], said)
    for step in range(1, 1000):
        trackers.offer(step, {})
    assert [finding.name for finding in said.findings] == ["hangs_at_start"]
    trackers.close("finished", {}, 5.0)
    assert len(said.findings) == 1


def test_a_killed_run_leaves_its_rows_and_no_process(tmp_path: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(tracking.__file__).parents[2])!r})
from anyformer.runs import tracking
from anyformer.runs.trackers import About
from anyformer.core.view import QuietView
tracking.COMMAND = (sys.executable, {FAKES!r})
trackers = tracking.Trackers(["keeping"], About({str(tmp_path)!r}, "run", "abc", None, {{}}), [], QuietView())
for step in range(1, 6): trackers.offer(step, {{"train_loss": 1.0}})
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: steps(tmp_path) == [1, 2, 3, 4, 5])
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: kept(tmp_path)[-1] == {"state": "killed", "figures": {}})
