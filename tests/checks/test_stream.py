"""What norms read, of blocks that are lists of parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from anyformer.checks import run_checks
from anyformer.checks.stream import lost, norms_of
from tests.checks.hosts import POSITIONS, Attention, D, V

Step = Callable[[Tensor, nn.ModuleList], Tensor]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))


class Listed(nn.Module):
    """Its forward calls the parts of each block by itself."""

    def __init__(self, step: Step, norms: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step = step
        self.embed, self.places = nn.Embedding(V, D), nn.Embedding(POSITIONS, D)
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(), mlp(), *(nn.LayerNorm(D) for _ in range(norms))]) for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, V)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.places(torch.arange(ids.shape[1]))
        for parts in self.layers:
            x = self.step(x, parts)
        return self.head(self.norm(x))


def pre(x: Tensor, p: nn.ModuleList) -> Tensor:
    x = x + p[0](p[2](x))
    return x + p[1](p[3](x))


def post(x: Tensor, p: nn.ModuleList) -> Tensor:
    x = p[2](x + p[0](x))
    return p[3](x + p[1](x))


def sandwich(x: Tensor, p: nn.ModuleList) -> Tensor:
    x = x + p[4](p[0](p[2](x)))
    return x + p[5](p[1](p[3](x)))


def parallel(x: Tensor, p: nn.ModuleList) -> Tensor:
    read = p[2](x)
    return x + p[0](read) + p[1](read)


def without(x: Tensor, p: nn.ModuleList) -> Tensor:
    x = p[0](p[2](x))
    return x + p[1](p[3](x))


def behind_the_norm(x: Tensor, p: nn.ModuleList) -> Tensor:
    x = p[2](p[0](x))
    return p[3](x + p[1](x))


def twice(x: Tensor, p: nn.ModuleList) -> Tensor:
    x = x + p[0](p[2](x))
    return x + x + p[1](p[3](x))


def result(module: nn.Module) -> tuple[str, str]:
    (found,) = [r for r in run_checks(module, only=("residual",)).results if r.name == "residual"]
    return found.verdict, found.measured


@pytest.mark.parametrize(("step", "norms"), [(pre, 2), (post, 2), (sandwich, 4)])
def test_a_stream_that_is_passed_on_is_right(step: Step, norms: int) -> None:
    verdict, measured = result(Listed(step, norms))
    assert (verdict, measured.split(" ", 1)[1]) == (
        "ok",
        "times what one norm reads is what the one before it read, and more",
    )


def test_a_sum_of_three_is_not_judged() -> None:
    assert result(Listed(parallel, 1))[0] == "n/a"


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (without, "layers.0.3 reads what a layer gave, alone"),
        (twice, "layers.1.2 reads 2 times what was read before"),
    ],
)
def test_one_that_is_lost_or_doubled_is_told(step: Step, says: str) -> None:
    assert result(Listed(step)) == ("warn", says)


def test_what_a_norm_reads_is_kept_as_it_was_then() -> None:
    module = Listed(pre)
    with norms_of(module) as norms:
        module(torch.randint(0, V, (2, 9)))
    assert [one.name for one in norms] == ["layers.0.2", "layers.0.3", "layers.1.2", "layers.1.3", "norm"]
    torch.testing.assert_close(norms[1].read, norms[0].read + norms[0].outputs[-1])
    assert lost(norms) == (None, 3)  # the last norm may be of a head
    assert not any(part._forward_hooks for part in module.modules())
