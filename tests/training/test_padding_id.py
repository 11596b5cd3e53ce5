"""The id that a model's embedding keeps for padding is the tokenizer's, or it is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import Small, small_text

from anyformer.core.settings import TrainSettings
from anyformer.core.view import QuietView
from anyformer.models.callplan import infer_call_plan
from anyformer.models.source import load_model
from anyformer.tokenization import CharacterLevelTokenizer
from anyformer.training.coordinator import TrainResult, run_training
from anyformer.training.objective import kept_for_padding, padding_notes

Fit = Callable[..., TrainResult]


def padded(padding: int | None, rows: int = 15) -> Small:
    """Of 15 ids 13 are the letters of the text: two special tokens have room."""
    torch.manual_seed(5)
    module = Small(vocab_size=rows)
    module.embedding = torch.nn.Embedding(rows, 16, padding_idx=padding)
    return module


def test_a_tokenizer_made_for_a_model_with_a_padding_id_has_it_there(fit: Fit) -> None:
    assert fit(padded(None), name="without").tokenizer.pad_token == "</s>"
    result = fit(padded(0), name="with")
    assert (result.tokenizer.pad_token, result.tokenizer.pad_token_id) == ("<pad>", 0)
    assert "padding id" not in {finding.name for finding in result.findings}


def test_another_token_there_is_told(tmp_path: Path, corpus: Path) -> None:
    tokenizer = CharacterLevelTokenizer(15, special_tokens=["<unk>", "</s>"], texts=[small_text()])
    given: dict[str, Any] = {"data": str(corpus), "max_length": 16, "max_steps": 2, "precision": "32"}
    settings = TrainSettings(output_dir=str(tmp_path / "runs"), **given)
    result = run_training(load_model(padded(0)), settings, tokenizer=tokenizer, view=QuietView())
    told = next(finding for finding in result.findings if finding.name == "padding id")
    assert (told.verdict, told.measured) == ("warn", "id 0 is '<unk>' in this tokenizer")
    assert "id 0 for padding" in told.reason


@pytest.mark.parametrize(("padding", "rows", "notes"), [(None, 15, 0), (0, 15, 1), (20, 25, 0)])
def test_only_an_id_that_the_tokenizer_gives_is_told(padding: int | None, rows: int, notes: int) -> None:
    tokenizer: Any = CharacterLevelTokenizer(15, special_tokens=["<unk>"], texts=[small_text()])
    module = padded(padding, rows)
    assert kept_for_padding(module, infer_call_plan(module)) == padding
    assert len(padding_notes(tokenizer, padding)) == notes


def test_a_table_of_positions_keeps_none() -> None:
    module = padded(None)
    module.positions = torch.nn.Embedding(9, 16, padding_idx=0)  # type: ignore[assignment]
    assert kept_for_padding(module, infer_call_plan(module)) is None
