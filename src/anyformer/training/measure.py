"""The figures of a run on its held-out data, as run.json keeps them under "results", for each objective."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from anyformer.core.protocols import View
from anyformer.data.cache import Tokens
from anyformer.data.pairs import PaddedExamples
from anyformer.evaluation.examples import score_classes, score_writing
from anyformer.evaluation.masked import score_masked
from anyformer.evaluation.scoring import score_tokens, unknown_share
from anyformer.models.masking import Masking
from anyformer.models.plan import CallPlan
from anyformer.training.text import Text


def measure(
    module: nn.Module,
    plan: CallPlan,
    text: Text,
    *,
    block_size: int,
    batch_size: int,
    device: torch.device,
    last_loss: float | None,
    view: View,
) -> dict[str, Any]:
    """Measure the module on all that is held out. last_loss: of a foreign data module, all that is known."""
    if text.pairs is not None:
        pairs = text.pairs
        return measure_examples(module, plan, pairs.val_examples, exact=pairs.exact, batch_size=batch_size,
                                device=device, view=view)  # fmt: skip
    if text.held_out is None:
        known: dict[str, Any] = {"val_loss": last_loss}
        if text.objective in ("causal", "seq2seq"):
            known["perplexity"] = None if last_loss is None else math.exp(min(last_loss, 700.0))
        return known
    return measure_text(
        module,
        plan,
        text.held_out,
        text.tokenizer,
        text.masking,
        block_size=block_size,
        batch_size=batch_size,
        device=device,
        bytes_total=text.held_out_bytes,
        view=view,
    )


def measure_text(
    module: nn.Module,
    plan: CallPlan,
    tokens: Tokens,
    tokenizer: Any,
    masking: Masking | None,
    *,
    block_size: int,
    batch_size: int,
    device: torch.device,
    bytes_total: int,
    view: View,
) -> dict[str, Any]:
    """Figures on running text: hidden tokens guessed where there is a masking, else each token from those before."""
    if masking is not None:
        hidden = score_masked(
            module,
            plan,
            tokens,
            masking,
            block_size=block_size,
            batch_size=batch_size,
            device=device,
            view=view,
        )
        return {
            "val_loss": hidden.loss,
            "accuracy": hidden.accuracy,
            "unigram_entropy": hidden.unigram,
            "bigram_entropy": hidden.bigram,
            "beats_unigram": hidden.beats_unigram,
            "beats_bigram": hidden.beats_bigram,
            "evaluated_tokens": hidden.tokens,
        }
    scores = score_tokens(
        module,
        plan,
        tokens,
        block_size=block_size,
        batch_size=batch_size,
        device=device,
        bytes_total=bytes_total,
        view=view,
    )
    unknown = unknown_share(tokens, tokenizer)
    return {
        "val_loss": scores.loss,
        "perplexity": scores.perplexity,
        "bits_per_byte": None if unknown else scores.bits_per_byte,
        "unknown_share": unknown,
        "unigram_entropy": scores.unigram,
        "bigram_entropy": scores.bigram,
        "beats_bigram": scores.beats_bigram,
        "evaluated_tokens": scores.tokens,
    }


def measure_examples(
    module: nn.Module,
    plan: CallPlan,
    examples: PaddedExamples,
    *,
    exact: bool,
    batch_size: int,
    device: torch.device,
    view: View,
) -> dict[str, Any]:
    """Figures on examples: of a classifier on classes, else on what is to be written."""
    if plan.family == "classifier":
        classes = score_classes(module, plan, examples, exact=exact, batch_size=batch_size, device=device, view=view)
        return {
            "val_loss": classes.loss,
            "accuracy": classes.accuracy,
            "macro_f1": classes.macro_f1,
            "majority_accuracy": classes.majority_accuracy,
            "prior_entropy": classes.prior_entropy,
            "beats_majority": classes.beats_majority,
            "evaluated_examples": classes.examples,
        }
    written = score_writing(module, plan, examples, exact=exact, batch_size=batch_size, device=device, view=view)
    return {
        "val_loss": written.loss,
        "perplexity": written.perplexity,
        "unigram_entropy": written.unigram,
        "bigram_entropy": written.bigram,
        "beats_unigram": written.beats_unigram,
        "beats_bigram": written.beats_bigram,
        "evaluated_tokens": written.tokens,
    }
