"""What another process builds from the file and the weights is the same model, or it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyformer.checks import CheckResult, run_checks
from anyformer.models.source import load_model
from benchmarks.mutants.planted import host_source


def checked(path: Path) -> CheckResult:
    report = run_checks(load_model(path), only=("new process",))
    return next(result for result in report.results if result.name == "new process")


def test_a_file_is_built_again_with_the_saved_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.py").write_text(host_source("gpt"))
    (tmp_path / "glob.py").write_text("raise SystemExit('this is not the glob of Python')")
    monkeypatch.chdir(tmp_path)
    assert (result := checked(tmp_path / "model.py")).verdict == "ok", result.measured


def test_what_hangs_on_the_process_is_told(tmp_path: Path) -> None:
    source = host_source("gpt").replace("import math\n", "import math\nimport os\n", 1)
    scaled = source.replace("scores = q @", "scores = (1 + os.getpid()) * q @")
    assert scaled.count("os.getpid") == 1
    (tmp_path / "model.py").write_text(scaled)
    result = checked(tmp_path / "model.py")
    assert (result.verdict, result.measured) == ("fail", "other logits from the same weights")


def test_what_cannot_be_built_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE_ALONE", "1")
    source = host_source("gpt").replace("import math\n", "import math\nimport os\n", 1)
    source = source.replace("self.config = config", 'self.config, self.size = config, int(os.environ["HERE_ALONE"])')
    (tmp_path / "model.py").write_text(source)
    loaded = load_model(tmp_path / "model.py")
    monkeypatch.delenv("HERE_ALONE")
    (result,) = (r for r in run_checks(loaded, only=("new process",)).results if r.name == "new process")
    assert result.verdict == "warn"
    assert "HERE_ALONE" in result.measured
