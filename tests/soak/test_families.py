"""Masked and sequence-to-sequence training past the bigram entropy of the held-out tokens (minutes each)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anyformer.core.settings import TrainSettings
from anyformer.core.view import QuietView
from anyformer.models.source import load_model
from anyformer.training.coordinator import run_training
from tests.training.family_models import MaskedEncoder, Translator

pytestmark = pytest.mark.soak


def results_of(module: nn.Module, tmp_path: Path, **settings: Any) -> dict[str, Any]:
    chosen = TrainSettings(output_dir=str(tmp_path), precision="32", use_gpu=False, **settings)
    return run_training(load_model(module), chosen, view=QuietView()).results


def test_an_encoder_on_wikitext_beats_token_pairs(real_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    results = results_of(
        MaskedEncoder(128, 64, 0.0), tmp_path, data=str(real_data / "wikitext2" / "valid.txt"),
        max_steps=1500, batch_size=32, max_length=32, learning_rate=5e-3, objective="masked",
    )  # fmt: skip
    assert results["val_loss"] < results["bigram_entropy"], results


def test_an_encoder_decoder_on_multi30k_beats_token_pairs(real_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = real_data / "multi30k"
    results = results_of(
        Translator(128, 64, 0.0), tmp_path, data=str(folder / "train.en"), max_steps=600, batch_size=16,
        target_data=str(folder / "train.de"), val_data=str(folder / "val.en"), max_length=192, learning_rate=4e-3,
        eval_every=600,
    )  # fmt: skip
    assert results["val_loss"] < results["bigram_entropy"], results
