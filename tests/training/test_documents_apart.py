"""A run on many documents: its plan keeps those of one block apart, and every figure is measured with that plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from anyformer import api
from anyformer.core.errors import TokenizerError
from anyformer.core.settings import EvaluateSettings
from anyformer.data import AdaptiveTokenizerDataModule
from anyformer.models.calling import call_logits
from anyformer.models.callplan import CallPlan
from anyformer.tokenization import CharacterLevelTokenizer
from anyformer.training.adapter import UniversalModelAdapter
from anyformer.training.coordinator import TrainResult
from tests.training.small_models import Small

V, D, T = 64, 16, 16
Fit = Callable[..., TrainResult]
TEXTS = [f"the {a} {b} the {c}" for a in ("cat", "dog", "hen") for b in ("sees", "eats") for c in "uvwxyz"]


class Masked(nn.Module):
    """A causal decoder that takes a mask of its caller, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        self.layer = nn.TransformerEncoderLayer(D, 2, 2 * D, 0.0, batch_first=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        B, length = input_ids.shape
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1).expand(B, -1, -1)
        if attention_mask is not None:
            mask = attention_mask[:, None, :] if attention_mask.dim() == 2 else attention_mask
            hidden = hidden | (mask == 0)
        x = self.layer(self.tokens(input_ids), src_mask=hidden.repeat_interleave(2, 0))
        logits: Tensor = self.head(x)
        return logits


def manifest(result: TrainResult) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((result.run_path / "run.json").read_text())
    return record


def finding(result: TrainResult) -> dict[str, Any]:
    return next(f for f in manifest(result)["findings"] if f["name"] == "documents")


def test_the_run_keeps_its_documents_apart_and_is_measured_so(fit: Fit, tmp_path: Any) -> None:
    (tmp_path / "rows.txt").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "rows.txt" / f"{number}.txt").write_text(text)
    result = fit(Masked(), data=str(tmp_path / "rows.txt"), tokenizer="char", max_length=T)
    assert finding(result)["verdict"] == "ok"
    plan = CallPlan.from_dict(manifest(result)["call_plan"])
    assert plan.document_start == result.tokenizer.eos_token_id
    ids = torch.randint(5, V, (1, T), generator=torch.Generator().manual_seed(1))
    ids[0, 6] = plan.document_start
    module = result.adapter.model
    torch.testing.assert_close(
        call_logits(module, plan, ids)[:, 6:], call_logits(module, plan, ids[:, 6:]), rtol=1e-5, atol=1e-5
    )
    again = api.evaluate(result.run_path, model=Masked(), settings=EvaluateSettings(batch_size=3))
    assert again.figures["val_loss"] == pytest.approx(result.results["val_loss"], rel=1e-5)


def test_a_model_without_such_a_mask_is_told(fit: Fit) -> None:
    result = fit(Small(), dataset={"text": TEXTS}, tokenizer="char")
    assert finding(result)["verdict"] == "note"
    assert "see one another" in finding(result)["measured"]
    assert manifest(result)["call_plan"]["document_start"] is None


def test_one_text_has_no_boundaries(fit: Fit) -> None:
    result = fit(Masked())
    assert not [f for f in manifest(result)["findings"] if f["name"] == "documents"]


@pytest.mark.parametrize("apart", [True, False])
def test_a_plain_trainer_keeps_them_apart_too(tmp_path: Any, apart: bool) -> None:
    tokenizer = CharacterLevelTokenizer(V, texts=TEXTS)
    data = AdaptiveTokenizerDataModule(TEXTS, tokenizer, batch_size=4, max_length=T, cache_dir=tmp_path)
    adapter = UniversalModelAdapter(Masked() if apart else Small(), tokenizer=tokenizer)
    trainer = pl.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(adapter, data)
    assert adapter.call_plan.document_start == (tokenizer.eos_token_id if apart else None)
    assert [f.verdict for f in adapter.findings if f.name == "documents"] == ["ok" if apart else "note"]


def test_a_plain_trainer_refuses_a_tokenizer_larger_than_the_embedding(tmp_path: Any) -> None:
    tokenizer = CharacterLevelTokenizer(V + 40, texts=[chr(0x4E00 + n) for n in range(V + 40)])
    data = AdaptiveTokenizerDataModule(TEXTS, tokenizer, batch_size=4, max_length=T, cache_dir=tmp_path)
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(TokenizerError, match="beyond the model's embedding"):
        trainer.fit(UniversalModelAdapter(Masked(), tokenizer=tokenizer), data)


def test_a_packed_run_says_what_padding_would_have_cost(fit: Fit) -> None:
    result = fit(Masked(), dataset={"text": TEXTS}, tokenizer="char")
    said = next(f for f in manifest(result)["findings"] if f["name"] == "padding share")
    assert said["measured"].startswith("0.0%")
    assert "0.0% if each document were padded to 16" in said["reason"]
    longer = fit(
        Masked(), dataset={"text": [t[: 4 + n % 8] for n, t in enumerate(TEXTS)]}, tokenizer="char", name="two"
    )
    share = next(f for f in manifest(longer)["findings"] if f["name"] == "padding share")["reason"]
    assert 30 < float(share.split("text; ")[1].split("%")[0]) < 60
