"""Attention is seen whichever way it is written, with the scale that its author gave it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.checks.attended import attended

B, H, T, S, K = 2, 3, 7, 11, 5


def by_hand(q: Tensor, k: Tensor, v: Tensor, s: float) -> Tensor:
    return (q @ k.transpose(-2, -1) * s).softmax(-1) @ v


def by_einsum(q: Tensor, k: Tensor, v: Tensor, s: float) -> Tensor:
    scores = torch.einsum("bhtk,bhsk->bhts", q, k) / (1 / s)
    return torch.einsum("bhts,bhsk->bhtk", F.softmax(scores, dim=-1), v)


def queries_first(q: Tensor, k: Tensor, v: Tensor, s: float) -> Tensor:
    return ((q * s) @ k.transpose(-2, -1)).softmax(-1) @ v


def both_halved(q: Tensor, k: Tensor, v: Tensor, s: float) -> Tensor:
    return ((q * s**0.5) @ (k * s**0.5).transpose(-2, -1)).softmax(-1) @ v


def with_a_bias(q: Tensor, k: Tensor, v: Tensor, s: float) -> Tensor:
    near = -(torch.arange(T)[:, None] - torch.arange(S)[None]).abs().float()
    slopes = torch.tensor([0.5, 0.1, 0.02])[None, :, None, None]
    return (q @ k.transpose(-2, -1) * s + slopes * near).softmax(-1) @ v


def added_at_once(q: Tensor, k: Tensor, v: Tensor, s: float) -> Tensor:
    bias = torch.randn(B * H, 1, S).repeat(1, T, 1)
    bias[B * H // 2 :] = bias[: B * H // 2]  # of each head the same in both rows
    scores = torch.baddbmm(bias, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=s)
    return (scores.softmax(-1) @ v.flatten(0, 1)).view(B, H, T, K)


def of_torch(q: Tensor, k: Tensor, v: Tensor, s: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=s)


@pytest.mark.parametrize("scale", [1 / math.sqrt(K), 1.0, 3.0])
@pytest.mark.parametrize(
    "attend", [by_hand, by_einsum, queries_first, both_halved, with_a_bias, added_at_once, of_torch]
)
def test_the_scale_is_the_authors(attend: Callable[..., Tensor], scale: float) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(B, H, T, K), torch.randn(B, H, S, K), torch.randn(B, H, S, K)
    with torch.no_grad(), attended(T, S) as watch:
        attend(q, k, v, scale)
    (one,) = watch.found
    found = one.scale()
    assert found is not None
    assert found == pytest.approx(scale, rel=1e-4)
    assert (one.over, one.softmaxes) == (-1, 1)


@pytest.mark.parametrize("weights", [True, False])
def test_torchs_own_module_is_seen(weights: bool) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(H * K, H, batch_first=True).eval()
    x, y = torch.randn(B, T, H * K), torch.randn(B, S, H * K)
    with torch.no_grad(), attended(T, S) as watch:
        module(x, y, y, need_weights=weights, average_attn_weights=False)
    (one,) = watch.found
    assert one.scale() == pytest.approx(1 / math.sqrt(K), rel=1e-4)
    assert one.weights is not None
    _, expected = module(x, y, y, average_attn_weights=False)
    assert torch.allclose(one.weights.view(B, H, T, S), expected, atol=1e-6)


def test_a_softmax_over_queries_none_and_two() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(B, H, T, K), torch.randn(B, H, S, K), torch.randn(B, H, S, K)
    scores = q @ k.transpose(-2, -1)
    with torch.no_grad(), attended(T, S) as watch:
        (q @ k.transpose(-2, -1)).softmax(-2) @ v
        (q @ k.transpose(-2, -1)) @ v
        (q @ k.transpose(-2, -1)).softmax(-1).softmax(-1) @ v
    over, raw, twice = watch.found
    assert (over.over, over.used_raw) == (-2, False)
    assert (raw.softmaxes, raw.used_raw) == (0, True)
    assert twice.softmaxes == 2
    assert torch.allclose(twice.product.view_as(scores), scores)


def test_other_products_are_passed_over() -> None:
    with torch.no_grad(), attended(T, S) as watch:
        nn.Linear(8, 9)(torch.randn(B, T, 8)).softmax(-1)
        torch.randn(B, 4, 6) @ torch.randn(B, 6, 4)
    assert watch.found == []
