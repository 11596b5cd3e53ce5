"""How the text of a run is made: the data opened, the tokenizer chosen, the token cache filled or examples encoded.

B batch, T time (source), S time (target).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn

from anyformer.core.errors import DataError, SettingsError
from anyformer.core.findings import Finding
from anyformer.core.protocols import View
from anyformer.core.settings import TrainSettings
from anyformer.data.corpus import PYTHON_STDLIB, Corpus, is_glob, open_corpus
from anyformer.data.examples import Kind, class_ids, fingerprint
from anyformer.data.hub import is_hub_name, named_reference
from anyformer.data.module import AdaptiveTokenizerDataModule, open_held_out, padding_saved
from anyformer.data.pairs import PairDataModule, encode_examples, padding_finding
from anyformer.data.quality import judge
from anyformer.data.split import train_texts
from anyformer.data.streamed import sides_of_stream
from anyformer.data.streaming import TextStream, is_stream, open_stream
from anyformer.models.plan import CallPlan, Objective
from anyformer.tokenization.bpe import BPETrainerConfig
from anyformer.tokenization.choose import check_fit, choose_tokenizer
from anyformer.training.effective import required_steps
from anyformer.training.examples import reads_padding, sides_of
from anyformer.training.objective import (
    NEEDED_TOKENS,
    WORDS,
    choose_masking,
    kept_for_padding,
    padding_notes,
    start_and_end,
)
from anyformer.training.streams import stream_notes
from anyformer.training.text import Text, show


def resolve_dataset(dataset: Any, dataset_path: str | Path | None, config_name: str | None) -> tuple[str, Any]:
    """(the ``data`` setting, the object to read instead of it or None) for the reference's three dataset arguments.

    A name that is no path here is taken for a dataset on the hub. Raises SettingsError where both a dataset and a path
    are given.
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
        here = dataset == PYTHON_STDLIB or is_glob(dataset) or Path(dataset).expanduser().exists()
        if here or not (config_name or is_hub_name(dataset)):
            return dataset, None
        return str(named_reference(dataset, config_name)), None  # opened where all data is
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
        stream=module.stream is not None,
        shuffle_buffer=module.shuffle_buffer,
    )


def prepare_text(
    settings: TrainSettings,
    plan: CallPlan,
    module: nn.Module,
    max_length: int,
    objective: Objective,
    *,
    dataset: Any = None,
    tokenizer: Any = None,
    datamodule: pl.LightningDataModule | None = None,
    model: str | None = None,
    view: View,
) -> Text:
    """Open the data, choose or train the tokenizer, fill the token cache or encode the examples.

    dataset: read instead of ``settings.data``. tokenizer: used as it is, if it fits the model. model: where it came
    from, if a tokenizer may lie there, too.
    Raises DataError, TokenizerError.
    """
    limit = id_limit(plan)
    if datamodule is not None:
        return _with_masking(_foreign(datamodule, tokenizer, limit, objective, view), plan, settings.seed, module)
    if settings.vocab_size is not None and settings.vocab_size > limit:
        raise SettingsError(
            f"vocab_size is {settings.vocab_size:,}, but the model takes {limit:,} ids",
            fix=f"--vocab_size {limit} or less, or a model with a larger vocabulary",
        )
    source = dataset if dataset is not None else settings.data
    streams = settings.stream or is_stream(source)
    if streams:
        required_steps(settings)  # before anything is read
    view.status("reading the data")
    if objective in ("seq2seq", "classification"):
        if streams:
            fix = "leave out --stream" if settings.stream else "give a table, a list or a datasets.Dataset"
            raise SettingsError(f"{WORDS[objective]} reads no stream: its examples are held in memory", fix=fix)
        return _pairs(settings, plan, module, max_length, objective, dataset, tokenizer, model, view)
    held_out = open_held_out(settings.val_data, settings.text_column) if settings.val_data is not None else None
    corpus: Corpus | TextStream
    texts: Callable[[], Iterable[str]]
    if streams:
        corpus = open_stream(source, settings.text_column)
        texts, quality = sides_of_stream(corpus, settings.val_split, held_out).training_texts, []
    else:
        corpus = whole = open_corpus(source, settings.text_column)
        texts = partial(train_texts, whole, settings.val_split, held_out)
        quality = judge(whole.scan.quality, whole.name, view) if whole.scan.quality is not None else []
    padding = kept_for_padding(module, plan)
    tokenizer, notes, seconds = _tokenizer(settings, tokenizer, limit, objective, padding, texts, model, view)
    blocks = AdaptiveTokenizerDataModule(
        corpus,
        tokenizer,
        settings.sequences,
        max_length,
        settings.val_split,
        settings.num_workers,
        val_dataset=held_out,
        seed=settings.seed,
        stream=streams,
        shuffle_buffer=settings.shuffle_buffer,
        view=view,
    )
    blocks.setup()
    if blocks.streamed is not None:
        quality = stream_notes(blocks.streamed, settings, corpus.name, view)
    notes = [*unused_settings(settings, objective), *corpus.findings, *quality, *notes]
    text = _described(blocks, corpus.name, corpus.description, tokenizer, seconds, notes, objective)
    text = _with_masking(text, plan, settings.seed, module)
    show(text, view)
    return text


def id_limit(plan: CallPlan) -> int:
    """How many ids a tokenizer may give: what every embedding and, where tokens are written, the logits can take.

    8,192 for a classifier whose embedding showed no limit.
    """
    rows = [plan.embedding_rows, plan.target_vocab]
    rows.append(plan.vocab_size if plan.family != "classifier" else None)
    return min((size for size in rows if size is not None), default=BPETrainerConfig().vocab_size)


def _tokenizer(
    settings: TrainSettings,
    tokenizer: Any,
    limit: int,
    objective: Objective,
    padding: int | None,
    texts: Callable[[], Iterable[str]],
    model: str | None,
    view: View,
) -> tuple[Any, list[Finding], float]:
    """The tokenizer given or chosen, its findings, and the seconds it took. padding: the model's own id for it."""
    begin = time.monotonic()
    if tokenizer is None:
        view.status("preparing the tokenizer")
        tokenizer, notes = choose_tokenizer(
            settings.tokenizer,
            settings.vocab_size or limit,
            texts,
            NEEDED_TOKENS[objective],
            padding=padding,
            model=model,
        )
    else:
        notes = check_fit(tokenizer, limit)
    return tokenizer, [*notes, *padding_notes(tokenizer, padding)], time.monotonic() - begin


def _with_masking(text: Text, plan: CallPlan, seed: int, module: nn.Module) -> Text:
    if text.objective != "masked" or text.tokenizer is None:
        return text
    masking, notes = choose_masking(text.tokenizer, plan, seed, module)
    return replace(text, masking=masking, findings=(*text.findings, *notes))


def unused_settings(settings: TrainSettings, objective: Objective) -> list[Finding]:
    """A warning for every column or file that was named and that this objective does not read."""
    reads: dict[str, tuple[Objective, ...]] = {
        "label_column": ("classification",),
        "source_column": ("seq2seq",),
        "target_column": ("seq2seq",),
        "target_data": ("seq2seq",),
    }
    named = {
        "label_column": settings.label_column,
        "source_column": settings.source_column,
        "target_column": settings.target_column,
        "target_data": settings.target_data,
    }
    return [
        Finding(name.replace("_", " "), "warn", f"{value!r} is not used", reason=f"the objective is {objective}")
        for name, value in named.items()
        if value is not None and objective not in reads[name]
    ]


def _pairs(
    settings: TrainSettings,
    plan: CallPlan,
    module: nn.Module,
    max_length: int,
    objective: Kind,
    dataset: Any,
    tokenizer: Any,
    model: str | None,
    view: View,
) -> Text:
    """Examples of two parts: a text and its class, or a text to read and one to write."""
    data = dataset if dataset is not None else settings.data
    train, val, notes = sides_of(data, settings, objective)
    notes += judge(train.quality, train.name, view) if train.quality is not None else []
    classes: tuple[str, ...] = ()
    limit = id_limit(plan)
    both = (*train.first, *(train.second if objective == "seq2seq" else ()))
    padding = kept_for_padding(module, plan)
    tokenizer, chosen, seconds = _tokenizer(settings, tokenizer, limit, objective, padding, lambda: both, model, view)
    if objective == "classification":
        classes, named = class_ids(train, val, plan.vocab_size)
        notes += named
    start_end = start_and_end(tokenizer, limit) if objective == "seq2seq" else None
    view.status("encoding the examples")
    (to_train, train_facts, train_cut), (to_val, val_facts, val_cut) = [
        encode_examples(side, tokenizer, max_length, classes=classes, start_end=start_end, pad_to=plan.only_length)
        for side in (train, val)
    ]
    exact, why = reads_padding(module, plan, to_train)
    share = padding_finding(to_train, settings.sequences, exact)
    text = Text(
        name=train.name,
        description=train.description,
        tokenizer=tokenizer,
        tokenizer_seconds=seconds,
        datamodule=PairDataModule(
            to_train,
            to_val,
            settings.sequences,
            settings.num_workers,
            exact=exact,
            seed=settings.seed,
            classes=classes,
            start_end=start_end,
        ),
        train_batches=0,
        val_blocks=len(to_val),
        held_out=None,
        held_out_bytes=val_facts["bytes"],
        fingerprint=fingerprint(train, val),
        splits={"train": train_facts, "val": val_facts},
        findings=(*unused_settings(settings, objective), *notes, *chosen, *train_cut, *val_cut, why, share),
        objective=objective,
    )
    text = replace(text, train_batches=len(text.datamodule.train_dataloader()))
    show(text, view)
    return text


def _described(
    module: AdaptiveTokenizerDataModule,
    name: str,
    description: str,
    tokenizer: Any,
    seconds: float,
    findings: list[Finding],
    objective: Objective,
) -> Text:
    read = module.streamed
    if read is not None:
        return Text(
            name=name,
            description=description,
            tokenizer=tokenizer,
            tokenizer_seconds=seconds,
            datamodule=module,
            train_batches=None,
            val_blocks=module.val_blocks,
            held_out=read.val,
            held_out_bytes=read.val_facts["bytes"],
            fingerprint=read.fingerprint,
            splits={"val": read.val_facts},
            findings=(*findings, *read.findings),
            objective=objective,
        )
    cache = module.cache
    return Text(
        name=name,
        description=description,
        tokenizer=tokenizer,
        tokenizer_seconds=seconds,
        datamodule=module,
        train_batches=_batches(module.train_dataloader(), name),
        val_blocks=module.val_blocks,
        held_out=cache.val,
        held_out_bytes=cache.meta["val"]["bytes"],
        fingerprint=cache.meta["fingerprint"],
        splits={side: dict(cache.meta[side]) for side in ("train", "val")},
        findings=(*findings, *cache.findings, *padding_saved(module)),
        objective=objective,
    )


def _foreign(datamodule: pl.LightningDataModule, tokenizer: Any, limit: int, objective: Objective, view: View) -> Text:
    """A datamodule given by the caller: ours with its cache, any other as batches only."""
    if isinstance(datamodule, AdaptiveTokenizerDataModule):
        datamodule.told = True  # below, with the tokenizer
        datamodule.setup()
        corpus = datamodule.corpus
        tokenizer = datamodule.tokenizer
        notes = check_fit(tokenizer, limit)
        if objective not in ("causal", "masked"):
            raise DataError(f"{corpus.name} is plain text; {WORDS[objective]} needs examples of two parts")
        notes = [*corpus.findings, *notes]
        text = _described(datamodule, corpus.name, corpus.description, tokenizer, 0.0, notes, objective)
        show(text, view)
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
        objective=objective,
    )


def _batches(loader: Any, name: str) -> int:
    try:
        count = len(loader)
    except TypeError as error:
        raise DataError(f"a loader of {name} has no length", str(error), "give it a dataset with a length") from error
    if not count:
        raise DataError(f"a loader of {name} is empty", "both training and held-out batches are needed")
    return count
