"""Small models, texts and a quick way to run them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anyformer.core.settings import TrainSettings
from anyformer.core.view import QuietView
from anyformer.models.source import load_model
from anyformer.training.coordinator import TrainResult, run_training
from tests.training.small_models import Small, small_text

torch.set_num_threads(1)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A text of about 6,000 characters."""
    file = tmp_path / "corpus.txt"
    file.write_text(small_text(), encoding="utf-8")
    return file


@pytest.fixture
def fit(tmp_path: Path, corpus: Path) -> Callable[..., TrainResult]:
    """Train a module (Small where not given) on the small text; keywords are settings."""

    def run(module: nn.Module | None = None, *, dataset: Any = None, **settings: Any) -> TrainResult:
        if module is None:
            torch.manual_seed(5)
            module = Small()
        values: dict[str, Any] = {
            "data": str(corpus),
            "output_dir": str(tmp_path / "runs"),
            "name": "run",
            "max_length": 16,
            "batch_size": 8,
            "max_steps": 12,
            "learning_rate": 1e-2,
            "precision": "32",
            "eval_every": 4,
            "log_every": 1,
        }
        return run_training(
            load_model(module), TrainSettings(**{**values, **settings}), dataset=dataset, view=QuietView()
        )

    return run
