"""From a builder's export to a model that has learned: repair, then one epoch in a plain Lightning trainer."""

from __future__ import annotations

import argparse
import inspect
import optparse
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from anyformer import (
    AdaptiveTokenizerDataModule,
    CharacterLevelTokenizer,
    UniversalModelAdapter,
    infer_call_plan,
    load_model,
    repair,
)
from anyformer.core.errors import AnyformerError
from anyformer.evaluation.baselines import token_entropies
from anyformer.models.callplan import call_logits

# as the builder exports it: intermediates are parameters, residuals are never computed, the attention has no mask, and
# what forward returns names nothing
EXPORT = """
import torch
import torch.nn as nn


class CustomTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        # node: embedding_0
        self.embedding_0_token = nn.Embedding(256, 64)
        self.embedding_0_pos = nn.Embedding(64, 64)
        self.embedding_0_dropout = nn.Dropout(0.0)
        # node: mhsa_0
        self.mhsa_0 = nn.MultiheadAttention(embed_dim=64, num_heads=4, dropout=0.0, batch_first=True)
        # node: residual_0
        # node: layernorm_0
        self.layernorm_0 = nn.LayerNorm(64)
        # node: ffn_0
        self.ffn_0 = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Dropout(0.0), nn.Linear(256, 64), nn.Dropout(0.0))
        # node: residual_1
        # node: layernorm_1
        self.layernorm_1 = nn.LayerNorm(64)
        # node: output_0

    def forward(self, input_0_tokens, mhsa_0_output, residual_0_output, residual_1_output):
        positions = torch.arange(input_0_tokens.shape[1], device=input_0_tokens.device)
        x = self.embedding_0_token(input_0_tokens) + self.embedding_0_pos(positions)
        embedding_0_output = self.embedding_0_dropout(x)
        mhsa_0_output, _ = self.mhsa_0(embedding_0_output, embedding_0_output, embedding_0_output)
        layernorm_0_output = self.layernorm_0(residual_0_output)
        ffn_0_output = self.ffn_0(layernorm_0_output)
        layernorm_1_output = self.layernorm_1(residual_1_output)
        return output_0_logits
"""


def test_an_export_is_repaired_and_learns_more_than_token_pairs(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    (tmp_path / "model.py").write_text(EXPORT, "utf-8")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(inspect.getsource(optparse) + inspect.getsource(argparse), "utf-8")

    with pytest.raises(AnyformerError, match="anyformer repair"):
        infer_call_plan(load_model(tmp_path / "model.py").module)
    (tmp_path / "fixed.py").write_text(repair(tmp_path / "model.py").source, "utf-8")
    model = load_model(tmp_path / "fixed.py", seed=0).module

    tokenizer = CharacterLevelTokenizer(vocab_size=256, texts=[corpus.read_text("utf-8")])
    data = AdaptiveTokenizerDataModule(str(corpus), tokenizer, batch_size=3, max_length=48, val_split=0.3)
    adapter = UniversalModelAdapter(model, learning_rate=6e-3, warmup_steps=20, weight_decay=0.0)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(adapter, data)

    loss = float(trainer.callback_metrics["val_loss"])
    baselines = token_entropies(data.cache.val)
    assert loss < baselines.bigram < baselines.unigram
    # the figure is that of next tokens: the same by hand, on the first held-out block
    ids = torch.as_tensor(data.cache.val[:49].astype("int64"))[None]
    with torch.no_grad():
        logits = call_logits(model.eval(), adapter.call_plan, ids[:, :-1])
    by_hand = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:])
    assert abs(float(by_hand) - loss) < 1.0
    assert float(by_hand) > 0.3  # a copy of its input would be near 0
