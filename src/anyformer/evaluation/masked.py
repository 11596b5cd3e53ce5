"""How well a masked language model guesses hidden tokens, beside guesses that know almost nothing.

B batch, T time (one window), V vocabulary, N tokens of the text, M hidden ones.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from anyformer.core.errors import DataError
from anyformer.core.protocols import View
from anyformer.data.blocks import PackedBlocks
from anyformer.evaluation._mode import evaluating
from anyformer.evaluation.baselines import Tokens
from anyformer.evaluation.scoring import progress_of
from anyformer.models.masking import Masking, fixed_masked_batch
from anyformer.models.objectives import IGNORE_INDEX, batch_logits, objective_total
from anyformer.models.plan import CallPlan

_ID_BITS = 31  # a key is the first id · 2³¹ + the second: any id below 2³¹ fits into 62 bits
_WINDOW = 1 << 22  # pairs of the text looked at together


@dataclass(frozen=True)
class MaskedScores:
    """Every figure is over the same hidden tokens, which are the same at every evaluation."""

    loss: float
    """Mean cross-entropy, nats per hidden token."""
    accuracy: float
    """Share of the hidden tokens that were the model's first guess."""
    tokens: int
    """Hidden tokens counted, M."""
    unigram: float
    """−ln of how often the token occurs in this text, mean nats: the best that sees no context."""
    bigram: float
    """−ln of how often it follows the token before it in this text, mean nats: the best that sees only that token."""
    beats_unigram: bool
    beats_bigram: bool

    def to_dict(self) -> dict[str, float | int | bool]:
        """As JSON stores it."""
        return asdict(self)


def score_masked(
    module: nn.Module,
    plan: CallPlan,
    tokens: Tokens,
    masking: Masking,
    *,
    block_size: int,
    batch_size: int,
    device: torch.device | str,
    view: View | None = None,
) -> MaskedScores:
    """Hide 15 % of ``tokens`` (N,), in windows of ``block_size``, and let the model guess them.

    batch_size changes memory and speed, not the result. The module is moved to the device and stays there.
    Raises DataError for fewer than 2 tokens.
    """
    if len(tokens) < 2:
        raise DataError(f"the text to measure has {len(tokens)} tokens", "at least 2 are needed")
    target = torch.device(device)
    module.to(target)
    blocks = PackedBlocks(tokens, block_size, keep_tail=True)
    nats, counted, right, started = 0.0, 0, 0, time.monotonic()
    places: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(blocks), batch_size):
        numbers = range(start, min(start + batch_size, len(blocks)))
        batch = fixed_masked_batch(blocks.__getitems__(numbers).tensors, masking)
        places.append(_places(batch["labels"], numbers, blocks))
        batch = {name: tensor.to(target) for name, tensor in batch.items()}
        with evaluating(module):
            logits = batch_logits(module, plan, batch)
            batch_nats, batch_count = objective_total("masked", logits, batch["labels"])
        hidden = batch["labels"] != IGNORE_INDEX
        right += int((logits.argmax(-1)[hidden] == batch["labels"][hidden]).sum())
        nats += float(batch_nats)
        counted += int(batch_count)
        if view is not None:
            view.progress(progress_of(numbers.stop, len(blocks), nats / counted, time.monotonic() - started, "block"))
    unigram, bigram = count_guesses(tokens, np.concatenate(places))
    loss = nats / counted
    return MaskedScores(loss, right / counted, counted, unigram, bigram, loss < unigram, loss < bigram)


def _places(labels: torch.Tensor, numbers: range, blocks: PackedBlocks) -> npt.NDArray[np.int64]:
    """Where in the text the hidden tokens of these blocks stand."""
    last = max(0, blocks.count - blocks.block_size)
    rows, columns = np.nonzero((labels != IGNORE_INDEX).numpy())
    places: npt.NDArray[np.int64] = np.minimum(np.asarray(numbers) * blocks.block_size, last)[rows] + columns
    return places


def count_guesses(tokens: Tokens, places: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Mean nats of the tokens at ``places`` (M,) by counts of the whole text (N,): of tokens, and of pairs of them.

    The counts are the text's own, so no table of counts made elsewhere can do better on the whole of it. The text's
    first token follows nothing and is left out of the pairs. Memory grows with M, not with N.
    """
    N = len(tokens)
    counts = np.zeros(int(max(np.max(tokens[i : i + _WINDOW]) for i in range(0, N, _WINDOW))) + 1, dtype=np.int64)
    for i in range(0, N, _WINDOW):
        counts += np.bincount(tokens[i : i + _WINDOW], minlength=len(counts))
    unigram = float(np.mean(np.log(N / counts[np.asarray(tokens[places], dtype=np.int64)])))
    inner = places[places > 0]
    if not len(inner):
        return unigram, unigram
    wanted = _keys(tokens[inner - 1], tokens[inner])
    known, which = np.unique(wanted, return_inverse=True)
    pairs = np.zeros(len(known), dtype=np.int64)
    for i in range(0, N - 1, _WINDOW):
        end = min(i + _WINDOW, N - 1)
        keys = _keys(tokens[i:end], tokens[i + 1 : end + 1])
        found = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        pairs += np.bincount(found[known[found] == keys], minlength=len(known))
    first = counts.copy()
    first[int(tokens[N - 1])] -= 1  # nothing follows the last token
    before = first[np.asarray(tokens[inner - 1], dtype=np.int64)]
    return unigram, float(np.mean(np.log(before / pairs[which])))


def _keys(first: Tokens, second: Tokens) -> npt.NDArray[np.int64]:
    return (np.asarray(first, dtype=np.int64) << _ID_BITS) | np.asarray(second, dtype=np.int64)


def likeliest(module: nn.Module, plan: CallPlan, input_ids: torch.Tensor, place: int, k: int) -> list[int]:
    """The k likeliest ids at ``place`` of one row (1, T), likeliest first."""
    with evaluating(module):
        logits: Any = batch_logits(module, plan, {"input_ids": input_ids})[0, place]
    return [int(token) for token in logits.topk(min(k, logits.shape[-1])).indices]
