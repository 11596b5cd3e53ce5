"""Models that run at one length alone: trained, measured and sampled from, with shorter texts behind padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anyformer import api
from anyformer.core.errors import CallError
from anyformer.core.settings import EvaluateSettings, GenerateSettings
from anyformer.models.callplan import call_logits, infer_call_plan
from anyformer.training.coordinator import TrainResult
from tests.training.family_models import labelled, reversed_pairs

V, T, D = 48, 24, 16
Fit = Callable[..., TrainResult]


class Whole(nn.Module):
    """Adds places 0 … T − 1 to whatever comes in."""

    def __init__(self, outputs: int = V, *, causal: bool = False, pool: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block_size, self.causal, self.pool = T, causal, pool
        self.tokens, self.places = nn.Embedding(V, D), nn.Embedding(T, D)
        self.layer = nn.TransformerEncoderLayer(D, 2, 2 * D, 0.0, batch_first=True)
        self.head = nn.Linear(D, outputs)

    def logits(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(T))
        past = torch.ones(T, T, dtype=torch.bool).triu(1) if self.causal else None
        x = self.layer(x, src_mask=past, src_key_padding_mask=None if keep is None else keep == 0)
        logits: Tensor = self.head(x[:, 0] if self.pool else x)
        return logits

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(ids)


class Masked(Whole):
    """Takes a padding mask."""

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.logits(ids, attention_mask)


class Translator(nn.Module):
    """Reads and writes T tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.max_len = T
        self.source, self.target, self.places = nn.Embedding(V, D), nn.Embedding(V, D), nn.Embedding(T, D)
        self.encoder = nn.TransformerEncoderLayer(D, 2, 2 * D, 0.0, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(D, 2, 2 * D, 0.0, batch_first=True)
        self.head = nn.Linear(D, V)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        places = self.places(torch.arange(T))
        memory = self.encoder(self.source(src) + places)
        past = torch.ones(T, T, dtype=torch.bool).triu(1)
        logits: Tensor = self.head(self.decoder(self.target(tgt) + places, memory, tgt_mask=past))
        return logits


def ids(B: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(3, V, (B, length), generator=torch.Generator().manual_seed(seed))


def test_a_decoder_reads_fewer_tokens_as_it_reads_the_first_of_more() -> None:
    module = Whole(causal=True).eval()
    plan = infer_call_plan(module)
    assert (plan.family, plan.only_length) == ("decoder", T)
    full = ids(3, T)
    whole = module(full)
    for length in (1, 7, T - 1, T):
        torch.testing.assert_close(call_logits(module, plan, full[:, :length]), whole[:, :length])
    with pytest.raises(CallError, match="longer than the model's 24 positions"):
        call_logits(module, plan, ids(1, T + 1))


def test_padding_goes_behind_the_mask_where_there_is_one() -> None:
    module = Masked(3, pool=True).eval()
    plan = infer_call_plan(module)
    assert (plan.family, plan.only_length, plan.mask_arg) == ("classifier", T, "attention_mask")
    short = ids(2, 9)
    keep = torch.ones_like(short)
    keep[1, 6:] = 0
    filled, mask = torch.zeros(2, T, dtype=torch.int64), torch.zeros(2, T, dtype=torch.int64)
    filled[:, :9], mask[:, :9] = short, keep
    torch.testing.assert_close(call_logits(module, plan, short, keep), module(filled, mask))


@pytest.mark.parametrize(("outputs", "pool"), [(V, False), (3, True)])
def test_padding_that_would_be_seen_is_refused(outputs: int, pool: bool) -> None:
    module = Whole(outputs, pool=pool)
    plan = infer_call_plan(module, objective=None if pool else "masked")
    with pytest.raises(CallError, match="9 tokens: the model runs at T = 24 alone"):
        call_logits(module, plan, ids(2, 9))
    assert call_logits(module, plan, ids(2, T)).shape[-1] == outputs


def test_a_translator_of_one_length_writes_fewer_tokens() -> None:
    module = Translator().eval()
    plan = infer_call_plan(module)
    assert (plan.family, plan.only_length) == ("encoder_decoder", T)
    source, target = ids(2, T), ids(2, T, seed=2)
    whole = module(source, target)
    got = call_logits(module, plan, source, target_ids=target[:, :5])
    torch.testing.assert_close(got, whole[:, :5])


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "causal": (lambda: Whole(causal=True), "not measured"),
    "masked": (lambda: Masked(), "not measured"),
    "masked, no mask": (lambda: Whole(), "not measured"),
    "classification": (lambda: Masked(2, pool=True), "ok"),
    "classification, no mask": (lambda: Whole(2, pool=True), "warn"),
    "seq2seq": (Translator, "warn"),
}


@pytest.mark.parametrize("name", MODELS)
def test_each_family_trains_is_measured_again_and_sampled_from(fit: Fit, tmp_path: Any, name: str) -> None:
    make, told = MODELS[name]
    objective = name.split(",")[0]
    given: dict[str, Any] = {"objective": objective} if objective == "masked" else {}
    if objective == "classification":
        (tmp_path / "rows.tsv").write_text("\n".join(f"{row['text']}\t{row['label']}" for row in labelled()))
        given["data"] = str(tmp_path / "rows.tsv")
    if objective == "seq2seq":
        for number, side in enumerate("ab"):
            (tmp_path / f"t.{side}").write_text("\n".join(pair[number] for pair in reversed_pairs()) + "\n")
        given |= {"data": str(tmp_path / "t.a"), "target_data": str(tmp_path / "t.b")}
    result = fit(make(), max_steps=12, max_length=None, tokenizer="char", learning_rate=1e-2, **given)
    start = {"classification": math.log(2)}.get(objective, math.log(V))
    assert result.results["val_loss"] < start + 0.1
    again = api.evaluate(result.run_path, model=make(), settings=EvaluateSettings(batch_size=5))
    assert again.figures["val_loss"] == pytest.approx(result.results["val_loss"], rel=1e-4)
    padding = [f for f in result.findings if f.name == "padding"]
    assert [f.verdict for f in padding] == ([] if told == "not measured" else [told])
    if objective in ("causal", "seq2seq"):
        settings = GenerateSettings(prompt="the cat", max_tokens=T + 6, temperature=0.0)
        assert api.generate_text(result.run_path, model=make(), settings=settings)[0].strip()


class LastAlone(nn.Module):
    """A decoder that gives the last position's logits unless it is given targets, which it shifts inside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block_size = T
        self.tokens, self.places, self.head = nn.Embedding(V, D), nn.Embedding(T, D), nn.Linear(D, V)
        self.layer = nn.TransformerEncoderLayer(D, 2, 2 * D, 0.0, batch_first=True)

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        past = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        h = self.layer(self.tokens(x) + self.places.weight[: x.shape[1]], src_mask=past)
        if y is None:
            return self.head(h[:, -1:]), None
        logits = self.head(h)
        return logits, nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), y[:, 1:].flatten())


def test_optional_targets_are_no_second_text_of_the_same_length() -> None:
    plan = infer_call_plan(LastAlone())
    assert (plan.family, plan.targets_arg, plan.only_length, plan.max_positions) == ("decoder", "y", None, T)


class Required(Whole):
    """A decoder that cannot be called without targets."""

    def __init__(self) -> None:
        super().__init__(causal=True)

    def forward(self, idx: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(idx)
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def test_required_targets_are_no_second_text_either() -> None:
    plan = infer_call_plan(Required())
    assert (plan.family, plan.targets_arg, plan.only_length) == ("decoder", "targets", T)


class MemoryMasked(Translator):
    """Hides padding from the decoder, and lets the encoder mix it in."""

    def forward(self, src: Tensor, tgt: Tensor, memory_key_padding_mask: Tensor) -> Tensor:  # type: ignore[override]
        places = self.places(torch.arange(T))
        memory = self.encoder(self.source(src) + places)
        past = torch.ones(T, T, dtype=torch.bool).triu(1)
        x = self.decoder(
            self.target(tgt) + places, memory, tgt_mask=past, memory_key_padding_mask=memory_key_padding_mask
        )
        logits: Tensor = self.head(x)
        return logits


class Leaks(Translator):
    """The target is read without a causal mask."""

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        places = self.places(torch.arange(T))
        logits: Tensor = self.head(self.decoder(self.target(tgt) + places, self.encoder(self.source(src) + places)))
        return logits


@pytest.mark.parametrize(("model", "short"), [(MemoryMasked, (9, T)), (Translator, (9, T)), (Leaks, (T, 9))])
def test_padding_that_a_mask_is_not_proven_to_hide_is_refused(model: type[Translator], short: tuple[int, int]) -> None:
    module = model().eval()
    plan = infer_call_plan(module)
    assert plan.only_length == T
    with pytest.raises(CallError, match="9 tokens: the model runs at T = 24 alone"):
        call_logits(module, plan, ids(2, short[0]), target_ids=ids(2, short[1]))


def test_a_decoder_that_runs_at_short_lengths_is_not_searched_at_its_longest() -> None:
    class Long(LastAlone):
        def __init__(self) -> None:
            super().__init__()
            self.block_size, self.places = 512, nn.Embedding(512, D)
            self.shapes: list[tuple[int, ...]] = []

        def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
            shapes.append(tuple(x.shape))
            return super().forward(x, y)

    shapes: list[tuple[int, ...]] = []
    plan = infer_call_plan(Long())
    assert (plan.family, plan.max_positions) == ("decoder", 512)
    assert shapes
    assert [shape for shape in shapes if shape[0] > 1 and shape[1] >= 512] == []
