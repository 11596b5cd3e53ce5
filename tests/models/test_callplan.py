"""Plans for models of every shape, each property on a model that has it and on one that has not."""

from __future__ import annotations

import json
import random
import time
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anyformer.core.errors import CallError
from anyformer.models.batchproof import prove_again, prove_on_batch
from anyformer.models.callplan import CallPlan, call_logits, infer_call_plan
from anyformer.models.calls import probing
from anyformer.models.example_gpt import GPT
from tests.models.fingerprints import fingerprint

V, D = 23, 12


class Core(nn.Module):
    """A tiny decoder with every fault that a test may ask for."""

    def __init__(self, *, causal=True, positions=40, batch_first=True, rows=V, width=V, attends=True):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(rows, D)
        self.places = nn.Embedding(positions, D)
        self.attn = nn.MultiheadAttention(D, 2, batch_first=batch_first)
        self.head = nn.Linear(D, width)
        self.causal, self.attends = causal, attends

    def logits(self, ids, keep=None):
        T = ids.shape[1]
        x = self.tokens(ids) + self.places(torch.arange(T))
        mask = torch.ones(T, T, dtype=torch.bool).triu(1) if self.causal and self.attn.batch_first else None
        hide = None if keep is None else keep == 0
        if self.attends:
            x = x + self.attn(x, x, x, attn_mask=mask, key_padding_mask=hide, need_weights=False)[0]
        return self.head(x)

    def forward(self, input_ids):
        return self.logits(input_ids)


def finding(plan: CallPlan, name: str):
    return next(f for f in plan.findings if f.name == name)


def refused(module: nn.Module) -> str:
    with pytest.raises(CallError) as caught:
        infer_call_plan(module)
    return str(caught.value)


IDS = torch.randint(1, V, (2, 6), generator=torch.Generator().manual_seed(7))


# the whole


def test_the_example_is_planned_whole():
    model = GPT(vocab_size=50, block_size=20, n_layer=2, n_head=2, n_embd=16)
    start = time.perf_counter()
    plan = infer_call_plan(model)
    assert time.perf_counter() - start < 5
    assert (plan.token_arg, plan.mask_arg, plan.targets_arg, plan.needs_targets) == ("input_ids", None, None, False)
    assert (plan.logits_path, plan.vocab_size, plan.embedding_rows, plan.max_positions) == ((), 50, 50, 20)
    assert (plan.family, plan.causal) == ("decoder", True)
    assert all(f.verdict == "ok" for f in plan.findings)
    assert CallPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_unknown_keys_of_a_stored_plan_are_refused():
    record = infer_call_plan(Core()).to_dict()
    with pytest.raises(TypeError, match="colour"):
        CallPlan.from_dict({**record, "colour": 1})


def test_the_module_and_the_random_state_come_back_untouched():
    class Stateful(Core):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))
            self.norm = nn.BatchNorm1d(V)
            self.seen = []

        def forward(self, ids):
            self.calls += 1
            self.seen.append(random.random() + np.random.rand())
            return self.logits(ids)

    module = Stateful()
    module.norm.eval()
    module.places.weight.requires_grad_(False)
    module.head.register_forward_hook(lambda *_: None)
    module.tokens.weight.grad = torch.randn_like(module.tokens.weight)  # the others have none
    before = fingerprint(module)
    plan = infer_call_plan(module)
    assert fingerprint(module) == before
    prove_on_batch(module, plan, IDS)
    prove_again(module, plan, IDS, step=1, proven=0)
    assert fingerprint(module) == before
    module.head = nn.Identity()  # gives hidden states: the plan is refused
    before = fingerprint(module)
    refused(module)
    assert fingerprint(module) == before


TOUCHES = {
    "parameters and buffers": lambda m: m.head.bias.data.add_(1e-7),
    "gradients": lambda m: setattr(m.head.bias, "grad", m.head.bias.grad.clone()),  # equal, another tensor
    "requires_grad": lambda m: m.head.bias.requires_grad_(False),
    "modes": lambda m: m.attn.eval(),
    "hooks": lambda m: m.head.register_full_backward_hook(lambda *_: None),
    "attributes": lambda m: setattr(m.attn, "kept", 1),
    "random states": lambda m: random.random(),
}


@pytest.mark.parametrize("kind", TOUCHES)
def test_the_fingerprint_shows_every_touch(kind):
    module = Core()
    module.head.bias.grad = torch.ones(V)
    before = fingerprint(module)
    assert fingerprint(module) == before
    TOUCHES[kind](module)
    after = fingerprint(module)
    assert kind in [name for name, was in before.items() if after[name] != was]


def test_a_plan_calls_the_module_and_gradients_flow():
    module = Core()
    logits = call_logits(module, infer_call_plan(module), IDS)
    assert torch.equal(logits, module(IDS))
    logits.sum().backward()
    assert module.tokens.weight.grad is not None


# the argument that takes the ids


def test_the_argument_is_found_whatever_its_name():
    class Odd(Core):
        def forward(self, scale=1.0, *, stuff):
            return self.logits(stuff) * scale

    class Positional(Core):
        def forward(self, a, /):
            return self.logits(a)

    class Variadic(Core):
        def forward(self, *args, **kwargs):
            return self.logits(args[0])

    for cls, name in ((Odd, "stuff"), (Positional, "*a"), (Variadic, "*args")):
        module = cls()
        plan = infer_call_plan(module)
        assert plan.token_arg == name
        assert torch.equal(call_logits(module, plan, IDS), module.logits(IDS))


def test_behaviour_decides_between_candidates():
    class Two(Core):
        def forward(self, x=None, src=None):
            return self.logits(src)

    assert infer_call_plan(Two()).token_arg == "src"


def test_arguments_that_cannot_be_filled_are_named():
    class Seq2Seq(Core):
        def forward(self, src, tgt, memory):
            return self.logits(src)

    text = refused(Seq2Seq())
    assert "nothing known for tgt" in text
    assert "forward takes: src, tgt, memory" in text


def test_a_required_mask_of_ones_is_passed():
    class Masked(Core):
        def forward(self, input_ids, attention_mask):
            return self.logits(input_ids, attention_mask)

    module = Masked()
    plan = infer_call_plan(module)
    assert plan.mask_arg == "attention_mask"
    assert plan.needs_mask
    assert torch.equal(call_logits(module, plan, IDS), module(IDS, torch.ones_like(IDS)))


def test_logits_that_ignore_the_ids_are_refused():
    class Constant(Core):
        def forward(self, ids):
            return self.head.bias.expand(*ids.shape, V) + 0.0 * self.tokens(ids).sum()

    assert "do not depend on ids" in refused(Constant())


def test_a_failing_forward_is_quoted_with_its_line():
    class Broken(Core):
        def forward(self, ids):
            return self.head(self.tokens(ids).transpose(1, 2))  # the user's mistake

    text = refused(Broken())
    assert "test_callplan.py:" in text
    assert "return self.head(self.tokens(ids).transpose(1, 2))  # the user's mistake" in text
    assert "RuntimeError" in text


# where the logits are

Pair = namedtuple("Pair", "loss logits")


@dataclass
class Output:
    loss: object
    logits: torch.Tensor


OUTPUTS = {
    "tensor": (lambda y: y, ()),
    "tuple": (lambda y: (y, None), (0,)),
    "list": (lambda y: [None, y], (1,)),
    "named tuple": (lambda y: Pair(None, y), (1,)),
    "dict": (lambda y: {"loss": None, "logits": y}, ("logits",)),
    "dataclass": (lambda y: Output(None, y), ("logits",)),
    "object": (lambda y: SimpleNamespace(out=y), ("out",)),
    "nested": (lambda y: {"results": (None, {"scores": y})}, ("results", 1, "scores")),
    "beside hidden states": (lambda y: (torch.cat([y, y], -1), y), (1,)),
    "named beside others": (lambda y: {"first": y + 1, "logits": y}, ("logits",)),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_logits_are_found_in(kind):
    wrap, path = OUTPUTS[kind]

    class Wrapped(Core):
        def forward(self, ids):
            return wrap(self.logits(ids))

    module = Wrapped()
    plan = infer_call_plan(module)
    assert plan.logits_path == path
    assert plan.vocab_size == V
    assert torch.equal(call_logits(module, plan, IDS), module.logits(IDS))
    assert CallPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_hugging_face_outputs():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=V, n_positions=16, n_layer=1, n_head=2, n_embd=8)
    module = transformers.GPT2LMHeadModel(config).eval()
    plan = infer_call_plan(module)
    assert (plan.token_arg, plan.mask_arg, plan.targets_arg) == ("input_ids", "attention_mask", "labels")
    assert (plan.logits_path, plan.vocab_size, plan.embedding_rows, plan.max_positions) == (("logits",), V, V, 16)
    assert plan.causal
    with torch.no_grad():
        assert torch.equal(call_logits(module, plan, IDS), module(input_ids=IDS).logits)


def test_attention_weights_beside_the_logits_are_no_logits():
    class WithAttention(Core):
        def forward(self, ids):
            return torch.ones(ids.shape[0], ids.shape[1], ids.shape[1]), self.logits(ids)

    plan = infer_call_plan(WithAttention(rows=V, width=30))
    assert (plan.logits_path, plan.vocab_size) == ((1,), 30)
    assert finding(plan, "logits").verdict == "ok"


def test_several_places_that_nothing_tells_apart_are_a_warning():
    class Ambiguous(Core):
        def forward(self, ids):
            y = self.logits(ids)
            return torch.cat([y, y], -1), torch.cat([y, y, y], -1)

    plan = infer_call_plan(Ambiguous())
    assert plan.logits_path == (0,)
    assert finding(plan, "logits").verdict == "warn"
    assert "output[1] (B, T, 69)" in finding(plan, "logits").reason


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        (lambda y: y[:, -1], "(2, 23)"),
        (lambda y: y[:, [-1]], "(2, 1, 23)"),
        (lambda y: y.argmax(-1), "int64"),
    ],
)
def test_other_layouts_are_refused_with_the_shape_that_was_found(change, shape):
    class OtherClassifier(Core):  # of a model of language the last position alone can be trained
        def forward(self, ids):
            return change(self.logits(ids))

    assert shape in refused(OtherClassifier())


def test_hidden_states_without_a_head_are_refused():
    module = Core()
    module.head = nn.Identity()
    text = refused(module)
    assert "gives hidden states, no logits" in text
    assert "nn.Linear(12, 23)" in text


def test_nan_is_refused():
    class Hidden(Core):
        def forward(self, ids):
            return self.logits(ids, torch.zeros_like(ids))

    assert "NaN before any training" in refused(Hidden())


def test_probabilities_are_a_warning_and_log_probabilities_a_note():
    class Soft(Core):
        def forward(self, ids):
            return self.logits(ids).softmax(-1)

    class LogSoft(Core):
        def forward(self, ids):
            return F.log_softmax(self.logits(ids), -1)

    soft, plain = Soft(), Core()
    plan = infer_call_plan(soft)
    assert finding(plan, "output").verdict == "warn"
    assert plan.kind == "probabilities"
    # what training sees are logits again: the same distribution, so the same cross-entropy
    assert torch.allclose(call_logits(soft, plan, IDS).softmax(-1), soft(IDS), atol=1e-7)
    assert not torch.allclose(soft(IDS).softmax(-1), soft(IDS), atol=1e-3)
    assert finding(infer_call_plan(LogSoft()), "output").verdict == "note"
    assert infer_call_plan(LogSoft()).kind == "log-probabilities"
    assert infer_call_plan(plain).kind == "logits"
    assert not [f for f in infer_call_plan(plain).findings if f.name == "output"]


# targets


def test_logits_that_come_only_with_targets():
    class NanoGPT(Core):
        def forward(self, idx, targets=None):
            y = self.logits(idx)
            if targets is None:
                return y[:, [-1]], None
            return y, F.cross_entropy(y.flatten(0, 1), targets.flatten())

    module = NanoGPT()
    plan = infer_call_plan(module)
    assert (plan.token_arg, plan.targets_arg, plan.needs_targets, plan.logits_path) == ("idx", "targets", True, (0,))
    assert torch.equal(call_logits(module, plan, IDS), module.logits(IDS))


def test_targets_that_are_not_needed_are_not_passed():
    class Optional(Core):
        def forward(self, idx, targets=None):
            y = self.logits(idx)
            return (y, None) if targets is None else (y.flatten(0, 1), 0.0)

    module = Optional()
    plan = infer_call_plan(module)
    assert (plan.targets_arg, plan.needs_targets) == ("targets", False)
    assert torch.equal(call_logits(module, plan, IDS), module.logits(IDS))


def test_required_targets_are_passed():
    class Required(Core):
        def forward(self, idx, targets):
            return self.logits(idx), F.cross_entropy(self.logits(idx).flatten(0, 1), targets.flatten())

    assert infer_call_plan(Required()).needs_targets


# masks


def test_a_mask_is_used_once_proven():
    class Keep(Core):
        def forward(self, input_ids, attention_mask=None):
            return self.logits(input_ids, attention_mask)

    module = Keep()
    plan = infer_call_plan(module)
    assert plan.mask_arg == "attention_mask"
    mask = torch.ones_like(IDS)
    mask[:, 1] = 0
    assert torch.equal(call_logits(module, plan, IDS, mask), module(IDS, mask))
    assert not torch.equal(call_logits(module, plan, IDS, mask), call_logits(module, plan, IDS))


def test_an_inverted_mask_is_inverted():
    class Inverted(Core):
        def forward(self, ids, mask=None):
            return self.logits(ids, None if mask is None else 1 - mask)

    module = Inverted()
    plan = infer_call_plan(module)
    assert (plan.mask_arg, plan.mask_shape, plan.mask_dtype, plan.mask_form) == ("mask", "BT", "int64", "masked")
    keep = torch.ones_like(IDS)
    keep[:, 1] = 0
    assert torch.equal(call_logits(module, plan, IDS, keep), module.logits(IDS, keep))


def test_masks_of_other_meanings_are_not_used():
    class Ignored(Core):
        def forward(self, ids, mask=None):
            return self.logits(ids)

    class Square(Core):
        def forward(self, ids, mask=None):
            return self.logits(ids) if mask is None else self.logits(ids) + mask.view(ids.shape[1], ids.shape[1])

    class Scaling(Core):
        def forward(self, ids, mask=None):
            return self.logits(ids, mask) * (1 if mask is None else 1 + mask.float().mean())

    for cls in (Ignored, Square, Scaling):
        module = cls()
        plan = infer_call_plan(module)
        assert plan.mask_arg is None, cls
        assert "no padding" in finding(plan, "mask").measured
        assert torch.equal(call_logits(module, plan, IDS, torch.ones_like(IDS)), module.logits(IDS))


# causality, batch, repetition


def test_a_missing_causal_mask_is_measured():
    plan = infer_call_plan(Core(causal=False))
    assert (plan.family, plan.causal) == ("decoder", False)
    assert finding(plan, "causality").verdict == "fail"
    assert "changing token" in finding(plan, "causality").measured


def test_the_user_may_insist():
    plan = infer_call_plan(Core(causal=False), objective="causal")
    assert (plan.family, plan.causal, finding(plan, "causality").verdict) == ("decoder", False, "warn")
    plan = infer_call_plan(Core(causal=False), objective="masked")
    assert (plan.family, plan.causal, finding(plan, "causality").verdict) == ("encoder", False, "note")
    with pytest.raises(CallError, match="objective seq2seq does not fit Core"):
        infer_call_plan(Core(), objective="seq2seq")


@pytest.mark.parametrize("reach", [1, 20])
def test_a_leak_of_one_step_or_only_in_long_sequences_is_seen(reach):
    class Leak(Core):
        def forward(self, ids):
            y = self.logits(ids)
            if ids.shape[1] > reach:
                y = torch.cat([y[:, :-reach] + 1e-3 * y[:, reach:], y[:, -reach:]], 1)
            return y

    assert not infer_call_plan(Leak()).causal


def test_a_model_that_sees_no_past_is_causal_with_a_warning():
    plan = infer_call_plan(Core(attends=False))
    assert plan.causal
    assert finding(plan, "past").verdict == "warn"
    assert not [f for f in infer_call_plan(Core()).findings if f.name == "past"]


def test_attention_over_the_batch_is_a_failure():
    plan = infer_call_plan(Core(batch_first=False))
    assert finding(plan, "batch").verdict == "fail"
    assert "batch_first=True" in finding(plan, "batch").reason
    assert finding(infer_call_plan(Core()), "batch").verdict == "ok"


class InCompany(Core):
    """Does not take a batch of one row."""

    def forward(self, *args, **kwargs):
        if args[0].shape[self.over] == 1 and args[0].shape[1 - self.over] > 1:
            raise IndexError("one row")
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(("batch_first", "verdict"), [(True, "ok"), (False, "fail")])
def test_rows_that_do_not_run_alone_are_measured_beside_others(batch_first, verdict):
    module = InCompany(batch_first=batch_first)
    module.over = 0
    assert finding(infer_call_plan(module), "batch").verdict == verdict


def test_a_bag_of_words_says_which_ids_it_has():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.fc = nn.EmbeddingBag(41, 16), nn.Linear(16, 3)

        def forward(self, text):
            return self.fc(self.bag(text))

    plan = infer_call_plan(Bag())
    assert (plan.family, plan.embedding_rows) == ("classifier", 41)


class OddlyNamed(Core):
    """A padding mask (B, 1, 1, T), 1 = masked, that its name does not tell."""

    def forward(self, ids, blanks_padded):
        assert blanks_padded.dim() == 4
        assert blanks_padded.dtype == torch.bool
        return self.logits(ids, keep=~blanks_padded[:, 0, 0])


def test_what_the_refusal_proposes_settles_it():
    assert "arguments: {blanks_padded: mask}" in refused(OddlyNamed())
    for overrides in ({"arguments": {"blanks_padded": "mask"}}, {"mask": "blanks_padded"}):
        plan = infer_call_plan(OddlyNamed(), overrides=overrides)
        assert (plan.mask_arg, plan.mask_shape, plan.mask_form) == ("blanks_padded", "B11T", "masked")
        assert not [f for f in plan.findings if f.verdict == "fail"]


def test_what_was_stated_and_tried_is_not_proposed_again():
    class ThreeAtOnce(Core):
        """(B, T, 3, V): of no position alone."""

        def forward(self, ids):
            return self.logits(ids)[:, :, None].expand(-1, -1, 3, -1)

    assert "logits: output[0]" in refused(ThreeAtOnce())
    with pytest.raises(CallError) as caught:
        infer_call_plan(ThreeAtOnce(), overrides={"tokens": "ids", "logits": "output[0]"})
    assert "was tried as it stands" in str(caught.value)


def test_a_forward_that_does_not_end_is_refused_by_its_line(monkeypatch):
    monkeypatch.setattr(probing, "FORWARD_SECONDS", 0.3)

    class Endless(Core):
        def forward(self, ids):
            while True:
                ids = ids + 0

    with pytest.raises(CallError, match="the model's forward does not end") as caught:
        infer_call_plan(Endless())
    assert "ids = ids + 0" in caught.value.detail or "while True" in caught.value.detail


def test_weights_that_start_at_zero_hide_nothing():
    module = Core(causal=False)
    nn.init.zeros_(module.head.weight)
    nn.init.zeros_(module.attn.out_proj.weight)
    plan = infer_call_plan(module)
    assert not plan.causal
    assert "head.weight" in finding(plan, "weights at zero").measured
    assert not module.head.weight.any()


def test_dropout_that_ignores_eval_mode_is_a_warning():
    class Always(Core):
        def forward(self, ids):
            return F.dropout(self.logits(ids), 0.5)

    plan = infer_call_plan(Always())
    assert plan.causal
    assert finding(plan, "repeat").verdict == "warn"
    assert finding(infer_call_plan(Core()), "repeat").verdict == "ok"


# ids and positions


def test_rows_of_the_embedding_that_sees_the_ids():
    plan = infer_call_plan(Core(rows=30, width=V))
    assert (plan.embedding_rows, plan.vocab_size) == (30, V)
    assert finding(plan, "logits").verdict == "warn"
    plan = infer_call_plan(Core(rows=V, width=32))
    assert (plan.embedding_rows, plan.vocab_size) == (V, 32)


def test_ids_without_an_embedding_module():
    class Table(Core):
        def forward(self, ids):
            return self.head(F.embedding(ids, self.tokens.weight))

    class OneHot(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(V, V)

        def forward(self, ids):
            return self.linear(F.one_hot(ids % V, V).float())

    assert infer_call_plan(Table()).embedding_rows == V
    assert infer_call_plan(Table(rows=9)).embedding_rows == 9
    assert infer_call_plan(OneHot()).embedding_rows is None


def test_positions_that_a_table_limits():
    plan = infer_call_plan(Core(positions=40))
    assert plan.max_positions == 40
    with pytest.raises(CallError, match="41 tokens is longer than the model's 40 positions"):
        call_logits(Core(positions=40), plan, torch.ones(1, 41, dtype=torch.long))


def test_positions_that_nothing_names_are_bisected():
    class Hidden(Core):
        def forward(self, ids):
            assert ids.shape[1] <= 77
            return self.logits(ids)

    assert infer_call_plan(Hidden(positions=400)).max_positions == 77


def test_a_named_length_that_does_not_limit_is_not_believed():
    class Loose(Core):
        def __init__(self):
            super().__init__(positions=1500)
            self.block_size = 100

    class Endless(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = SimpleNamespace(block_size=100)
            self.net = nn.Sequential(nn.Embedding(V, D), nn.Linear(D, V))

        def forward(self, x):
            return self.net(x)

    assert infer_call_plan(Loose()).max_positions == 1500
    plan = infer_call_plan(Endless())
    assert plan.max_positions is None
    assert finding(plan, "positions").verdict == "note"


def test_a_module_that_crops_long_sequences_has_a_limit():
    class Cropping(Core):
        def forward(self, ids):
            return self.logits(ids[:, -20:])

    assert infer_call_plan(Cropping()).max_positions == 20


@pytest.mark.parametrize("positions", [3, 4, 5, 8])
def test_very_short_models_are_planned(positions):
    plan = infer_call_plan(Core(positions=positions))
    assert plan.max_positions == positions
    assert plan.causal
    assert finding(plan, "batch").verdict == "ok"
    assert not infer_call_plan(Core(positions=positions, causal=False)).causal


def test_a_vocabulary_of_two():
    plan = infer_call_plan(Core(rows=2, width=2))
    assert (plan.vocab_size, plan.embedding_rows, plan.causal) == (2, 2, True)
    assert not infer_call_plan(Core(rows=2, width=2, causal=False)).causal


def test_a_compiled_module_is_planned():
    module = torch.compile(Core(), backend="eager")
    plan = infer_call_plan(module)
    assert (plan.token_arg, plan.max_positions) == ("input_ids", 40)


def test_targets_of_id_0_that_a_loss_leaves_out_are_not_handed_to_it():
    class Masked(nn.Module):
        """Its logits are those at targets that are not 0."""

        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(V + 1, 16), nn.Linear(16, V)

        def forward(self, ids, labels):
            kept = labels != 0
            return nn.functional.cross_entropy(self.head(self.embed(ids))[kept], labels[kept])

    module = Masked().eval()
    plan = infer_call_plan(module)
    ids = torch.tensor([[0, 5, 3, 0], [2, V, 0, 1]])
    torch.testing.assert_close(call_logits(module, plan, ids), module.head(module.embed(ids)))
