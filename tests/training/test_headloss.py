"""The head's loss and gradients, beside float64 computed in one piece. N rows, D width, V vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anyformer.training.headloss import HeadLoss, loss_and_gradients

V, D = 61, 16


@pytest.mark.parametrize(
    ("bias", "level"),
    [(False, "usual"), (True, "usual"), (False, "large later"), (True, "all above"), (True, "all below")],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_those_of_float64_in_one_piece(bias: bool, smoothing: float, level: str) -> None:
    """The exponentials of such logits overflow, or all of a row's vanish, unless its largest is taken away first."""
    torch.manual_seed(1)
    given = [torch.randn(300, D) * 3, torch.randn(V, D), torch.randn(V) if bias else None]
    if level == "large later":
        given[0][150:] *= 10  # type: ignore[index]
    elif given[2] is not None:
        given[2] += {"usual": 0, "all above": 120, "all below": -120}[level]
    targets = torch.randint(0, V, (300,))
    targets[::7] = -100
    exact = [None if g is None else g.double().requires_grad_() for g in given]
    ours = [None if g is None else g.clone().requires_grad_() for g in given]
    expected = F.cross_entropy(F.linear(exact[0], exact[1], exact[2]), targets, label_smoothing=smoothing)  # type: ignore[arg-type]
    loss = HeadLoss.apply(ours[0], ours[1], ours[2], targets, smoothing)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    (expected / 4).backward()
    (loss / 4).backward()
    for a, b in zip(exact, ours, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(b.grad.double(), a.grad, rtol=1e-4, atol=1e-7)


def test_without_any_target_the_loss_is_nan_as_in_one_piece() -> None:
    loss = HeadLoss.apply(torch.randn(5, D), torch.randn(V, D), None, torch.full((5,), -100), 0.0)
    assert torch.isnan(loss)


class _Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().nbytes() >= result.numel() * result.element_size():
            self.numbers = max(self.numbers, result.numel())
        return result


def test_the_logits_never_exist_whole() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(1024, 8, requires_grad=True), torch.randn(900, 8, requires_grad=True)
    with _Largest() as seen:
        HeadLoss.apply(hidden, weight, None, torch.zeros(1024, dtype=torch.int64), 0.0).backward()
    assert seen.numbers == 128 * 900


def test_head_and_loss_in_one_where_nothing_is_a_target() -> None:
    hidden, weight, targets = torch.randn(6, 4), torch.randn(9, 4), torch.full((6,), -100)
    loss, gradients = loss_and_gradients(hidden, weight, None, targets, 0.1, trained=True)
    assert loss.isnan()  # said, and weighed with nothing
    assert [float(g.abs().max()) for g in gradients if g is not None] == [0.0, 0.0]
