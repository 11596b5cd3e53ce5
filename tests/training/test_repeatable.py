"""The same settings give the same run, bit for bit, and nothing of it stays behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anyformer import cli
from anyformer.core.errors import TrainingError
from anyformer.training.adapter import UniversalModelAdapter
from anyformer.training.coordinator import TrainResult
from tests.training.read_runs import untimed_rows, weights
from tests.training.small_models import TINY_FILE, Small, small_text

Fit = Callable[..., TrainResult]


def test_two_runs_of_one_manifest_are_equal_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.py").write_text(TINY_FILE)
    Path("text.txt").write_text(small_text())
    flags = ["--data", "text.txt", "--max_steps", "30", "--batch_size", "8", "--max_length", "16", "--log_every", "1"]
    assert cli.main(["train", "tiny.py", *flags, "--seed", "11", "--name", "a", "--quiet"]) == 0
    torch.rand(7)  # whatever happened in the process before
    again = ["train", "tiny.py", "--config", "runs/a/settings.yaml", "--name", "b", "--quiet"]
    assert cli.main(again) == 0
    assert cli.main(["train", "tiny.py", *flags, "--seed", "12", "--name", "c", "--quiet"]) == 0
    runs = [Path("runs") / name for name in "abc"]
    assert untimed_rows(runs[0]) == untimed_rows(runs[1]) != untimed_rows(runs[2])
    assert len(untimed_rows(runs[0])) == 30
    assert weights(runs[0]) == weights(runs[1]) != weights(runs[2])
    texts = [(run / "samples.jsonl").read_text() for run in runs]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("asked", [False, True])
def test_only_deterministic_operations_where_asked_for(fit: Fit, monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "before")
    seen: list[Any] = []

    def note(self: UniversalModelAdapter) -> None:
        seen.append((torch.are_deterministic_algorithms_enabled(), os.environ["CUBLAS_WORKSPACE_CONFIG"]))

    monkeypatch.setattr(UniversalModelAdapter, "on_train_start", note)
    fit(max_steps=2, deterministic=asked)
    assert seen == [(asked, ":4096:8" if asked else "before")]
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == "before"


class NoSuchForm(Small):
    """Uses, while it trains, what torch has in no deterministic form."""

    armed = False

    def forward(self, tokens: Tensor) -> Tensor:
        if self.armed:
            torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
        return super().forward(tokens)


def test_an_operation_without_such_a_form_is_named(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UniversalModelAdapter, "on_train_start", lambda self: setattr(self.model, "armed", True))
    with pytest.raises(TrainingError, match="no deterministic form") as caught:
        fit(NoSuchForm(), deterministic=True)
    assert "put_" in caught.value.detail
    assert not torch.are_deterministic_algorithms_enabled()
