"""A run begins with tiers 0 and 1: what they find ends it, or stays with it; they are left out where one says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anyformer import api, cli
from anyformer.core.errors import CallError, SettingsError
from anyformer.core.view import QuietView
from benchmarks.mutants.planted import host_source, mutants

CLAMPED = next(mutant for mutant in mutants() if mutant.name == "batch norm @ gpt").source
# in training mode alone it needs a value that it does not have: no plan sees that, which calls it in eval mode
BREAKS = host_source("gpt").replace(
    "        scores = q @", "        if self.training:\n            x = x * self.gain\n        scores = q @"
)


def run(folder: Path, source: str, *flags: str) -> int:
    (folder / "model.py").write_text(source)
    (folder / "corpus.txt").write_text("the cat sat on the mat. a dog ran to the barn. " * 80)
    settings = ("--max_steps", "2", "--batch_size", "2", "--max_length", "16", "--precision", "32", "--quiet")
    return cli.main(["train", "model.py", "--data", "corpus.txt", "--name", "it", *settings, *flags])


def findings(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "runs" / "it" / "run.json").read_text())["findings"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_right_model_is_checked_and_the_count_kept(tmp_path: Path) -> None:
    assert run(tmp_path, host_source("gpt")) == 0
    (said,) = (f for f in findings(tmp_path) if f["name"] == "checks")
    assert said["verdict"] == "note"
    assert "tiers 0 and 1: 2" in said["measured"]  # twenty and more are ok
    assert "wrong" not in said["measured"]


def test_what_is_odd_is_kept_once(tmp_path: Path) -> None:
    assert run(tmp_path, CLAMPED) == 0
    assert [f["verdict"] for f in findings(tmp_path) if f["name"] == "rows in training"] == ["warn"]


def test_what_is_wrong_ends_it_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, BREAKS) == 1
    said = capsys.readouterr().err
    assert "rows in training: in training mode it ends with AttributeError" in said
    assert ": x = x * self.gain" in said
    assert "anyformer check model.py" in said
    assert '--skip_checks "WHY"' in said
    assert not (tmp_path / "runs").exists()


def test_they_are_left_out_where_one_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, CLAMPED, "--skip_checks", "its statistics are wanted") == 0
    (said,) = (f for f in findings(tmp_path) if f["name"] == "checks")
    assert (said["verdict"], said["measured"], said["reason"]) == (
        *("warn", "tiers 0 and 1 left out"),
        "its statistics are wanted",
    )
    assert not [f for f in findings(tmp_path) if f["name"] == "rows in training"]


def test_the_flag_alone_is_enough(tmp_path: Path) -> None:
    assert run(tmp_path, host_source("gpt"), "--skip_checks") == 0
    (said,) = (f for f in findings(tmp_path) if f["name"] == "checks")
    assert said["reason"] == "no reason given"


def test_a_run_that_goes_on_is_not_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, host_source("gpt")) == 0

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("checked again")

    monkeypatch.setattr("anyformer.checks.preflight.run_checks", never)
    assert cli.main(["train", "--resume", "runs/it", "--max_steps", "3", "--quiet"]) == 0


def test_in_python_it_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(BREAKS)
    given: dict[str, Any] = {
        "data": [f"the {n} cat sat on the mat. " * 40 for n in range(20)],
        "max_steps": 1,
        "view": QuietView(),
    }
    with pytest.raises(CallError, match="rows in training"):
        api.train("model.py", **given)
    with pytest.raises(SettingsError, match="skip_checks is True; it must be str or None"):
        api.train("model.py", **given, skip_checks=True)  # type: ignore[arg-type]
