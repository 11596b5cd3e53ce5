"""The text of a run: tokenizer, loaders, and the facts about them that are shown and that the manifest keeps.

B batch, T time (source), S time (target).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl

from anyformer.core.errors import DataError
from anyformer.core.findings import Finding
from anyformer.core.protocols import View
from anyformer.core.view import count
from anyformer.data.cache import Tokens
from anyformer.data.module import AdaptiveTokenizerDataModule
from anyformer.data.pairs import PairDataModule
from anyformer.models.masking import Masking
from anyformer.models.plan import Objective
from anyformer.training.objective import require_labels

_OF_TOKENIZER = ("tokenizer size", "unused ids", "unknown characters", "separators")
_TOLD = (
    *(
        "dataset",
        "configuration",
        "layout",
        "text column",
        "files skipped",
        "label column",
        "columns",
        "classes",
        "long examples",
        "padding",
        "padding share",
        "stream",
        "place in the stream",
        "reading ahead",
    ),
    "data quality",
)
"""Findings on the data that are shown when it is read."""
_EXPECTED: dict[Objective, str] = {
    "causal": "expected: a dictionary with input_ids and labels (unshifted, −100 ignored), int64 (B, T)",
    "masked": "expected: a dictionary with input_ids and labels (−100 ignored), int64 (B, T)",
    "seq2seq": "expected: a dictionary with input_ids (B, T), target_ids and labels (unshifted, −100 ignored) (B, S)",
    "classification": "expected: a dictionary with input_ids (B, T) and labels (B,), int64",
}


@dataclass(frozen=True)
class Text:
    """Tokenized text with its loaders."""

    name: str
    description: str
    tokenizer: Any
    """None only where a foreign datamodule came without one."""
    tokenizer_seconds: float
    datamodule: pl.LightningDataModule
    train_batches: int | None
    """In an epoch; None for a stream, whose length is not known."""
    val_blocks: int
    held_out: Tokens | None
    """All held-out tokens, 1-D; None for a foreign datamodule."""
    held_out_bytes: int
    fingerprint: str | None
    splits: dict[str, dict[str, int]]
    """"train" and "val": documents, bytes, tokens; of a stream "val" alone."""
    findings: tuple[Finding, ...]
    objective: Objective = "causal"
    masking: Masking | None = None
    """How tokens are hidden, for masked language modelling."""

    @property
    def document_end(self) -> int | None:
        """Id that ends a document in running text of many."""
        return self.datamodule.document_end if isinstance(self.datamodule, AdaptiveTokenizerDataModule) else None

    @property
    def pairs(self) -> PairDataModule | None:
        """The examples of classification or sequence-to-sequence, where it is these."""
        return self.datamodule if isinstance(self.datamodule, PairDataModule) else None

    def first_batch(self) -> dict[str, Any]:
        """The first training batch."""
        batch = next(iter(self.datamodule.train_dataloader()), None)
        needed = {"input_ids", "labels"} | ({"target_ids"} if self.objective == "seq2seq" else set())
        if not isinstance(batch, Mapping) or not needed <= batch.keys():
            found = f"{type(batch).__name__}" + (
                f" with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
            )
            raise DataError(
                f"{self.name} gives batches that cannot be trained on: {found if batch is not None else 'none at all'}",
                _EXPECTED[self.objective],
                "let its collate_fn return such a dictionary",
            )
        require_labels(batch, self.objective)
        return dict(batch)

    def limit_evaluation(self, blocks: int) -> None:
        """Evaluate on this many held-out blocks during training; a foreign datamodule decides for itself."""
        if isinstance(self.datamodule, AdaptiveTokenizerDataModule | PairDataModule):
            self.datamodule.val_limit = blocks


def show(text: Text, view: View) -> None:
    train, val = text.splits.get("train"), text.splits["val"]
    tokens = "read as it comes" if train is None else f"{count(train['tokens'] + val['tokens'])} tokens"
    held_out = next((finding.measured for finding in text.findings if finding.name == "held out"), "")
    if train is not None and held_out.startswith(("documents", "examples")):
        kind = held_out.split()[0]
        held_out = f"{val['documents']:,} of {train['documents'] + val['documents']:,} {kind}"
    view.stage("data", text.name, f"{text.description} → {tokens} · held out: {held_out}, which it never sees")
    kind = "characters" if "Character" in type(text.tokenizer).__name__ else "tokenizer"
    choice = next((finding for finding in text.findings if finding.name == "tokenizer"), None)
    for finding in text.findings:
        if finding.verdict == "warn" or (finding.name in _TOLD and finding.verdict != "ok"):
            view.finding(finding)  # what is left out must not be found out later
    measured = choice.measured if choice else f"{len(text.tokenizer):,} entries, {kind} as given"
    view.stage("tokenizer", measured, f"ready in {text.tokenizer_seconds:.1f} s")
    if choice is not None and choice.reason:
        view.line(f"  · {choice.reason}")
    for finding in text.findings:
        if finding.name in _OF_TOKENIZER and finding.verdict == "note":
            view.finding(finding)


def text_facts(text: Text) -> dict[str, Any]:
    """ "data" and "tokenizer" as the manifest holds them."""
    choice = next((finding.measured for finding in text.findings if finding.name == "tokenizer"), "given")
    kind = "bpe" if "BPE" in choice else "char" if choice.startswith("characters") else "file"
    if " from hf:" in choice:
        kind = "pretrained"
    return {
        "data": {
            "name": text.name,
            "description": text.description,
            "fingerprint": text.fingerprint,
            **text.splits,
            **({"classes": list(text.pairs.classes)} if text.pairs is not None and text.pairs.classes else {}),
        },
        "tokenizer": {
            "kind": kind,
            "size": len(text.tokenizer) if text.tokenizer is not None else None,
            "seconds": text.tokenizer_seconds,
        },
    }
