"""Held-out loss of a model on a row of tokens, beside the baselines measured on the same tokens.

B batch, T time (one window), V vocabulary.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from anyformer.core.errors import DataError
from anyformer.core.protocols import Progress, View
from anyformer.data.blocks import PackedBlocks
from anyformer.evaluation._mode import evaluating
from anyformer.evaluation.baselines import Tokens, token_entropies
from anyformer.models.callplan import CallPlan, call_logits
from anyformer.models.objectives import causal_lm_total


@dataclass(frozen=True)
class Scores:
    """How well a model predicts a text; every figure is over the same targets."""

    loss: float
    """Mean cross-entropy, nats per token."""
    perplexity: float
    """exp(loss); infinite where that overflows."""
    bits_per_byte: float
    """All nats / ln 2 / bytes of the text: comparable between tokenizers."""
    tokens: int
    """Targets counted: every token but the first."""
    unigram: float
    """Entropy of single tokens on this text, nats per token."""
    bigram: float
    """Entropy of a token given the one before it on this text, nats per token."""
    beats_bigram: bool
    """The loss is below the bigram entropy: the model uses more than the previous token."""

    def to_dict(self) -> dict[str, float | int | bool]:
        """As JSON stores it."""
        return asdict(self)


def score_tokens(
    module: nn.Module,
    plan: CallPlan,
    tokens: Tokens,
    *,
    block_size: int,
    batch_size: int,
    device: torch.device | str,
    bytes_total: int,
    view: View | None = None,
) -> Scores:
    """Score ``tokens`` (N,): each of the N − 1 tokens after the first is a target exactly once.

    block_size: tokens in one window, T; the last window overlaps the one before, so that its tokens have context, too.
    batch_size: windows in one forward pass; changes memory and speed, not the result.
    device: where it runs; the module is moved there and stays there. Its modes are left as they were.
    bytes_total: bytes of the text that ``tokens`` encode (UTF-8).
    Raises DataError for fewer than 2 tokens or no bytes.
    """
    if block_size < 2:
        raise ValueError(f"block_size is {block_size}; a window needs 2 tokens to predict one from another")
    if bytes_total <= 0:
        raise DataError(f"the text to score has {bytes_total} bytes", detail="bits per byte need at least one")
    baselines = token_entropies(tokens)
    target = torch.device(device)
    module.to(target)
    nats, counted, started = 0.0, 0, time.monotonic()
    blocks = PackedBlocks(tokens, block_size, keep_tail=True)
    for start in range(0, len(blocks), batch_size):
        batch = blocks.__getitems__(range(start, min(start + batch_size, len(blocks)))).tensors
        ids, labels, next_ids = (batch[name].to(target) for name in ("input_ids", "labels", "next_ids"))
        with evaluating(module):
            batch_nats, batch_count = causal_lm_total(call_logits(module, plan, ids), labels, next_ids)
        nats += float(batch_nats)
        counted += int(batch_count)
        if view is not None:
            view.progress(progress_of(counted, len(tokens) - 1, nats / counted, time.monotonic() - started))
    loss = nats / counted
    return Scores(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,  # exp overflows float64 at 709.8
        bits_per_byte=nats / math.log(2) / bytes_total,
        tokens=counted,
        unigram=baselines.unigram,
        bigram=baselines.bigram,
        beats_bigram=loss < baselines.bigram,
    )


def unknown_share(tokens: Tokens, tokenizer: Any) -> float:
    """Share of the tokens that stand for text which the tokenizer cannot write; 0 where it can write everything."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or not len(tokens):
        return 0.0
    return float((np.asarray(tokens) == unknown).mean())


def progress_of(done: int, total: int, loss: float | None, seconds: float, label: str = "token") -> Progress:
    """How far a measurement has come. loss: the mean so far. label: what is counted."""
    rate = done / seconds if seconds > 0 else None
    left = (total - done) / rate if rate else None
    return Progress(done=done, total=total, loss=loss, rate=rate, seconds_left=left, label=label)
