"""What is seen of attention: heads that look at one token, weight on later and hidden ones, where it is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anyformer.checks import CheckResult, run_checks
from tests.checks.hosts import GPT, Attention, NoMask


class Sharp(Attention):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return 1e5 * super().scores(q, k)


class Collapsed(GPT):
    attention = Sharp


class Unmasked(GPT):
    attention = NoMask


class Hiding(Attention):
    keep: Tensor | None = None

    def masked(self, scores: Tensor) -> Tensor:
        scores = super().masked(scores)
        return scores if self.keep is None else scores.masked_fill(self.keep[:, None, None, :] == 0, -1e4)


class Padded(GPT):
    """The mask is handed to the first block alone."""

    attention = Hiding

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.blocks[0].attention.keep = attention_mask
        return super().forward(ids)


class Hidden(Padded):
    """To both."""

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.blocks[1].attention.keep = attention_mask
        return super().forward(ids, attention_mask)


def seen(module: Any, **rest: Any) -> CheckResult:
    report = run_checks(module, only=("attention",), **rest)
    return next(result for result in report.results if result.name == "attention")


def test_heads_that_look_at_one_token_are_odd_in_fresh_weights_alone() -> None:
    result = seen(Collapsed())
    assert result.verdict == "note"
    assert "8 of 16 heads" in result.measured or "16 of 16 heads" in result.measured
    assert result.where == "blocks.0.attention"
    assert seen(Collapsed(), trained=True).verdict == "ok"
    assert "look at one token" not in seen(GPT()).measured


def test_weight_on_later_tokens_is_told() -> None:
    measured = seen(Unmasked()).measured
    share = int(measured.split("up to ")[1].split("%")[0])
    assert share > 50  # the first query's: of 11 keys all but its own are later
    assert "later tokens" not in seen(GPT()).measured


def test_a_mask_that_one_block_heeds_is_told_and_the_weight_on_hidden_tokens() -> None:
    report = run_checks(Padded(), only=("padding",))
    (cause,) = report.causes
    assert (cause.name, cause.measured) == ("padding", "attention_mask changes the logits, and hides no token")
    assert "lies on hidden ones" in seen(Padded()).measured
    assert "hidden ones" not in seen(Hidden()).measured
    assert not run_checks(Hidden(), only=("padding",)).causes


def test_a_padding_mask_that_nothing_looks_at_is_told() -> None:
    class Unread(GPT):
        def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(ids)

    (cause,) = run_checks(Unread(), only=("padding",)).causes
    assert cause.measured == "attention_mask is taken, and nothing comes of it"


def test_an_attention_mask_the_wrong_way_round_is_told() -> None:
    class Inverse(Hidden):
        def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(ids, None if attention_mask is None else 1 - attention_mask)

    (cause,) = run_checks(Inverse(), only=("padding",)).causes
    assert cause.measured == "attention_mask hides where it is 1"


def test_attention_that_is_wrong_blocks_where_a_leak_comes_of_it() -> None:
    class Twice(Attention):
        def masked(self, scores: Tensor) -> Tensor:
            return super().masked(scores).softmax(-1)  # of which the second softmax makes weights everywhere

    class Softened(GPT):
        attention = Twice

    report = run_checks(Softened())
    assert report.blocked
    assert [cause.name for cause in report.causes] == ["attention"]
    assert report.causes[0].measured == "2 softmaxes in a row"
    assert "future" in {result.name for result in report.symptoms(report.causes[0])}


class Far(Attention):
    """A bias by distance; its sign is the other way round where ``far`` is 1."""

    far = 1.0

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        T = q.shape[-2]
        places = torch.arange(T, dtype=torch.float32)
        slopes = 2.0 ** -torch.arange(2, 2 + q.shape[1], dtype=torch.float32)
        return super().scores(q, k) + self.far * slopes[:, None, None] * (places[:, None] - places[None, :])


class Near(Far):
    far = -1.0


def test_weight_that_grows_with_distance_is_odd_in_fresh_weights_alone() -> None:
    class Wrong(GPT):
        attention = Far

    class Right(GPT):
        attention = Near

    result = seen(Wrong())
    assert (result.verdict, result.where[-9:]) == ("warn", "attention")
    assert "times the weight of the nearest" in result.measured
    assert seen(Wrong(), trained=True).verdict == seen(Right()).verdict == "ok"


def test_positions_that_are_multiplied_with_the_tokens_are_told() -> None:
    class Multiplied(GPT):
        def added(self, tokens: Tensor, places: Tensor) -> Tensor:
            return tokens * places

    (cause,) = run_checks(Multiplied(), only=("positions",)).causes
    assert cause.measured == "what tells two tokens apart is another direction at each place"
    assert not run_checks(GPT(), only=("positions",)).causes
