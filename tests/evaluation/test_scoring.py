"""The held-out loss against a loop over every target in float64."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anyformer.core.errors import DataError
from anyformer.core.protocols import Progress
from anyformer.core.view import QuietView
from anyformer.evaluation import score_tokens, token_entropies
from anyformer.models.callplan import CallPlan
from tests.evaluation.known_models import CausalMean


def by_hand(model: nn.Module, tokens: np.ndarray, block: int) -> float:
    """Σ −ln p(token), token by token: the context of token i begins at the last multiple of block before i.

    Tokens after the last whole block have the block that ends the text as their context.
    """
    model = copy.deepcopy(model).double().eval().requires_grad_(False)
    nats = 0.0
    for i in range(1, len(tokens)):
        in_whole_block = i <= (len(tokens) - 1) // block * block
        start = (i - 1) // block * block if in_whole_block else max(0, len(tokens) - block)
        logits = model(torch.tensor(tokens[start:i].astype(np.int64))[None])[0, -1]
        nats -= float(logits.log_softmax(-1)[int(tokens[i])])
    return nats


@pytest.mark.parametrize("length", [2, 5, 12, 13, 45, 46, 60])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_loss_is_every_target_once(model: CausalMean, plan: CallPlan, length: int, batch_size: int) -> None:
    tokens = np.random.default_rng(length).integers(0, 23, length).astype(np.uint16)
    scores = score_tokens(
        model, plan, tokens, block_size=12, batch_size=batch_size, device="cpu", bytes_total=3 * length
    )
    nats = by_hand(model, tokens, 12)
    assert scores.tokens == length - 1
    assert scores.loss == pytest.approx(nats / (length - 1), rel=1e-6)
    assert scores.perplexity == pytest.approx(math.exp(nats / (length - 1)), rel=1e-5)
    assert scores.bits_per_byte == pytest.approx(nats / math.log(2) / (3 * length), rel=1e-6)
    baselines = token_entropies(tokens)
    assert (scores.unigram, scores.bigram) == (baselines.unigram, baselines.bigram)
    assert scores.beats_bigram == (scores.loss < baselines.bigram)


class Bigram(nn.Module):
    """Logits = ln of the empirical transition probabilities of a text: the best that sees one token."""

    def __init__(self, tokens: np.ndarray, vocabulary: int) -> None:
        super().__init__()
        counts = torch.zeros(vocabulary, vocabulary, dtype=torch.float64)
        for first, second in pairwise(tokens):
            counts[int(first), int(second)] += 1
        self.register_buffer("table", (counts / counts.sum(1, keepdim=True).clamp_min(1)).log().clamp_min(-1e4).float())

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table[input_ids]


def test_the_empirical_bigram_model_scores_exactly_the_bigram_entropy(plan: CallPlan) -> None:
    tokens = np.random.default_rng(3).integers(0, 23, 500).astype(np.uint16)
    scores = score_tokens(Bigram(tokens, 23), plan, tokens, block_size=12, batch_size=4, device="cpu", bytes_total=500)
    assert scores.loss == pytest.approx(scores.bigram, rel=1e-6)


def test_a_model_that_copies_its_input_scores_badly(plan: CallPlan) -> None:
    class Copy(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return nn.functional.one_hot(input_ids, 23).float() * 20

    tokens = np.tile(np.arange(23, dtype=np.uint16), 10)
    scores = score_tokens(Copy(), plan, tokens, block_size=12, batch_size=4, device="cpu", bytes_total=230)
    assert scores.loss > 19
    assert not scores.beats_bigram


def test_leaves_modes_gradients_and_random_state_as_they_were(model: CausalMean, plan: CallPlan) -> None:
    model.train()
    model.head.eval()
    tokens = np.arange(23, dtype=np.uint16)
    before = torch.get_rng_state()
    first = score_tokens(model, plan, tokens, block_size=12, batch_size=2, device="cpu", bytes_total=23)
    second = score_tokens(model, plan, tokens, block_size=12, batch_size=2, device="cpu", bytes_total=23)
    assert first == second  # no dropout
    assert model.training
    assert model.dropout.training
    assert not model.head.training
    assert torch.is_grad_enabled()
    assert torch.equal(before, torch.get_rng_state())


def test_a_table_cached_while_scoring_can_still_be_trained(plan: CallPlan) -> None:
    class Caching(CausalMean):
        table: Tensor | None = None

        def forward(self, input_ids: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.linspace(0.5, 1.5, 23)
            return super().forward(input_ids) * self.table

    model = Caching()
    score_tokens(model, plan, np.arange(23), block_size=12, batch_size=2, device="cpu", bytes_total=23)
    model(torch.arange(4)[None]).sum().backward()
    assert model.head.weight.grad is not None


def test_reports_progress_in_tokens_to_the_end(model: CausalMean, plan: CallPlan) -> None:
    seen: list[Progress] = []

    class Recording(QuietView):
        def progress(self, progress: Progress) -> None:
            seen.append(progress)

    score_tokens(
        model, plan, np.zeros(50, int), block_size=12, batch_size=1, device="cpu", bytes_total=50, view=Recording()
    )
    assert [p.done for p in seen] == [12, 24, 36, 48, 49]
    assert {p.total for p in seen} == {49}
    assert {p.unit for p in seen} == {"tokens"}


@pytest.mark.parametrize(("tokens", "total_bytes"), [([], 1), ([4], 1), ([1, 2, 3], 0)])
def test_nothing_to_score_says_so(model: CausalMean, plan: CallPlan, tokens: list[int], total_bytes: int) -> None:
    with pytest.raises(DataError):
        score_tokens(
            model, plan, np.array(tokens, int), block_size=12, batch_size=1, device="cpu", bytes_total=total_bytes
        )
