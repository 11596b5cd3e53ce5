"""Text → batches for Lightning: tokens cached once, blocks without padding, an order that can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only

from anyformer.core.errors import DataError
from anyformer.core.findings import Finding
from anyformer.core.protocols import View
from anyformer.core.view import PlainView
from anyformer.data.blocks import PackedBlocks, collate_blocks
from anyformer.data.cache import TokenCache, Tokens, build_token_cache
from anyformer.data.corpus import Corpus, open_corpus
from anyformer.data.loader import EpochBatches, ResumableLoader, align_progress, consumed_by, trained_by
from anyformer.data.order import EpochOrder
from anyformer.data.quality import judge
from anyformer.data.shares import ListedBatches, SharedLoader, place_of
from anyformer.data.streamblocks import SHUFFLE_BUFFER, StreamLoader
from anyformer.data.streamed import Streamed, sides_of_stream, streamed
from anyformer.data.streaming import TextStream, is_stream, open_stream

_LEAST_BLOCKS = 2
_MEASURED = 1 << 20  # tokens
_SHORTEST_ADVISED = 8  # tokens; a shorter context is no way out


class AdaptiveTokenizerDataModule(pl.LightningDataModule):
    """Batches {"input_ids", "attention_mask", "labels"}, int64 (B, T), for ``trainer.fit(model, datamodule)``.

    "next_ids", int64 (B,), is the token after each row: the last position's target, for those who use it.

    dataset: a path, "python-stdlib", a list of strings, a datasets.Dataset, or a Corpus; val_dataset likewise, held
    out instead of ``val_split`` of the dataset. tokenizer: any Hugging Face tokenizer. max_length: T, tokens.
    val_limit: evaluate on this many held-out blocks, spread evenly over the text; on all where not given.
    stream: read the dataset as it comes, without a token cache: anything that can be iterated again. A function that
    returns an iterator of texts, and an IterableDataset (of datasets or of torch), are read so anyway.
    shuffle_buffer: blocks of a stream that are shuffled together.
    A mid-epoch checkpoint resumes with the very next batch, whatever num_workers was or is.
    batch_size: rows of one batch; several processes divide each among them, so that they train on what one would.
    Raises DataError for data that cannot be used, or with fewer than 2 blocks to train on.
    """

    def __init__(
        self,
        dataset: Any,
        tokenizer: Any,
        batch_size: int = 16,
        max_length: int = 512,
        val_split: float = 0.1,
        num_workers: int = 0,
        *,
        val_dataset: Any = None,
        text_column: str | None = None,
        seed: int = 42,
        cache_dir: str | Path | None = None,
        val_limit: int | None = None,
        stream: bool = False,
        shuffle_buffer: int = SHUFFLE_BUFFER,
        view: View | None = None,
    ) -> None:
        super().__init__()
        sizes = (batch_size, max_length, num_workers)
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in sizes)
        if not whole or batch_size < 1 or max_length < 2 or num_workers < 0:
            raise DataError(
                f"batch_size {batch_size!r}, max_length {max_length!r}, num_workers {num_workers!r} cannot be used",
                detail="they must be whole numbers, at least 1, 2 and 0",
            )
        self.stream = open_stream(dataset, text_column) if stream or is_stream(dataset) else None
        self.corpus: Corpus | TextStream = self.stream or open_corpus(dataset, text_column)
        self.val_corpus = open_held_out(val_dataset, text_column)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.max_length = max_length
        self.val_split = val_split
        self.num_workers = num_workers
        self.seed = seed
        self.val_limit = val_limit
        self.shuffle_buffer = shuffle_buffer
        self._cache_dir = cache_dir
        self._view = view
        self.told = view is not None
        """Whether somebody says what was read; otherwise ``setup`` does, once."""
        self._cache: TokenCache | None = None
        self._streamed: Streamed | None = None
        self._stream_loader: StreamLoader | None = None
        self._stream_state: dict[str, Any] | None = None
        self.stream_epochs = 0
        """Epochs of a stream that were read to their end."""

    @property
    def cache(self) -> TokenCache:
        """The tokens; built at the first use. DataError for a stream, which has no cache."""
        if not isinstance(self.corpus, Corpus):
            raise DataError(
                f"{self.corpus.name} is a stream: its tokens are not kept", fix="held_out has a part of them"
            )
        if self._cache is None:
            self._cache = build_token_cache(
                self.corpus,
                self.tokenizer,
                val_split=self.val_split,
                val_corpus=self.val_corpus,
                cache_dir=self._cache_dir,
                view=self._view,
            )
        return self._cache

    @property
    def streamed(self) -> Streamed | None:
        """What is read of a stream, its held-out part at the first use; None for what is cached."""
        if self._streamed is None and self.stream is not None:
            self._streamed = streamed(
                sides_of_stream(self.stream, self.val_split, self.val_corpus),
                self.tokenizer,
                block_size=self.max_length,
                seed=self.seed,
                shuffle_buffer=self.shuffle_buffer,
                val_corpus=self.val_corpus,
                cache_dir=self._cache_dir,
                view=self._view,
            )
        return self._streamed

    @property
    def held_out(self) -> Tokens:
        """Held-out tokens, 1-D."""
        return self.streamed.val if self.streamed is not None else self.cache.val

    @property
    def document_end(self) -> int | None:
        """Id that ends a document; None for one text, or where the tokenizer has none."""
        end = None if self.corpus.single_text else self.tokenizer.eos_token_id
        return None if end is None else int(end)

    def prepare_data(self) -> None:
        """Fill the token cache (Lightning calls this in one process only)."""
        if self.stream is None:
            self._check(self.cache)

    def setup(self, stage: str | None = None) -> None:
        """Open the token cache, or look at the stream, and check that it can be trained on."""
        if self.stream is None:
            self._check(self.cache)
        self._check_held_out()
        if not self.told and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self.told = True
            self._tell(PlainView())

    def _tell(self, view: View) -> None:
        """What was read and how, for those who have no view of their own."""
        read = self.streamed
        size = "read as it comes" if read is not None else f"{len(self.cache.train) + len(self.cache.val):,} tokens"
        view.stage("data", self.corpus.name, f"{self.corpus.description} → {size}")
        found = read.findings if read is not None else (*self.cache.findings, *padding_saved(self))
        whole = self.corpus.scan.quality if isinstance(self.corpus, Corpus) else None
        quality = read.quality if read is not None else whole
        judged = judge(quality, self.corpus.name, view) if quality is not None else []
        for finding in (*self.corpus.findings, *found, *judged, *self._shared_blocks()):
            if finding.verdict != "ok" and finding.name != "encoder":
                view.finding(finding)

    def _shared_blocks(self) -> list[Finding]:
        """For a module of somebody's own, which cannot be told where a document begins."""
        trained: Any = self.trainer.lightning_module if self.trainer is not None else None
        if self.document_end is None or hasattr(trained, "call_plan"):
            return []
        why = "a module of your own reads on from one to the next; UniversalModelAdapter keeps them apart where it can"
        return [Finding("documents", "note", "several may share a block", reason=why)]

    def _check(self, cache: TokenCache) -> None:
        tokens = len(cache.train)
        if len(PackedBlocks(cache.train, self.max_length)) < _LEAST_BLOCKS:
            needed = _LEAST_BLOCKS * self.max_length + 1
            fits = (tokens - 1) // _LEAST_BLOCKS
            raise DataError(
                f"{self.corpus.name} is too short to train on: {tokens:,} tokens in blocks of {self.max_length:,}",
                detail=f"at least {_LEAST_BLOCKS} blocks, {needed:,} tokens, are needed",
                fix="give more text" + (f", or a max_length of at most {fits:,}" if fits >= _SHORTEST_ADVISED else ""),
            )

    def _check_held_out(self) -> None:
        if 0 < len(self.held_out) < 2:
            raise DataError(
                f"the held-out text is too short: {len(self.held_out)} token",
                fix="a larger val_split, or held-out text of its own (--val_data FILE)",
            )

    def train_dataloader(self) -> ResumableLoader | StreamLoader:
        """Blocks in the epoch's order; the last batch may be smaller."""
        if self.streamed is not None:
            return self._loader_of(self.streamed)
        blocks = PackedBlocks(self.cache.train, self.max_length)
        trainer: Any = self.trainer
        batches = EpochBatches(
            EpochOrder(len(blocks), self.seed),
            self.batch_size,
            # "processed": Lightning's current_epoch lags behind it after a checkpoint at the end of an epoch
            epoch=trainer.fit_loop.epoch_progress.current.processed if trainer is not None else 0,
            **place_of(trainer),
        )
        return ResumableLoader(
            blocks,
            batches,
            num_workers=self.num_workers,
            pin_memory=self._pins(),
            consumed=lambda: consumed_by(self.trainer, batches),
            align=lambda done: align_progress(self.trainer, done),
        )

    def val_dataloader(self) -> SharedLoader | list[Any]:
        """The held-out blocks in order; every token after the first is a target exactly once (without val_limit)."""
        count = self.val_blocks
        if count == 0:
            return []  # val_split 0: Lightning skips validation
        kept = count if self.val_limit is None else min(self.val_limit, count)
        # the first blocks alone would be the first documents alone
        chosen = [count * i // kept for i in range(kept)]
        batches = [chosen[i : i + self.batch_size] for i in range(0, kept, self.batch_size)]
        return SharedLoader(
            PackedBlocks(self.held_out, self.max_length, keep_tail=True),
            ListedBatches(batches, **place_of(self.trainer)),
            collate_fn=collate_blocks,
            num_workers=self.num_workers,
            pin_memory=self._pins(),
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator().manual_seed(0),  # of its own, as the training loader's
        )

    @property
    def val_blocks(self) -> int:
        """Held-out blocks in all."""
        return len(PackedBlocks(self.held_out, self.max_length, keep_tail=True))

    def state_dict(self) -> dict[str, Any]:
        """The place in a stream. The loader says it, too, but Lightning hands that back within an epoch only."""
        return {"stream": self._stream_loader.state_dict()} if self._stream_loader is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next training loader of a stream begin where ``state_dict`` was taken."""
        self._stream_state = state_dict.get("stream")

    def _loader_of(self, read: Streamed) -> StreamLoader:
        trainer: Any = self.trainer

        def ended(epoch: int) -> None:
            if trainer is None:
                return
            self.stream_epochs = epoch
            if self._view is not None and trainer.global_rank == 0:
                self._view.line(f"  {self.corpus.name} has ended: epoch {epoch + 1} begins, in another order")

        loader = StreamLoader(
            read.blocks,
            self.batch_size,
            **place_of(trainer),
            ahead=self.num_workers > 0,
            pin_memory=self._pins(),
            trained=lambda: None if trainer is None else trained_by(trainer),
            on_epoch=ended,
        )
        if trainer is not None:
            self._stream_loader = loader
            if self._stream_state is not None:
                loader.load_state_dict(self._stream_state)
                self._stream_state = None
        return loader

    def _pins(self) -> bool:
        """Pinned memory speeds the copy to a CUDA device and is of no use elsewhere."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def padding_saved(module: AdaptiveTokenizerDataModule) -> list[Finding]:
    """What share of the tokens would be padding, were every document a row; measured on the first million tokens."""
    end = module.document_end
    tokens = np.asarray(module.cache.train[:_MEASURED])
    ends = np.flatnonzero(tokens == end) + 1 if end is not None else np.empty(0, dtype=np.int64)
    if len(ends) < 2:
        return []
    lengths = np.minimum(np.diff(ends, prepend=0), module.max_length)
    share = 1 - lengths.sum() / (len(lengths) * module.max_length)
    why = f"blocks are cut from running text; {share:.1%} if each document were padded to {module.max_length:,} tokens"
    return [Finding("padding share", "note", "0.0% of the tokens in a batch", reason=why)]


def open_held_out(val_dataset: Any, text_column: str | None) -> Corpus | None:
    """The corpus of held-out text, None where none is given. Raises as ``open_corpus``."""
    return open_corpus(val_dataset, text_column) if val_dataset is not None else None
