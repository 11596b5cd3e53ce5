"""Calls that run and mean something else: what was made up, what is no class, which mode the mask is in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anyformer.core.errors import CallError
from anyformer.core.findings import Finding
from anyformer.models.batchproof import prove_on_batch
from anyformer.models.callplan import CallPlan, call_logits, infer_call_plan
from anyformer.models.calls.evidence import gather
from anyformer.models.calls.names import hint
from anyformer.models.proofs import prove_plan
from anyformer.models.source import load_model
from anyformer.training.objective import require_trainable
from tests.zoo import FOLDER

V, D = 23, 12


class Core(nn.Module):
    """Causal: a token and the mean of those before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(V, D)
        self.wpe = nn.Embedding(40, D)
        self.head = nn.Linear(D, V)

    def past(self, x: Tensor) -> Tensor:
        return x + x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


def named(plan: CallPlan, name: str) -> list[Finding]:
    return [f for f in plan.findings if f.name == name]


class SecondText(Core):
    def forward(self, query: Tensor, passage: Tensor) -> Tensor:
        return self.head(self.past(self.tokens(query) + self.tokens(passage)))


class Steps(Core):
    def forward(self, ids: Tensor, t: int) -> Tensor:
        return self.head(self.past(self.tokens(ids)) * (t + 1))


class Switch(Core):
    def forward(self, ids: Tensor, halved: bool) -> Tensor:
        return self.head(self.past(self.tokens(ids)) * (0.5 if halved else 1))


@pytest.mark.parametrize(("model", "name"), [(SecondText, "passage"), (Steps, "t"), (Switch, "halved")])
def test_a_guess_that_changes_the_logits_blocks_until_it_is_stated(model: type[Core], name: str) -> None:
    plan = infer_call_plan(model())
    (finding,) = [f for f in named(plan, "argument") if f.verdict == "fail"]
    assert finding.measured.startswith(name)
    with pytest.raises(CallError, match=name):
        require_trainable(plan)
    if model is not SecondText:
        stated = infer_call_plan(model(), overrides={"arguments": {name: 1}})
        assert require_trainable(stated)[0] == "causal"


class Distances(Core):
    """A bias between places, which is no mask."""

    def forward(self, ids: Tensor, between: Tensor) -> Tensor:
        x = self.tokens(ids)
        T = ids.shape[1]
        assert between.shape == (T, T)
        assert between.is_floating_point()
        return self.head(x + (torch.ones(T, T).tril() * between.clamp(-3, 3).exp() / T) @ x)


class Additive(Core):
    def forward(self, ids: Tensor, between: Tensor) -> Tensor:
        x = self.tokens(ids)
        assert between.shape == (ids.shape[1], ids.shape[1])
        return self.head(x + (x @ x.transpose(1, 2) + between).softmax(-1) @ x)


def test_a_square_tensor_is_a_mask_only_if_it_hides_the_future() -> None:
    plan = infer_call_plan(Distances())
    assert any("between" in f.measured and f.verdict == "fail" for f in named(plan, "argument"))
    plan = infer_call_plan(Additive())
    assert (plan.causal_by_mask, [f for f in plan.findings if f.verdict == "fail"]) == (True, [])


class Where(Core):
    def forward(self, ids: Tensor, p: Tensor) -> Tensor:
        return self.head(self.past(self.tokens(ids) + self.wpe(p)))


class Unused(Core):
    def forward(self, ids: Tensor, extra: Tensor) -> Tensor:
        return self.head(self.past(self.tokens(ids)) + 0 * extra.sum())


def test_positions_are_known_by_where_they_go_and_what_plays_no_part_does_not_block() -> None:
    plan = infer_call_plan(Where())
    assert [(f.verdict, f.reason) for f in named(plan, "argument")] == [("ok", "it goes to wpe")]
    assert require_trainable(plan)[0] == "causal"
    plan = infer_call_plan(Unused())
    assert [f.verdict for f in named(plan, "argument")] in (["warn"], ["ok"])
    assert require_trainable(plan)[0] == "causal"


class OnePlace(Core):
    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.tokens(ids).mean(1, keepdim=True)).expand(-1, ids.shape[1], -1)


def test_the_same_logits_everywhere_are_a_failure() -> None:
    plan = infer_call_plan(OnePlace(), objective="masked")
    assert [f.verdict for f in named(plan, "places")] == ["fail"]
    assert "places" in {f.name for f in prove_plan(OnePlace(), plan) if f.verdict == "fail"}


class Others(Core):
    """Logits at t are for the token before: not those that masked language modelling asks for."""

    def forward(self, ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        x = self.tokens(ids)
        return self.head(torch.stack([x.roll(1, 1), x.roll(-1, 1) * 2]).sum(0))


def test_an_encoder_whose_logits_are_not_for_their_own_token_is_a_failure() -> None:
    plan = infer_call_plan(Others(), objective="masked")
    assert [f.verdict for f in named(plan, "places")] == ["fail"]


class Pooled(nn.Module):
    def __init__(self, numbers: int, name: str) -> None:
        super().__init__()
        self.tokens = nn.Embedding(V, D)
        self.between = nn.Linear(D, D)
        self.add_module(name, nn.Linear(D, numbers))
        self.last = name

    def forward(self, ids: Tensor) -> Tensor:
        return getattr(self, self.last)(self.between(self.tokens(ids)).relu().mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("numbers", "name", "verdicts"),
    [
        (4, "proj", []),
        (90, "classifier", []),
        (90, "proj", ["warn"]),
        (D, "proj", ["fail"]),
        (D, "classifier", []),
    ],
)
def test_many_numbers_per_text_need_a_name_to_be_classes(numbers: int, name: str, verdicts: list[str]) -> None:
    plan = infer_call_plan(Pooled(numbers, name))
    assert plan.family == "classifier"
    assert [f.verdict for f in named(plan, "classes")] == verdicts


class Weighted(Core):
    """A required mask of no known form: it weighs the rows by the distance from the last 1."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(ids)
        assert mask.shape == ids.shape
        weights = (mask.float().cumsum(1) + 1) / (mask.float().sum(1, keepdim=True) + 1)
        return self.head(x + (x * weights[..., None]).cumsum(1))


def test_a_required_mask_without_a_meaning_blocks_where_it_matters() -> None:
    plan = infer_call_plan(Weighted())
    assert [f.verdict for f in named(plan, "mask")] == ["fail"]
    with pytest.raises(CallError, match="no meaning found"):
        require_trainable(plan)


class MaskedInTraining(Core):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        return self.head(self.past(x) if self.training else x + x.mean(1, keepdim=True))


def test_a_mask_of_the_training_mode_alone_is_said_to_be_one() -> None:
    module = MaskedInTraining().eval()
    (finding,) = named(infer_call_plan(module), "causality")
    assert finding.verdict == "fail"
    assert "training mode only" in finding.reason
    assert not module.training


class OneStep(nn.Module):
    """A step of a recurrent network for a batch of characters; its caller carries the state on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Embedding(V, D)
        self.rnn = nn.GRU(D, D)
        self.decoder = nn.Linear(D, V)

    def forward(self, input: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        output, hidden = self.rnn(self.encoder(input).view(1, input.size(0), -1), hidden)
        return self.decoder(output.view(input.size(0), -1)), hidden


def test_a_batch_of_single_steps_is_not_taken_for_a_sequence() -> None:
    plan = infer_call_plan(OneStep())
    assert [f.verdict for f in named(plan, "past")] == ["fail"]
    with pytest.raises(CallError, match="one token at a time"):
        require_trainable(plan)


class LeakyWithDropout(Core):
    def forward(self, ids: Tensor) -> Tensor:
        x = nn.functional.dropout(self.tokens(ids), 0.1)
        return self.head(x + x.mean(1, keepdim=True))


def test_a_leak_is_told_from_dropout_that_stays_on() -> None:
    plan = infer_call_plan(LeakyWithDropout())
    assert [f.verdict for f in named(plan, "causality") + named(plan, "repeat")] == ["fail", "warn"]


class MixesRows(Core):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.past(self.tokens(ids))
        return self.head(x * x.softmax(0))


def test_rows_that_mix_are_no_leak_of_the_future() -> None:
    plan = infer_call_plan(MixesRows())
    assert plan.causal
    assert [f.verdict for f in named(plan, "batch")] == ["fail"]


class HiddenLayers(Core):
    def __init__(self) -> None:
        super().__init__()
        self.layers: Any = {"mix": [nn.Linear(D, D)], "unused": nn.Linear(D, D)}

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers["mix"][0](self.past(self.tokens(ids))))


def test_layers_in_a_plain_dict_block_the_plan() -> None:
    (finding,) = named(infer_call_plan(HiddenLayers()), "weights")
    assert (finding.verdict, finding.measured) == ("fail", "self.layers would not be trained")
    kept = HiddenLayers()
    kept.known = kept.layers["mix"][0]
    assert named(infer_call_plan(kept), "weights") == []


class Overwrites(Core):
    def forward(self, ids: Tensor) -> Tensor:
        ids[:, 0] = 0
        return self.head(self.past(self.tokens(ids)))


def test_overwritten_ids_are_refused_with_their_line() -> None:
    with pytest.raises(CallError, match=r"(?s)in place.*test_meaning\.py:\d+: ids\[:, 0\] = 0"):
        infer_call_plan(Overwrites())


def test_weights_that_are_not_finite_are_named() -> None:
    module = Core()
    module.forward = lambda ids: module.head(module.tokens(ids))  # type: ignore[method-assign]
    module.head.bias.data.fill_(float("nan"))
    with pytest.raises(CallError, match=r"not finite: head\.bias"):
        infer_call_plan(module)


def test_names() -> None:
    assert [hint(n) for n in ("masked_pos", "mask_positions", "tgt_pos", "src_pos", "masked_lm_positions")] == [
        "positions"
    ] * 5
    assert [hint(n) for n in ("mask", "pos_mask", "key_padding_mask")] == ["mask"] * 3
    for name, encoder in (("MaskedLanguageModel", True), ("BERTLM", True), ("BertForMaskedLM", True), ("LM", False)):
        evidence = gather(type(name, (Core,), {})())
        assert evidence.says_encoder == encoder, name


def test_segments_given_as_positions_are_rejected() -> None:
    module = load_model(FOLDER / "packed_segments.py", seed=0).module.eval()
    plan = infer_call_plan(module)
    assert not [f for f in prove_plan(module, plan) if f.verdict == "fail"]
    record = plan.to_dict()
    record["extras"][0]["role"] = "positions"
    for shape in ("BT", "TB"):
        record["extras"][0]["shape"] = shape
        try:
            failed = [f for f in prove_plan(module, CallPlan.from_dict(record)) if f.verdict == "fail"]
        except CallError:
            continue
        assert failed


# labels, lengths, switches


class Wide(nn.Module):
    """Causal, with another number of outputs than of ids."""

    def __init__(self, rows: int, width: int, name: str = "lm_head") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(rows, 8)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.name = name
        setattr(self, name, nn.Linear(8, width))

    def forward(self, ids: Tensor) -> Tensor:
        return getattr(self, self.name)(self.rnn(self.tokens(ids))[0])


@pytest.mark.parametrize(
    ("rows", "width", "name", "verdicts"),
    [
        (50, 64, "lm_head", ["warn"]),
        (64, 64, "lm_head", []),
        (40, 700, "lm_head", ["fail"]),
        (6, 9, "classifier", ["fail"]),
        (20, 20, "hidden2tag", ["fail"]),
    ],
)
def test_labels_of_tokens_are_told_from_a_padded_vocabulary(
    rows: int, width: int, name: str, verdicts: list[str]
) -> None:
    assert [f.verdict for f in named(infer_call_plan(Wide(rows, width, name)), "labels")] == verdicts


@pytest.mark.parametrize(("needs", "words"), [("T % 4 == 0", "up to 40, multiples of 4 only"), ("T > 4", "from 5 on")])
def test_lengths_that_do_not_run_are_said(needs: str, words: str) -> None:
    class Blocks(Core):
        def forward(self, ids: Tensor) -> Tensor:
            T = ids.shape[1]
            assert T % 4 == 0 if needs == "T % 4 == 0" else T > 4
            return self.head(self.past(self.tokens(ids) + self.wpe(torch.arange(T))))

    plan = infer_call_plan(Blocks())
    assert plan.max_positions == 40
    assert words in named(plan, "positions")[0].measured


def test_a_switch_that_hides_the_future_is_set() -> None:
    class Switched(Core):
        def forward(self, ids: Tensor, mask_future: bool = False) -> Tensor:
            x = self.tokens(ids)
            return self.head(self.past(x) if mask_future else x + x.mean(1, keepdim=True))

    plan = infer_call_plan(Switched())
    assert plan.causal
    assert [a.text() for a in plan.extras] == ["mask_future = True"]


def test_a_property_that_raises_holds_no_number() -> None:
    class Raising(Core):
        @property
        def config(self) -> object:
            raise RuntimeError("no config")

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.past(self.tokens(ids)))

    assert infer_call_plan(Raising()).vocab_size == V


def test_independent_labels_are_no_classes() -> None:
    class Labels(Core):
        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.tokens(ids).mean(1))[:, :5].sigmoid()

    (finding,) = named(infer_call_plan(Labels()), "classes")
    assert (finding.verdict, finding.measured) == ("fail", "5 independent labels")


def test_ids_of_another_table_do_not_pass_for_the_tokens() -> None:
    class Styled(Core):
        def __init__(self) -> None:
            super().__init__()
            self.style = nn.Embedding(7, D)

        def forward(self, style: Tensor, idx: Tensor) -> object:
            h = self.past(self.tokens(idx) + self.style(style))
            return h, self.head(h)

    wrong = infer_call_plan(Styled(), overrides={"tokens": "style"})
    assert any(f.verdict == "fail" for f in wrong.findings)
    right = infer_call_plan(Styled(), overrides={"tokens": "idx", "arguments": {"style": 3}})
    assert [a.text() for a in right.extras] == ["style = 3, a tensor (B, 1)"]
    assert (right.logits_path, right.vocab_size) == ((1,), V)


def test_a_weight_that_is_a_buffer_is_saved_and_said_not_to_be_trained() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Embedding(40, 16)
            self.register_buffer("scale", nn.Parameter(torch.ones(16)))
            self.head = nn.Linear(16, 40)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.e(ids) * self.scale)  # type: ignore[no-any-return]

    module = Scaled()
    plan = infer_call_plan(module)
    told = [f for f in plan.findings if f.name == "weights"]
    assert [(f.verdict, f.measured) for f in told] == [("warn", "scale is not trained")]
    ids = torch.randint(0, 40, (4, 16))
    assert all(f.verdict != "fail" for f in prove_on_batch(module, plan, ids))


class OfTwoTexts(nn.Module):
    """Segments 1 and 2; 0 is padding's, where the embedding says so."""

    def __init__(self, padding_idx: int | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(V, D)
        self.segments = nn.Embedding(3, D, padding_idx=padding_idx)
        self.mix = nn.TransformerEncoderLayer(D, 2, 24, 0.0, batch_first=True)
        self.head = nn.Linear(D, V)

    def forward(self, x: Tensor, segment_label: Tensor) -> Tensor:
        return self.head(self.mix(self.tokens(x) + self.segments(segment_label)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("padding_idx", "number"), [(0, 1), (None, 0), (2, 0)])
def test_tokens_are_not_given_the_segment_of_padding(padding_idx: int | None, number: int) -> None:
    module = OfTwoTexts(padding_idx).eval()
    plan = infer_call_plan(module)
    (argument,) = plan.extras
    assert (argument.role, argument.value or 0) == ("segments", number)
    assert ("all 1" in argument.text()) is bool(number)
    ids = torch.arange(6)[None]
    torch.testing.assert_close(call_logits(module, plan, ids), module(ids, torch.full_like(ids, number)))
    assert CallPlan.from_dict(plan.to_dict()) == plan
    stated = infer_call_plan(module, overrides={"arguments": {"segment_label": "segments"}})
    assert (stated.extras[0].value or 0) == number
