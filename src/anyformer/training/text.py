"""The text of a run: tokenizer, token cache, loaders, and the facts about them that the manifest keeps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from anyformer.core.errors import DataError, SettingsError
from anyformer.core.findings import Finding
from anyformer.core.protocols import View
from anyformer.core.settings import TrainSettings
from anyformer.core.view import count
from anyformer.data.cache import Tokens
from anyformer.data.corpus import PYTHON_STDLIB, open_corpus
from anyformer.data.hub import load_hub_dataset
from anyformer.data.module import AdaptiveTokenizerDataModule, open_held_out
from anyformer.data.split import train_texts
from anyformer.models.callplan import CallPlan
from anyformer.tokenization.choose import check_fit, choose_tokenizer


@dataclass(frozen=True)
class Text:
    """Tokenized text with its loaders."""

    name: str
    description: str
    tokenizer: Any
    """None only where a foreign datamodule came without one."""
    tokenizer_seconds: float
    datamodule: pl.LightningDataModule
    train_batches: int
    val_blocks: int
    held_out: Tokens | None
    """All held-out tokens, 1-D; None for a foreign datamodule."""
    held_out_bytes: int
    fingerprint: str | None
    splits: dict[str, dict[str, int]]
    """"train" and "val": documents, bytes, tokens."""
    findings: tuple[Finding, ...]

    def first_ids(self) -> Tensor:
        """Ids of the first training batch, (B, T)."""
        batch = next(iter(self.datamodule.train_dataloader()), None)
        if not isinstance(batch, Mapping) or not {"input_ids", "labels"} <= batch.keys():
            found = f"{type(batch).__name__}" + (
                f" with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
            )
            raise DataError(
                f"{self.name} gives batches that cannot be trained on: {found if batch is not None else 'none at all'}",
                "expected: a dictionary with input_ids and labels (unshifted, −100 ignored), int64 (B, T)",
                "let its collate_fn return such a dictionary",
            )
        ids: Tensor = batch["input_ids"]
        return ids

    def limit_evaluation(self, blocks: int) -> None:
        """Evaluate on this many held-out blocks during training; a foreign datamodule decides for itself."""
        if isinstance(self.datamodule, AdaptiveTokenizerDataModule):
            self.datamodule.val_limit = blocks


def resolve_dataset(dataset: Any, dataset_path: str | Path | None, config_name: str | None) -> tuple[str, Any]:
    """(the ``data`` setting, the object to read instead of it or None) for the reference's three dataset arguments.

    Raises SettingsError where both a dataset and a path are given, DataNotFound where a hub dataset cannot be had.
    """
    if dataset is not None and dataset_path is not None:
        raise SettingsError("dataset and dataset_path are both given", fix="give one of them")
    if dataset_path is not None:
        return str(dataset_path), None
    if dataset is None:
        return PYTHON_STDLIB, None
    if isinstance(dataset, Path):
        return str(dataset), None
    if isinstance(dataset, str):
        if config_name is None or dataset == PYTHON_STDLIB or Path(dataset).expanduser().exists():
            return dataset, None
        return f"{dataset}/{config_name}", load_hub_dataset(dataset, config_name)
    return f"<{type(dataset).__name__}>", dataset


def settings_of_module(settings: TrainSettings, module: AdaptiveTokenizerDataModule) -> TrainSettings:
    """The settings with what a data module of ours decides already, so that the record is true."""
    return replace(
        settings,
        data=module.corpus.name,
        batch_size=module.batch_size,
        max_length=module.max_length,
        val_split=module.val_split,
        num_workers=module.num_workers,
    )


def prepare_text(
    settings: TrainSettings,
    plan: CallPlan,
    max_length: int,
    *,
    dataset: Any = None,
    tokenizer: Any = None,
    datamodule: pl.LightningDataModule | None = None,
    view: View,
) -> Text:
    """Open the data, choose or train the tokenizer, fill the token cache.

    dataset: read instead of ``settings.data``. tokenizer: used as it is, if it fits the model.
    Raises DataError, TokenizerError.
    """
    limit = min(plan.vocab_size, plan.embedding_rows or plan.vocab_size)
    if datamodule is not None:
        return _foreign(datamodule, tokenizer, limit, view)
    if settings.vocab_size is not None and settings.vocab_size > limit:
        raise SettingsError(
            f"vocab_size is {settings.vocab_size:,}, but the model takes {limit:,} ids",
            fix=f"--vocab_size {limit} or less, or a model with a larger vocabulary",
        )
    view.status("reading the data")
    corpus = open_corpus(dataset if dataset is not None else settings.data, settings.text_column)
    held_out = open_held_out(settings.val_data, settings.text_column) if settings.val_data is not None else None
    begin = time.monotonic()
    if tokenizer is None:
        view.status("preparing the tokenizer")
        tokenizer, notes = choose_tokenizer(
            settings.tokenizer,
            settings.vocab_size or limit,
            lambda: train_texts(corpus, settings.val_split, held_out),
        )
    else:
        notes = check_fit(tokenizer, limit)
    seconds = time.monotonic() - begin
    module = AdaptiveTokenizerDataModule(
        corpus,
        tokenizer,
        settings.batch_size,
        max_length,
        settings.val_split,
        settings.num_workers,
        val_dataset=held_out,
        seed=settings.seed,
        view=view,
    )
    module.setup()
    text = _described(module, corpus.name, corpus.description, tokenizer, seconds, [*corpus.findings, *notes])
    _show(text, view)
    return text


def _described(
    module: AdaptiveTokenizerDataModule,
    name: str,
    description: str,
    tokenizer: Any,
    seconds: float,
    findings: list[Finding],
) -> Text:
    cache = module.cache
    return Text(
        name=name,
        description=description,
        tokenizer=tokenizer,
        tokenizer_seconds=seconds,
        datamodule=module,
        train_batches=len(module.train_dataloader()),
        val_blocks=module.val_blocks,
        held_out=cache.val,
        held_out_bytes=cache.meta["val"]["bytes"],
        fingerprint=cache.meta["fingerprint"],
        splits={side: dict(cache.meta[side]) for side in ("train", "val")},
        findings=(*findings, *cache.findings),
    )


def _foreign(datamodule: pl.LightningDataModule, tokenizer: Any, limit: int, view: View) -> Text:
    """A datamodule given by the caller: ours with its cache, any other as batches only."""
    if isinstance(datamodule, AdaptiveTokenizerDataModule):
        datamodule.setup()
        corpus = datamodule.corpus
        tokenizer = datamodule.tokenizer
        notes = check_fit(tokenizer, limit)
        text = _described(datamodule, corpus.name, corpus.description, tokenizer, 0.0, [*corpus.findings, *notes])
        _show(text, view)
        return text
    datamodule.prepare_data()
    datamodule.setup("fit")
    name = type(datamodule).__name__
    return Text(
        name=name,
        description="batches from a datamodule of the caller",
        tokenizer=tokenizer,
        tokenizer_seconds=0.0,
        datamodule=datamodule,
        train_batches=_batches(datamodule.train_dataloader(), name),
        val_blocks=_batches(datamodule.val_dataloader(), name),
        held_out=None,
        held_out_bytes=0,
        fingerprint=None,
        splits={},
        findings=(Finding("data", "note", name, reason="baselines need the tokens, which only its batches hold"),),
    )


def _batches(loader: Any, name: str) -> int:
    try:
        count = len(loader)
    except TypeError as error:
        raise DataError(f"a loader of {name} has no length", str(error), "give it a dataset with a length") from error
    if not count:
        raise DataError(f"a loader of {name} is empty", "both training and held-out batches are needed")
    return count


def _show(text: Text, view: View) -> None:
    train, val = text.splits["train"], text.splits["val"]
    tokens = f"{count(train['tokens'] + val['tokens'])} tokens"
    held_out = next((finding.measured for finding in text.findings if finding.name == "held out"), "")
    if held_out.startswith("documents"):
        held_out = f"{val['documents']:,} of {train['documents'] + val['documents']:,} documents"
    view.stage("data", text.name, f"{text.description} → {tokens} · held out: {held_out}, which it never sees")
    kind = "characters" if "Character" in type(text.tokenizer).__name__ else "tokenizer"
    choice = next((finding for finding in text.findings if finding.name == "tokenizer"), None)
    for finding in text.findings:
        if finding.verdict == "warn" or finding.name in ("text column", "files skipped"):
            view.finding(finding)  # what is left out must not be found out later
    measured = choice.measured if choice else f"{len(text.tokenizer):,} entries, {kind} as given"
    view.stage("tokenizer", measured, f"ready in {text.tokenizer_seconds:.1f} s")


def text_facts(text: Text) -> dict[str, Any]:
    """ "data" and "tokenizer" as the manifest holds them."""
    choice = next((finding.measured for finding in text.findings if finding.name == "tokenizer"), "given")
    kind = "bpe" if "BPE" in choice else "char" if choice.startswith("characters") else "file"
    return {
        "data": {
            "name": text.name,
            "description": text.description,
            "fingerprint": text.fingerprint,
            **text.splits,
        },
        "tokenizer": {
            "kind": kind,
            "size": len(text.tokenizer) if text.tokenizer is not None else None,
            "seconds": text.tokenizer_seconds,
        },
    }
