"""Text in, labelled batches out: corpora, token cache, packed blocks, an order that is a function, the data module.

``AdaptiveTokenizerDataModule`` is imported at first use: it brings Lightning, which takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyformer.data.blocks import PackedBlocks, collate_blocks
from anyformer.data.cache import TokenCache, build_token_cache, default_cache_dir
from anyformer.data.corpus import PYTHON_STDLIB, Corpus, open_corpus
from anyformer.data.dataset_loader import DatasetLoader
from anyformer.data.order import EpochOrder
from anyformer.data.split import split_finding, train_texts

if TYPE_CHECKING:
    from anyformer.data.module import AdaptiveTokenizerDataModule

__all__ = [
    "PYTHON_STDLIB",
    "AdaptiveTokenizerDataModule",
    "Corpus",
    "DatasetLoader",
    "EpochOrder",
    "PackedBlocks",
    "TokenCache",
    "build_token_cache",
    "collate_blocks",
    "default_cache_dir",
    "open_corpus",
    "split_finding",
    "train_texts",
]


def __getattr__(name: str) -> Any:
    if name == "AdaptiveTokenizerDataModule":
        from anyformer.data.module import AdaptiveTokenizerDataModule

        return AdaptiveTokenizerDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
