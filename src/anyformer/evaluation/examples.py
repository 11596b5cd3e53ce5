"""How well a model classifies, or writes what belongs to a text, beside guesses that do not look at the text.

B batch, S time (target), V vocabulary, C classes, N examples, M tokens to write.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from anyformer.core.protocols import View
from anyformer.data.pairs import PaddedExamples, Ragged, like_batches
from anyformer.evaluation._mode import evaluating
from anyformer.evaluation.scoring import progress_of
from anyformer.models.objectives import batch_logits, objective_total
from anyformer.models.plan import CallPlan

_ID_BITS = 31


@dataclass(frozen=True)
class ClassScores:
    """Over the same examples."""

    loss: float
    """Mean cross-entropy, nats per example."""
    accuracy: float
    macro_f1: float
    """Mean F1 of the classes that occur or were given (2·TP / (2·TP + FP + FN))."""
    examples: int
    majority_accuracy: float
    """Share of the most frequent class among these examples: what always answering it would score."""
    prior_entropy: float
    """Entropy of the classes among these examples, nats: the lowest loss of a guess that never looks at the text."""
    beats_majority: bool

    def to_dict(self) -> dict[str, float | int | bool]:
        """As JSON stores it."""
        return asdict(self)


@dataclass(frozen=True)
class WritingScores:
    """Over the same tokens to write, the end of each text among them."""

    loss: float
    """Mean cross-entropy, nats per token, each given what is right before it."""
    perplexity: float
    tokens: int
    unigram: float
    """Entropy of single tokens among these, nats."""
    bigram: float
    """Entropy of a token given the one before it, nats."""
    beats_unigram: bool
    beats_bigram: bool

    def to_dict(self) -> dict[str, float | int | bool]:
        """As JSON stores it."""
        return asdict(self)


def score_classes(
    module: nn.Module,
    plan: CallPlan,
    examples: PaddedExamples,
    *,
    exact: bool,
    batch_size: int,
    device: torch.device | str,
    view: View | None = None,
) -> ClassScores:
    """Classify every example once. exact: batches of one length. The module is moved to the device and stays there."""
    nats, found, right = 0.0, [], []
    for batch in _batches(module, examples, exact, batch_size, device, view):
        with evaluating(module):
            logits = batch_logits(module, plan, batch)
            total, _ = objective_total("classification", logits, batch["labels"])
        nats += float(total)
        found.append(logits.argmax(-1).cpu())
        right.append(batch["labels"].cpu())
    given, wanted = torch.cat(found).numpy(), torch.cat(right).numpy()
    counts = np.bincount(wanted)
    shares = counts[counts > 0] / len(wanted)
    accuracy, majority = float((given == wanted).mean()), float(counts.max() / len(wanted))
    prior = -float((shares * np.log(shares)).sum())
    loss = nats / len(wanted)
    return ClassScores(loss, accuracy, macro_f1(given, wanted), len(wanted), majority, prior, accuracy > majority)


def macro_f1(given: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> float:
    """Mean over the classes in either, (N,) each, of 2·TP / (2·TP + FP + FN)."""
    scores = []
    for label in np.union1d(given, wanted):
        hits = int(((given == label) & (wanted == label)).sum())
        scores.append(2 * hits / (int((given == label).sum()) + int((wanted == label).sum())))
    return float(np.mean(scores))


def score_writing(
    module: nn.Module,
    plan: CallPlan,
    examples: PaddedExamples,
    *,
    exact: bool,
    batch_size: int,
    device: torch.device | str,
    view: View | None = None,
) -> WritingScores:
    """The loss on every token that is to be written, each once, the start token apart; the rest as score_classes."""
    assert isinstance(examples.second, Ragged)
    nats, count = 0.0, 0
    for batch in _batches(module, examples, exact, batch_size, device, view):
        with evaluating(module):
            total, targets = objective_total("seq2seq", batch_logits(module, plan, batch), batch["labels"])
        nats += float(total)
        count += int(targets)
    unigram, bigram = written_entropies(examples.second)
    loss = nats / count
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return WritingScores(loss, perplexity, count, unigram, bigram, loss < unigram, loss < bigram)


def written_entropies(rows: Ragged) -> tuple[float, float]:
    """H(x) and H(x | the token before it), nats, over all tokens that follow another in their row (M,)."""
    first = np.zeros(len(rows.ids), dtype=bool)
    first[np.concatenate(([0], rows.ends[:-1]))] = True
    targets = rows.ids[~first].astype(np.int64)
    before = rows.ids[np.flatnonzero(~first) - 1].astype(np.int64)
    unigram = _nats(np.unique(targets, return_counts=True)[1])
    together = _nats(np.unique((before << _ID_BITS) | targets, return_counts=True)[1])
    return unigram, together - _nats(np.unique(before, return_counts=True)[1])  # H(x | b) = H(b, x) − H(b)


def _nats(counts: npt.NDArray[np.int64]) -> float:
    shares = counts / counts.sum()
    return -float((shares * np.log(shares)).sum())


def _batches(
    module: nn.Module,
    examples: PaddedExamples,
    exact: bool,
    batch_size: int,
    device: torch.device | str,
    view: View | None,
) -> Iterator[dict[str, Tensor]]:
    """The examples in batches on the device, progress shown."""
    target = torch.device(device)
    module.to(target)
    done, started = 0, time.monotonic()
    for items in like_batches(examples, batch_size, exact):
        batch = examples.__getitems__(items).tensors
        yield {name: value.to(target) for name, value in batch.items() if isinstance(value, Tensor)}
        done += len(items)
        if view is not None:
            view.progress(progress_of(done, len(examples), None, time.monotonic() - started, "example"))
