"""Runs found by name, without opening them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anyformer.core.names import list_runs, run_folder, runs_beside


@pytest.mark.parametrize(
    ("named", "run"),
    [
        ("runs/a", "runs/a"),
        ("runs/a/", "runs/a"),
        ("runs/a/checkpoints", "runs/a"),
        ("runs/a/checkpoints/step-00000040", "runs/a"),
        ("checkpoints/b", "checkpoints/b"),  # runs may lie in a folder of that name
        ("checkpoints/b/checkpoints/step-00000040", "checkpoints/b"),
        ("runs/none", "runs/none"),
    ],
)
def test_the_run_that_a_path_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, run: str) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/a", "checkpoints/b"):
        Path(folder, "checkpoints", "step-00000040").mkdir(parents=True)
        Path(folder, "run.json").write_text("{}")
    assert run_folder(named) == run_folder(Path(named)) == Path(run)
    assert run_folder(tmp_path / named) == tmp_path / run


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_folder("~/a/checkpoints/step-1") == tmp_path / "a"


def test_runs_beside(tmp_path: Path) -> None:
    assert "anyformer train" in runs_beside(tmp_path / "runs" / "none")
    for number in range(10):
        (tmp_path / "runs" / f"r{number}").mkdir(parents=True)
        file = tmp_path / "runs" / f"r{number}" / "run.json"
        file.write_text("{}")
        os.utime(file, (number, number))
    assert list_runs(tmp_path / "runs")[:2] == ["r9", "r8"]
    expected = f"runs in {tmp_path / 'runs'}: r9, r8, r7, r6, r5, r4, r3, r2 and 2 more"
    assert runs_beside(tmp_path / "runs" / "none") == expected
    assert runs_beside(tmp_path / "runs") == expected  # the folder of the runs itself was named


def test_flags_import_no_torch() -> None:
    code = "import sys, anyformer.ui.flags, anyformer.core.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
