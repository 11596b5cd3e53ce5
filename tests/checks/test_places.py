"""Positions: repeated, multiplied, drowned, and rotary ones that turn one side, or the wrong way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from anyformer.checks import CheckResult, run_checks
from tests.checks.hosts import GPT, Attention, D, H, V

LONG = 64
Rotate = Callable[[Tensor, Tensor, Tensor], Tensor]


def found(module: nn.Module, name: str = "positions") -> CheckResult:
    (result,) = [r for r in run_checks(module, only=(name,)).results if r.name == name]
    return result


def rotated(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def still(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    return x


def backwards(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    return rotated(x, -sin, cos)


def added(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    return x + torch.cat([sin, cos], -1)


class Rotary(Attention):
    def __init__(self, query: Rotate, key: Rotate, value: Rotate = still) -> None:
        super().__init__()
        self.turns = (query, key, value)

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        angles = torch.arange(T)[:, None] / 100 ** (torch.arange(0, D // H, 2) / (D // H))
        parts = (part.view(B, T, H, D // H).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        q, k, v = (turn(part, angles.sin(), angles.cos()) for turn, part in zip(self.turns, parts, strict=True))
        weights = self.masked(self.scores(q, k)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(B, T, D))


class Turning(GPT):
    """Rotary positions alone."""

    def __init__(self, query: Rotate, key: Rotate, value: Rotate = still) -> None:
        self.turns = (query, key, value)
        super().__init__()

    def stack(self) -> nn.ModuleList:
        from tests.checks.hosts import Block

        return nn.ModuleList(Block(lambda: Rotary(*self.turns)) for _ in range(2))

    def added(self, tokens: Tensor, places: Tensor) -> Tensor:
        return tokens


class Placed(GPT):
    """As many places as asked for, and what is done with them."""

    def __init__(self, rows: Callable[[Tensor], Tensor], combine: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.rows, self.combine = rows, combine
        self.positions = nn.Embedding(LONG, D)

    def places(self, ids: Tensor) -> Tensor:
        return self.rows(super().places(ids))

    def added(self, tokens: Tensor, places: Tensor) -> Tensor:
        return self.combine(tokens, places)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (lambda: Turning(rotated, still), "only queries are turned by their places"),
        (lambda: Turning(still, rotated), "only keys are turned by their places"),
        (lambda: Turning(rotated, backwards), "at one distance the product of a query and a key differs"),
        (lambda: Placed(lambda t: t.clamp(max=15), torch.add), "positions is asked for rows 0, 1, 2"),
        (lambda: Placed(lambda t: t % 8, torch.add), "positions is asked for rows 0, 1, 2, 3, 4, 5, 6, 7, 0"),
        (lambda: Placed(lambda t: t, torch.mul), "what tells two tokens apart is another direction"),
        (lambda: Placed(lambda t: t, lambda x, p: 1e5 * x + p), "what is added for places is "),
    ],
)
def test_what_is_wrong_with_places_is_told(module: Callable[[], nn.Module], says: str) -> None:
    result = found(module())
    assert result.verdict == "warn"
    assert result.measured.startswith(says)


@pytest.mark.parametrize(
    "module",
    [
        lambda: Turning(rotated, rotated),
        lambda: Turning(backwards, backwards),
        lambda: Turning(added, added),  # sinusoids on queries and keys, as DETR has them
        lambda: Placed(lambda t: t, torch.add),
        lambda: Placed(lambda t: t.flip(0), torch.add),
        lambda: Placed(lambda t: t, lambda x, p: nn.functional.layer_norm(x + p, (D,))),
    ],
)
def test_places_that_are_told_apart_are_right(module: Callable[[], nn.Module]) -> None:
    result = found(module())
    assert result.verdict == "ok", result.measured


class Sinusoids(GPT):
    """A table of 16 rows, of which later places share the last, or none."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.shared, self.max_len = shared, 16
        self.register_buffer("table", torch.randn(16, D))

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.tokens(ids) + self.table[places.clamp(max=15) if self.shared else places]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def test_places_behind_the_last_are_told_by_their_lengths() -> None:
    result = found(Sinusoids(shared=True), "lengths")
    assert (result.verdict, result.measured) == ("fail", "20 tokens run, with 16 positions")
    assert found(Sinusoids(shared=False), "lengths").verdict == "ok"


@pytest.mark.parametrize(("rows", "verdict"), [(16, "ok"), (15, "warn"), (8, "warn")])
def test_a_length_that_is_named_and_not_taken_is_told(rows: int, verdict: str) -> None:
    class Short(GPT):
        def __init__(self) -> None:
            super().__init__()
            self.block_size = 16
            self.positions = nn.Embedding(rows, D)

    result = found(Short(), "lengths")
    assert result.verdict == verdict
    if verdict == "warn":
        assert result.measured == f"{rows + 1} tokens raise, while it names 16"


def test_the_last_id_that_can_be_written_must_be_read() -> None:
    class Offset(GPT):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids + 1)

    result = found(Offset(), "ids")
    assert result.verdict == "warn"
    assert result.measured.startswith(f"id {V - 1} raises, with {V} rows")
