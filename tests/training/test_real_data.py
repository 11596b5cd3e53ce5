"""Every family learns on real data: below the loss of guesses, each stated. Longer runs are in tests/soak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from anyformer.core.settings import TrainSettings
from anyformer.core.view import QuietView
from anyformer.models.example_gpt import GPT
from anyformer.models.source import load_model
from anyformer.training.coordinator import run_training
from tests.training.family_models import MaskedEncoder, MeanClassifier, Translator


def results_of(module: nn.Module, tmp_path: Path, **settings: Any) -> dict[str, Any]:
    chosen = TrainSettings(output_dir=str(tmp_path), precision="32", use_gpu=False, name="run", **settings)
    return run_training(load_model(module), chosen, view=QuietView()).results


def head_of(source: Path, target: Path, lines: int) -> str:
    """The first lines of a file, as a file."""
    with source.open(encoding="utf-8") as stream:
        target.write_text("".join(line for line, _ in zip(stream, range(lines), strict=False)), encoding="utf-8")
    return str(target)


def test_a_decoder_on_shakespeare_beats_token_pairs(real_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = GPT(vocab_size=128, block_size=64, n_layer=1, n_head=2, n_embd=64)
    data = head_of(real_data / "tinyshakespeare" / "input.txt", tmp_path / "plays.txt", 12000)
    results = results_of(module, tmp_path, data=data, max_steps=300, batch_size=16, learning_rate=8e-3, eval_every=300)
    assert results["objective"] == "causal"
    assert results["val_loss"] < results["bigram_entropy"], results


def test_an_encoder_on_wikitext_beats_single_tokens(real_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = head_of(real_data / "wikitext2" / "valid.txt", tmp_path / "wiki.txt", 1200)
    results = results_of(
        MaskedEncoder(128, 64, 0.0), tmp_path, data=data, max_steps=250, batch_size=32, max_length=32,
        learning_rate=5e-3, eval_every=250, objective="masked",
    )  # fmt: skip
    assert results["objective"] == "masked"
    assert results["val_loss"] < results["unigram_entropy"] - 0.3, results


def test_an_encoder_decoder_on_multi30k_beats_single_tokens(real_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    files = {
        f"{side}.{name}": head_of(real_data / "multi30k" / f"{side}.{name}", tmp_path / f"{side}.{name}", lines)
        for side, lines in (("train", 3000), ("val", 200))
        for name in ("en", "de")
    }
    results = results_of(
        Translator(300, 48, 0.0), tmp_path, data=files["train.en"], target_data=files["train.de"],
        val_data=files["val.en"], max_steps=100, batch_size=16, max_length=96, learning_rate=8e-3, eval_every=100,
    )  # fmt: skip
    assert results["objective"] == "seq2seq"
    assert results["val_loss"] < results["unigram_entropy"] - 0.5, results


def test_a_classifier_on_sst2_beats_the_majority(real_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    results = results_of(
        MeanClassifier(4096, 64, dropout=0.0), tmp_path, data=str(real_data / "sst2" / "train.tsv"),
        val_data=str(real_data / "sst2" / "dev.tsv"), max_steps=250, batch_size=32, learning_rate=1e-2,
    )  # fmt: skip
    assert results["objective"] == "classification"
    assert results["evaluated_examples"] == 872
    assert results["accuracy"] > results["majority_accuracy"] + 0.15, results
    assert results["val_loss"] < results["prior_entropy"], results
