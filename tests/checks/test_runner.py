"""A right model passes whole and is left as it was; what a check says, and what it does where a model raises."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anyformer import api
from anyformer.checks import CheckReport, CheckResult, Limits, run_checks, runner
from anyformer.checks.results import folded
from anyformer.core.settings import RepairSettings
from anyformer.models.callplan import infer_call_plan
from anyformer.models.source import load_model
from benchmarks.mutants.planted import host_source
from tests.checks.hosts import GPT, POSITIONS, Counting, D, Listed, Noisy, NoMask, TooWide, V


def verdicts(report: CheckReport) -> dict[str, str]:
    return {result.name: result.verdict for result in report.results}


def test_a_right_model_passes_whole() -> None:
    report = run_checks(GPT(), tiers=(0, 1, 2))
    assert not report.causes
    assert not report.blocked
    given = verdicts(report)
    assert {name for name, verdict in given.items() if verdict == "n/a"} == {
        *("padding", "reload", "new process", "source", "dropout")
    }
    assert sum(verdict == "ok" for verdict in given.values()) >= 25
    assert [name for tier in (0, 1, 2) for name, _ in runner.TIERS[tier]] == [r.name for r in report.results][1:]


def test_what_there_is_no_time_for_is_not_tried() -> None:
    report = run_checks(GPT(), within=0.0)
    assert {result.measured for result in report.results[1:]} == {"not tried: the time for the checks was up"}
    assert not report.blocked


def test_what_a_builder_exports_passes_once_it_is_repaired(tmp_path: Path) -> None:
    export = Path(__file__).parents[1] / "models" / "builder_exports" / "as_documented.py"
    before = run_checks(load_model(export))
    assert before.blocked
    assert "the output projection is missing" in before.causes[0].measured
    assert before.causes[0].cause == "anyformer repair MODEL"
    api.repair(export, settings=RepairSettings(write=str(tmp_path / "model.py")))
    report = run_checks(load_model(tmp_path / "model.py"))
    assert not report.causes
    assert report.count("ok") >= 25


def test_a_file_of_several_models_is_built_again_by_its_class(tmp_path: Path) -> None:
    source = host_source("gpt")
    (tmp_path / "model.py").write_text(
        source + source[source.index("class GPT(") :].replace("class GPT(", "class Other(")
    )
    for spec in (f"{tmp_path / 'model.py'}:GPT", f"{tmp_path}:GPT"):
        report = run_checks(load_model(spec), only=("reload", "new process"))
        assert verdicts(report) == {"call": "ok", "own loss": "ok", "reload": "ok", "new process": "ok"}


def test_where_there_is_no_room_for_a_copy_none_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.checks.subject.available_memory", lambda: 1000)
    report = run_checks(load_model("example:gpt"), only=("reload", "new process", "float64"))
    assert {name for name, verdict in verdicts(report).items() if verdict == "n/a"} == {
        *("reload", "new process", "float64")
    }
    assert "would be needed, 0.0 GB are free" in report.results[-1].measured


def test_labels_that_are_viewed_may_be_cut(tmp_path: Path) -> None:
    class Viewing(GPT):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids.view(-1).view(ids.shape))

    assert not run_checks(Viewing(), only=("prefix", "padding")).causes


def test_a_state_of_training_mode_is_no_look_ahead() -> None:
    class Writing(GPT):
        """In training mode each call adds what it read to a memory, which the next one reads."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("memory", torch.zeros(200_000))

        def forward(self, ids: Tensor) -> Tensor:
            logits = super().forward(ids) + self.memory.sum()
            if self.training:
                self.memory = self.memory + logits.detach().std() / len(self.memory) * torch.arange(1, V + 1).sum()
            return logits * (1 + self.memory.mean())

    assert not run_checks(Writing(), only=("future",)).causes


class Convolving(GPT):
    """Causal by Fourier transforms, whose sums round; scaled: by filters that know how long the text is."""

    scaled = False

    def __init__(self) -> None:
        super().__init__()
        del self.blocks, self.positions
        self.filter = nn.Parameter(torch.randn(POSITIONS, D).cumsum(0) * 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        T = ids.shape[1]
        x = self.tokens(ids)
        filter_ = self.filter[:T] * (1 + T if self.scaled else 1)
        both = torch.fft.rfft(x, 2 * T, dim=1) * torch.fft.rfft(filter_, 2 * T, dim=0)
        return self.head(self.norm(x + torch.fft.irfft(both, 2 * T, dim=1)[:, :T]))


class Scaled(Convolving):
    scaled = True


def test_rounding_is_no_leak_and_a_length_that_counts_blocks_nothing() -> None:
    report = run_checks(Convolving(), only=("future gradient", "prefix", "future"))
    assert verdicts(report) == {"call": "ok", "future gradient": "ok", "prefix": "ok", "future": "ok"}
    report = run_checks(Scaled(), only=("future gradient", "prefix", "future"))
    assert [(cause.name, cause.verdict) for cause in report.causes] == [("prefix", "warn")]


def test_a_text_of_padding_alone_need_give_nothing() -> None:
    class Hiding(GPT):
        """Its padding has id 1; a row that is padding alone is refused, as nested tensors do."""

        def forward(self, ids: Tensor) -> Tensor:
            if bool((ids == 1).all(1).any()):
                raise RuntimeError("a row without a token")
            return super().forward(ids)

    assert not run_checks(Hiding(), only=("finite",)).causes


def test_dropout_inside_an_lstm_makes_no_rows_differ() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.tokens, self.head = nn.Embedding(V, D), nn.Linear(D, V)
            self.core = nn.LSTM(D, D, num_layers=2, dropout=0.5, batch_first=True)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.core(self.tokens(ids))[0])

    module = Recurrent()
    assert verdicts(run_checks(module, only=("rows in training",)))["rows in training"] == "ok"
    assert module.core.dropout == 0.5


def test_bfloat16_is_tried_as_training_computes(tmp_path: Path) -> None:
    class Stock(nn.Module):
        """In eval mode torch computes the layer as one operation, which fails under autocast."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(V, D), nn.Linear(D, V)
            self.layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, 4, 64, batch_first=True), 1)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.layer(self.tokens(ids), src_key_padding_mask=ids == 0))

    module = Stock().eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError, match="BFloat16"):
        module(torch.ones(2, 5, dtype=torch.int64))
    assert verdicts(run_checks(module, only=("bfloat16",)))["bfloat16"] == "ok"


def test_what_follows_from_a_cause_is_folded_under_it() -> None:
    report = run_checks(Noisy())
    cause = report.causes[0]
    assert {"prefix", "row order"} & {result.name for result in report.symptoms(cause)}
    assert not {result.name for result in report.causes} & {"prefix", "row order", "state"}


def test_the_module_is_left_as_it_was() -> None:
    for module in (Counting().train(), Listed()):
        before = copy.deepcopy(module.state_dict())
        modes = [m.training for m in module.modules()]
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        run_checks(module)
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
        assert modes == [m.training for m in module.modules()]
        assert all(p.grad is None and p.requires_grad for p in module.parameters())
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_a_check_that_fails_or_takes_too_long_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: object) -> CheckResult:
        raise ValueError("no such thing")

    def endless(subject: object) -> CheckResult:
        while True:
            pass

    def fine(subject: object) -> CheckResult:
        return CheckResult("fine", 0, "ok", "as it should be")

    monkeypatch.setattr(runner, "_SECONDS", 0.2)
    monkeypatch.setattr(runner, "TIERS", {0: (("broken", broken), ("endless", endless), ("fine", fine))})
    report = run_checks(GPT(), tiers=(0,))
    assert [(r.name, r.verdict) for r in report.results] == [
        ("call", "ok"),
        ("broken", "fail"),
        ("endless", "warn"),
        ("fine", "ok"),
    ]
    assert report.results[1].measured == "ValueError: no such thing"
    assert "cut off" in report.results[2].measured


class Raises(GPT):
    def forward(self, ids: Tensor) -> Tensor:
        if ids.shape[1] == 1:
            raise RuntimeError("one token is too few")
        return super().forward(ids)


def test_an_error_in_a_check_names_the_users_line() -> None:
    (result,) = (r for r in run_checks(Raises()).results if r.name == "lengths")
    assert (result.verdict, result.measured) == ("warn", "1 token: RuntimeError: one token is too few")
    assert result.where.startswith("test_runner.py:")


def test_a_model_that_cannot_be_called_is_a_result() -> None:
    class Nothing(nn.Module):
        def forward(self, ids: Tensor) -> None:
            return None

    report = run_checks(Nothing())
    (result,) = report.results
    assert (result.name, result.verdict, report.blocked) == ("call", "fail", True)
    assert "Nothing has no parameters" in result.measured


class Misspelt(GPT):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + undefined  # type: ignore[name-defined]  # noqa: F821


def test_a_call_that_fails_names_the_line_and_the_error() -> None:
    (result,) = run_checks(Misspelt()).results
    assert result.measured.endswith("NameError: name 'undefined' is not defined")
    assert result.where.startswith("test_runner.py:")
    assert result.cause.startswith("every call ended with an error at test_runner.py:")


def test_a_model_that_reads_no_other_token_by_design_is_noted() -> None:
    module = nn.Sequential(nn.Embedding(40, 16), nn.Linear(16, 40))
    assert verdicts(run_checks(module))["past"] == "note"


def test_weights_that_are_not_fresh_are_not_judged_as_such() -> None:
    assert verdicts(run_checks(TooWide()))["loss at the start"] == "warn"
    given = verdicts(run_checks(TooWide(), trained=True))
    assert (given["loss at the start"], given["initial weights"]) == ("n/a", "n/a")


def test_limits_are_those_that_are_given() -> None:
    assert verdicts(run_checks(TooWide(), limits=Limits(start=1e6)))["loss at the start"] == "ok"


def test_an_encoder_is_judged_by_its_own_rule() -> None:
    class BertForMaskedLM(GPT):
        attention = NoMask  # sees both sides, and is called so

    module = BertForMaskedLM()
    plan = infer_call_plan(module, objective="masked")
    given = verdicts(run_checks(module, plan=plan))
    assert (given["future"], given["prefix"], given["past"]) == ("n/a", "n/a", "ok")


def test_a_file_is_built_anew_with_its_weights(tmp_path: Path) -> None:
    source = (
        "import torch\nfrom torch import nn\n\n\nclass LM(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.e = nn.Embedding(50, 16)\n        self.h = nn.Linear(16, 50)\n"
        "        KEPT\n\n    def forward(self, ids):\n        return self.h(self.e(ids) * self.scale)\n"
    )
    for kept, verdict in (
        ("self.register_buffer('scale', torch.rand(16))", "ok"),
        ("self.scale = torch.rand(16)", "fail"),
    ):
        (tmp_path / "model.py").write_text(source.replace("KEPT", kept))
        report = run_checks(load_model(tmp_path / "model.py"))
        (result,) = (r for r in report.results if r.name == "reload")
        assert result.verdict == verdict
        assert result.under == ("" if verdict == "ok" else "registered")


def test_a_cause_is_no_symptom_of_what_it_explains() -> None:
    results = [CheckResult(name, 1, "fail", "") for name in ("prefix", "future", "repeat", "state")]
    under = {result.name: result.under for result in folded(results)}
    assert under == {"prefix": "state", "future": "state", "repeat": "state", "state": ""}
    both = folded(
        [CheckResult("call", 0, "fail", ""), CheckResult("ids", 1, "warn", ""), CheckResult("rows", 1, "ok", "")]
    )
    assert [result.under for result in both] == ["", "call", ""]


class HidesItself(nn.Module):
    """A classifier of two classes whose padding has an id beyond them."""

    def __init__(self, hide: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.e, self.head, self.hide = nn.Embedding(40, 16), nn.Linear(16, 2), hide

    def forward(self, ids: Tensor) -> Tensor:
        keep = (ids != 7)[..., None].float()
        keep = keep if self.hide else torch.ones_like(keep)
        return self.head((self.e(ids) * keep).sum(1) / keep.sum(1))


def test_padding_that_a_module_finds_by_its_id_is_hidden_or_not() -> None:
    for hide, verdict in ((True, "ok"), (False, "warn")):
        (result,) = (r for r in run_checks(HidesItself(hide), only=("padding",)).results if r.name == "padding")
        assert (result.verdict, "id 7" in result.measured) == (verdict, True)


class Experts(nn.Module):
    """Each token goes to one of eight: of few tokens some get none."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate = nn.Embedding(50, 16), nn.Linear(16, 8)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16)) for _ in range(8))
        self.head = nn.Linear(16, 50)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        weights, chosen = self.gate(x).softmax(-1).max(-1, keepdim=True)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen[..., 0] == number).nonzero(as_tuple=True)
            out[rows] = weights[rows] * expert(x[rows])
        return self.head(x + out)


def test_an_expert_that_no_token_of_one_batch_goes_to_is_no_dead_one() -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        module = Experts()
        assert not run_checks(module, only=("gradients",)).causes
    with torch.no_grad():
        module.gate.bias[3] = -1e9
    (cause,) = run_checks(module, only=("gradients",)).causes
    assert cause.where.startswith("experts.3")
