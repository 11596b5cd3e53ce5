"""The id that a model's embedding keeps for padding is the tokenizer's, or it is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer.core.settings import TrainSettings
from anyformer.core.view import QuietView
from anyformer.models.callplan import infer_call_plan
from anyformer.models.source import load_model
from anyformer.tokenization import CharacterLevelTokenizer
from anyformer.training.coordinator import TrainResult, run_training
from anyformer.training.objective import kept_for_padding, padding_notes
from tests.training.small_models import Small, small_text

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


class HidesItself(torch.nn.Module):
    """A decoder that compares with its padding's id in ``forward``, and has no padding_idx."""

    def __init__(self, hidden: int, vocab_size: int = 40) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.embedding = torch.nn.Embedding(vocab_size, 16)
        self.attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = torch.nn.Linear(16, vocab_size)
        self.hidden = hidden

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        T = tokens.shape[1]
        later = torch.ones(T, T, dtype=torch.bool).triu(1)
        padded = (tokens == self.hidden) & (torch.arange(T) > 0)
        return self.head(x + self.attention(x, x, x, attn_mask=later, key_padding_mask=padded)[0])


@pytest.mark.parametrize("hidden", [0, 1, 3, 39])
def test_an_id_that_forward_alone_hides_is_found(hidden: int) -> None:
    module = HidesItself(hidden)
    assert kept_for_padding(module, infer_call_plan(module)) == hidden


def test_an_id_that_an_attribute_names_is_tried() -> None:
    module = HidesItself(17)
    assert kept_for_padding(module, infer_call_plan(module)) is None
    module.pad_token_id = 17  # type: ignore[assignment]
    assert kept_for_padding(module, infer_call_plan(module)) == 17


def test_a_model_that_reads_every_id_has_none() -> None:
    module = HidesItself(-1)
    assert kept_for_padding(module, infer_call_plan(module)) is None


def test_a_tokenizer_made_for_it_has_padding_there(fit: Fit) -> None:
    result = fit(HidesItself(1), name="one")
    assert (result.tokenizer.pad_token, result.tokenizer.pad_token_id) == ("<pad>", 1)
    assert "padding id" not in {finding.name for finding in result.findings}


class Translates(torch.nn.Module):
    """An encoder–decoder that hides id 1 of the text it reads, of the one it writes, or of neither."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.source, self.target = torch.nn.Embedding(30, 16), torch.nn.Embedding(31, 16)
        self.transformer = torch.nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
        self.head = torch.nn.Linear(16, 31)
        self.hidden = source, target

    def forward(self, src: torch.Tensor, tgt: torch.Tensor) -> torch.Tensor:
        later = torch.ones(tgt.shape[1], tgt.shape[1], dtype=torch.bool).triu(1)
        padded = src == self.hidden[0], (tgt == self.hidden[1]) & (torch.arange(tgt.shape[1]) > 0)
        x = self.transformer(
            self.source(src),
            self.target(tgt),
            tgt_mask=later,
            src_key_padding_mask=padded[0],
            tgt_key_padding_mask=padded[1],
            memory_key_padding_mask=padded[0],
        )
        return self.head(x)


@pytest.mark.parametrize(("source", "target", "found"), [(1, -1, 1), (-1, 1, 1), (-1, -1, None)])
def test_both_sides_of_an_encoder_decoder_are_tried(source: int, target: int, found: int | None) -> None:
    module = Translates(source, target)
    plan = infer_call_plan(module)
    assert plan.family == "encoder_decoder"
    assert kept_for_padding(module, plan) == found
