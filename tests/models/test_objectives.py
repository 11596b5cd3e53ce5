"""The loss against an independent float64 computation in numpy, gradient included; the shift; copying scores badly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anyformer.models.objectives import (
    IGNORE_INDEX,
    causal_lm_loss,
    causal_lm_total,
    next_token_targets,
    objective_loss,
    objective_total,
)


def reference(logits: np.ndarray, labels: np.ndarray, smoothing: float = 0.0) -> tuple[float, np.ndarray, int]:
    """Mean loss, its gradient and the number of targets, token by token with plain loops in float64."""
    B, T, V = logits.shape
    total, count, gradient = 0.0, 0, np.zeros_like(logits)
    for b in range(B):
        for t in range(T - 1):
            target = labels[b, t + 1]
            if target == -100:
                continue
            row = logits[b, t]
            log_p = row - row.max() - math.log(sum(math.exp(v - row.max()) for v in row))
            wanted = np.full(V, smoothing / V)
            wanted[target] += 1 - smoothing
            total -= float((wanted * log_p).sum())
            gradient[b, t] = np.exp(log_p) - wanted
            count += 1
    return total / count, gradient / count, count


def example(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 11, (3, 7))
    labels[1, 4:] = IGNORE_INDEX
    labels[2, 0] = IGNORE_INDEX
    return rng.normal(size=(3, 7, 11)) * 3, labels


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_equal_an_independent_computation(dtype, tolerance, smoothing):
    logits, labels = example()
    expected, gradient, _ = reference(logits, labels, smoothing)
    tensor = torch.tensor(logits, dtype=dtype, requires_grad=True)
    loss = causal_lm_loss(tensor, torch.tensor(labels), label_smoothing=smoothing)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=tolerance)
    assert np.abs(tensor.grad.double().numpy() - gradient).max() <= tolerance * np.abs(gradient).max()


def test_total_sums_what_the_mean_averages():
    logits, labels = example(1)
    mean, _, count = reference(logits, labels)
    total, targets = causal_lm_total(torch.tensor(logits), torch.tensor(labels))
    assert total.dtype == torch.float64
    assert targets.item() == count
    assert total.item() == pytest.approx(mean * count, rel=1e-12)


def test_total_keeps_its_digits_over_many_float32_tokens():
    # 2^20 equal losses of log 2: a float32 running sum would be off in the sixth digit
    logits, labels = torch.zeros(1, 2**20 + 1, 2), torch.zeros(1, 2**20 + 1, dtype=torch.long)
    total, count = causal_lm_total(logits, labels)
    assert count == 2**20
    assert total.item() == pytest.approx(2**20 * float(np.float32(math.log(2))), rel=1e-12)


def test_targets_are_the_labels_moved_left_by_one():
    labels = torch.tensor([[5, 6, 7], [8, -100, 9]])
    assert next_token_targets(labels).tolist() == [[6, 7, -100], [-100, 9, -100]]
    assert labels.tolist() == [[5, 6, 7], [8, -100, 9]]


def test_copying_the_input_scores_badly_and_predicting_the_next_token_well():
    ids = torch.randint(0, 50, (4, 64), generator=torch.Generator().manual_seed(0))
    copying = 20.0 * F.one_hot(ids, 50).float()
    knowing = 20.0 * F.one_hot(ids.roll(-1, 1), 50).float()
    assert causal_lm_loss(copying, ids).item() > 3 * math.log(50)
    assert causal_lm_loss(knowing, ids).item() < 1e-5


def test_half_precision_is_computed_in_float32():
    logits, labels = example(2)
    half = torch.tensor(logits, dtype=torch.bfloat16)
    expected, _, _ = reference(half.double().numpy(), labels)
    loss = causal_lm_loss(half, torch.tensor(labels))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_logits_are_not_copied():
    logits = torch.zeros(2, 3, 4)
    seen = []
    original = F.cross_entropy

    def spy(flat, *args, **kwargs):
        seen.append(flat.data_ptr())
        return original(flat, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "cross_entropy", spy)
        causal_lm_loss(logits, torch.zeros(2, 3, dtype=torch.long))
    assert seen == [logits.data_ptr()]


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and labels \(2, 4\)"):
        causal_lm_loss(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.long))


def test_what_follows_a_row_is_the_last_positions_target():
    labels = torch.tensor([[3, 1, 4, 1], [5, 9, 2, IGNORE_INDEX]])
    following = torch.tensor([6, IGNORE_INDEX])
    assert next_token_targets(labels, following).tolist() == [[1, 4, 1, 6], [9, 2, IGNORE_INDEX, IGNORE_INDEX]]
    logits = torch.randn(2, 4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_p = logits.log_softmax(-1)
    nats = [-log_p[0, 0, 1], -log_p[0, 1, 4], -log_p[0, 2, 1], -log_p[0, 3, 6], -log_p[1, 0, 9], -log_p[1, 1, 2]]
    assert torch.allclose(causal_lm_loss(logits, labels, following), torch.stack(nats).mean(), rtol=1e-12)
    total, count = causal_lm_total(logits, labels, following)
    assert count.item() == 6
    assert torch.allclose(total, torch.stack(nats).sum(), rtol=1e-12)


@pytest.mark.parametrize("objective", ["causal", "seq2seq", "masked", "classification"])
def test_each_objective_against_a_loop(objective: str) -> None:
    rng = np.random.default_rng(4)
    shape = (3, 7) if objective == "classification" else (3, 5, 7)
    logits = rng.normal(size=shape)
    labels = rng.integers(0, 7, shape[:-1])
    if objective != "classification":
        labels[0, 2] = labels[2, 4] = -100
    nats = []
    for place in np.ndindex(*labels.shape):
        # shifted objectives: the logits before the token
        before = place if objective in ("masked", "classification") else (place[0], place[1] - 1)
        if labels[place] != -100 and min(before) >= 0:
            row = logits[before]
            nats.append(np.log(np.exp(row).sum()) - row[labels[place]])
    arguments: Any = (objective, torch.tensor(logits), torch.tensor(labels))
    assert objective_loss(*arguments).item() == pytest.approx(np.mean(nats), rel=1e-12)
    total, count = objective_total(*arguments)
    assert (total.item(), count.item()) == (pytest.approx(np.sum(nats), rel=1e-12), len(nats))


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        objective_loss("classification", torch.zeros(3, 2), torch.zeros(3, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="do not fit"):
        objective_loss("masked", torch.zeros(3, 4, 2), torch.zeros(3, dtype=torch.long))
