"""Parsing, messages, exit codes and outputs of the commands, on a stand-in for ``api``."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

import anyformer
from anyformer import cli
from anyformer.core.errors import CheckpointError, Interrupted, SourceError
from anyformer.core.findings import Finding
from anyformer.core.settings import (
    CheckSettings,
    DemoSettings,
    EvaluateSettings,
    ExportSettings,
    GenerateSettings,
    InspectSettings,
    RepairSettings,
    TrainSettings,
)

RESULTS = {
    "val_loss": 3.084,
    "perplexity": 21.8,
    "bits_per_byte": 1.312,
    "unigram_entropy": 6.02,
    "bigram_entropy": 3.55,
    "beats_bigram": True,
    "tokens_per_second": 11300.0,
    "steps": 2000,
    "train_seconds": 171.0,
}
FINDING = Finding("precision", "note", "fp32", reason="bf16 is slower here")


@dataclasses.dataclass
class TrainResult:
    run_path: Path = Path("runs/novel")
    results: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(RESULTS))
    findings: list[Finding] = dataclasses.field(default_factory=lambda: [FINDING])
    report_path: Path | None = Path("runs/novel/report.html")
    samples: list[dict[str, str]] = dataclasses.field(
        default_factory=lambda: [{"prompt": "def ", "text": "def f(x):\n    return x"}]
    )


@dataclasses.dataclass
class Evaluation:
    run_path: Path = Path("runs/novel")
    loss: float = 3.084
    perplexity: float = 21.8
    bits_per_byte: float = 1.312
    tokens: int = 700_000
    unigram_entropy: float = 6.02
    bigram_entropy: float = 3.55
    unknown_share: float = 0.0
    beats_bigram: bool = True
    findings: list[Finding] = dataclasses.field(default_factory=lambda: [FINDING])
    objective: str = "causal"
    examples: int | None = None

    @property
    def figures(self) -> dict[str, Any]:
        return {"objective": self.objective, "val_loss": self.loss, **dataclasses.asdict(self)}


class FakeApi(types.ModuleType):
    """Records how it is called; ``error`` is raised instead of an answer."""

    def __init__(self) -> None:
        super().__init__("anyformer.api")
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.error: BaseException | None = None

    def _answer(self, name: str, result: Any, *args: Any, **keywords: Any) -> Any:
        self.calls.append((name, args, keywords))
        if self.error is not None:
            raise self.error
        return result

    def train(self, model: Any = None, **keywords: Any) -> TrainResult:
        print("a model's own print")
        keywords["view"].stage("data", "corpus.txt", "1 file")
        return self._answer("train", TrainResult(), model, **keywords)

    def demo(self, settings: DemoSettings, **keywords: Any) -> TrainResult:
        return self._answer("demo", TrainResult(), settings, **keywords)

    def evaluate(self, run: str, **keywords: Any) -> Evaluation:
        return self._answer("evaluate", Evaluation(), run, **keywords)

    def generate_text(self, run: str, *, on_text: Callable[[str], None] | None, **keywords: Any) -> list[str]:
        if on_text is not None:
            for piece in ("def ", "f(", "x):"):
                on_text(piece)
        return self._answer("generate", ["def f(x):"], run, **keywords)

    def export(self, model: str, **keywords: Any) -> Any:
        finding = Finding("onnx", "ok", "1.0 MB, by torch.export, opset 18")
        record = {"format": "onnx", "output_path": "runs/novel/export/model.onnx"}
        exports = types.SimpleNamespace(folder="runs/novel/export", files=(record,), findings=(finding,))
        return self._answer("export", exports, model, **keywords)

    def inspect(self, model: str, **keywords: Any) -> Any:
        parameter = types.SimpleNamespace(numel=lambda: 124_439_808)
        provenance = types.SimpleNamespace(
            class_name="GPT", location="model.py", files={"model.py": "3f2a99"}, to_dict=lambda: {"class_name": "GPT"}
        )
        module = types.SimpleNamespace(parameters=lambda: [parameter])
        loaded = types.SimpleNamespace(module=module, provenance=provenance, findings=())
        tokens = Finding("tokens", "ok", "idx (B, T) int64", reason="the only argument that takes ids")
        plan = types.SimpleNamespace(family="decoder", causal=True, findings=(tokens,), to_dict=lambda: {"a": 1})
        return self._answer("inspect", (loaded, plan), model, **keywords)

    def check(self, model: str, **keywords: Any) -> Any:
        from anyformer.checks import CheckReport, CheckResult

        results = (
            CheckResult("call", 0, "ok", "decoder: (B, T, V) from idx"),
            CheckResult("future", 1, "fail", "a later token moves it", "nothing", "no mask", "blocks.0 (Attention)"),
            CheckResult("prefix", 1, "fail", "they differ", under="future"),
        )
        return self._answer("check", CheckReport("GPT", results, 1.25), model, **keywords)

    def repair(self, model: str, **keywords: Any) -> Any:
        weights = Finding("weights", "ok", "the same 14 names")
        repair = types.SimpleNamespace(
            path=Path(model),
            source="x = 2\n",
            diff="-x = 1\n+x = 2\n",
            changes=("x is two",),
            findings=(weights,),
            needed=True,
        )
        return self._answer("repair", repair, model, **keywords)

    def report(self, run: str) -> Path:
        return self._answer("report", Path(run) / "report.html", run)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeApi:
    fake = FakeApi()
    monkeypatch.setenv("COLUMNS", "100")  # the width of what is drawn
    monkeypatch.setitem(sys.modules, "anyformer.api", fake)
    monkeypatch.setattr(anyformer, "api", fake, raising=False)
    monkeypatch.chdir(tmp_path)
    return fake


Capture = pytest.CaptureFixture[str]

# what follows a command so that it is complete
WHOLE = {
    "demo": [],
    "inspect": ["model.py"],
    "check": ["model.py"],
    "repair": ["model.py"],
    "train": ["model.py"],
    "evaluate": ["runs/novel"],
    "generate": ["runs/novel"],
    "export": ["runs/novel"],
    "report": ["runs/novel"],
    "runs": [],
}


def test_train_passes_settings_and_shows_the_result(api: FakeApi, capsys: Capture) -> None:
    argv = ["train", "my_model.py", "--data", "corpus.txt", "--max_epochs", "3", "--prompt", "def "]
    assert cli.main(argv) == 0
    ((name, args, keywords),) = api.calls
    assert (name, args) == ("train", ("my_model.py",))
    assert keywords["settings"] == TrainSettings(data="corpus.txt", max_epochs=3, prompt="def ")
    assert keywords["command"] == "anyformer train my_model.py --data corpus.txt --max_epochs 3 --prompt 'def '"
    out, err = capsys.readouterr()
    assert err.splitlines()[0] == "anyformer train · my_model.py on corpus.txt → runs/my_model-corpus"
    assert "data       corpus.txt" in err
    assert "held-out loss 3.08 (1.31 bits per byte)     guessing by single tokens 6.02 · by token pairs 3.55" in out
    assert "  def │ f(x):\n      │     return x\n" in out
    assert "  report     runs/novel/report.html\n" in out
    assert out.splitlines()[-1] == "  next       anyformer generate runs/novel --prompt 'def '"


def test_repair_gives_the_diff_alone_on_stdout(api: FakeApi, capsys: Capture) -> None:
    assert cli.main(["repair", "model.py"]) == 0
    out, err = capsys.readouterr()
    assert out == "-x = 1\n+x = 2\n"
    assert "  - x is two\n" in err
    assert "anyformer repair model.py --write OUT.py   (nothing is written yet)" in err
    assert cli.main(["repair", "model.py", "--in_place", "--json"]) == 0
    assert api.calls[-1][2]["settings"] == RepairSettings(in_place=True)
    record = json.loads(capsys.readouterr().out)
    assert (record["repaired"], record["written"], record["changes"]) == (True, "model.py", ["x is two"])
    assert cli.main(["repair", "model.py", "--in_place", "--write", "a.py"]) == 2


def test_weights_reach_every_verb_on_a_model(api: FakeApi) -> None:
    for command in ("inspect", "repair", "train"):
        assert cli.main([command, "model.py", "--weights", "own.safetensors", "--quiet"]) == 0
    inspected, repaired, trained = (keywords for _, _, keywords in api.calls)
    assert inspected["weights"] == "own.safetensors"
    assert repaired["settings"] == RepairSettings(weights="own.safetensors")
    assert trained["settings"] == TrainSettings(weights="own.safetensors")


def test_a_check_shows_the_cause_first_and_exits_with_1(api: FakeApi, capsys: Capture) -> None:
    assert cli.main(["check", "my model.py", "--weights", "own.safetensors", "--tier", "0"]) == 1
    assert api.calls[-1][2]["settings"] == CheckSettings(weights="own.safetensors", tier=0)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "✗ future: a later token moves it",
        "    expected  nothing",
        "    likely    no mask",
        "    look at   blocks.0 (Attention)",
        "    with it   prefix",
        "    blocks training · tier 1",
        "",
        "tier 0 · what it holds",
        "  ✓ call  decoder: (B, T, V) from idx",
        "",
        "tier 1 · what a forward pass does",
        "  ✗ future  a later token moves it",
        "  ✗ prefix  they differ (with: future)",
        "",
        "GPT: ✗ not right as it is   1 ok · 2 wrong · 1.2 s",
        "→ mend what is marked ✗, then: anyformer check 'my model.py'",
    ]
    assert cli.main(["check", "model.py", "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert (record["blocked"], [f["name"] for f in record["findings"]]) == (True, ["call", "future"])
    assert record["results"][2]["under"] == "future"
    assert cli.main(["check", "model.py", "--tier", "7"]) == 2
    assert "there are tiers 0, 1, 2 and 3" in capsys.readouterr().err


def test_the_first_line_comes_before_the_heavy_import(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anyformer.api", None)  # importing it now fails
    monkeypatch.delattr(anyformer, "api")
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert cli.main(["train", "m.py"]) == 1
    assert stderr.getvalue().startswith("anyformer train · m.py on python-stdlib → runs/m-python-stdlib\n")


def test_an_existing_name_is_announced_with_a_number(api: FakeApi, capsys: Capture) -> None:
    Path("runs/m-python-stdlib").mkdir(parents=True)
    Path("runs/m-python-stdlib-2").mkdir()
    cli.main(["train", "m.py"])
    assert "→ runs/m-python-stdlib-3\n" in capsys.readouterr().err


def test_a_loss_above_the_pairs_is_said(api: FakeApi, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RESULTS, "beats_bigram", False)
    cli.main(["demo"])
    assert "! not below the loss by token pairs" in capsys.readouterr().out


def test_demo_evaluate_generate_inspect_report(api: FakeApi, capsys: Capture) -> None:
    assert cli.main(["demo", "--max_steps", "20"]) == 0
    assert "next       anyformer train your_model.py --data your_text.txt" in capsys.readouterr().out
    assert cli.main(["evaluate", "runs/novel", "--data", "held_out.txt"]) == 0
    assert "on 700,000 tokens · perplexity 21.8" in capsys.readouterr().out
    assert cli.main(["generate", "runs/novel", "--prompt", "def ", "--max_tokens", "5"]) == 0
    out, err = capsys.readouterr()
    assert out == "def f(x):\n"
    assert "9 characters in" in err
    assert cli.main(["inspect", "model.py"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "GPT in model.py (sha256 3f2a…)    124,439,808 parameters"
    assert "  tokens  idx (B, T) int64  the only argument that takes ids" in out
    assert cli.main(["report", "runs/novel"]) == 0
    assert capsys.readouterr().out == "runs/novel/report.html\n"
    assert [call[2].get("settings", call[1][0]) for call in api.calls] == [
        DemoSettings(max_steps=20),
        EvaluateSettings(data="held_out.txt"),
        GenerateSettings(prompt="def ", max_tokens=5),
        "model.py",
        "runs/novel",
    ]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_json_is_the_only_thing_on_stdout(api: FakeApi, capsys: Capture, command: str) -> None:
    assert cli.main([command, *WHOLE[command], "--json"]) == (command == "check")  # of which the answer blocks
    record = json.loads(capsys.readouterr().out)
    assert record["command"] == command
    if command in ("train", "demo"):
        assert record["results"] == RESULTS
        assert record["run"] == "runs/novel"
    if command in ("train", "demo", "evaluate"):
        assert record["findings"] == [FINDING.to_dict()]


def test_json_of_an_error(api: FakeApi, capsys: Capture) -> None:
    api.error = SourceError("no such file: m.py", fix="anyformer train example:gpt")
    assert cli.main(["train", "m.py", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"] == {
        "type": "SourceError",
        "what": "no such file: m.py",
        "detail": "",
        "fix": "anyformer train example:gpt",
    }
    assert "anyformer: no such file: m.py\n  → anyformer train example:gpt\n" in err


def test_quiet_shows_results_only(api: FakeApi, capsys: Capture) -> None:
    assert cli.main(["train", "m.py", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "held-out loss" in out


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (SourceError("no such file: m.py"), 2, "anyformer: no such file: m.py\n"),
        (CheckpointError("no checkpoint", "looked in runs/x"), 1, "anyformer: no checkpoint\n  looked in runs/x\n"),
        (Interrupted("stopped at step 5"), 130, "anyformer: stopped at step 5\n"),
        (KeyboardInterrupt(), 130, "anyformer: interrupted\n"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "anyformer: unexpected ZeroDivisionError: division by zero\n  → run again with --debug for the traceback\n",
        ),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_errors_have_one_message_and_their_code(
    api: FakeApi, capsys: Capture, error: BaseException, code: int, message: str
) -> None:
    api.error = error
    assert cli.main(["evaluate", "runs/novel"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "anyformer evaluate · runs/novel on its own held-out text\n\n" + message


def test_debug_shows_the_traceback(api: FakeApi, capsys: Capture) -> None:
    api.error = SourceError("no such file")
    assert cli.main(["evaluate", "runs/novel", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("anyformer: no such file\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["trian"],
            (
                "there is no command 'trian'\n"
                "  commands: demo, inspect, check, repair, train, evaluate, generate, export, report, runs\n"
            ),
        ),
        (["trian"], "  → did you mean anyformer train?\n"),
        (["model.py"], "  → anyformer train model.py --data FILE\n"),
        (["train"], "train needs a model\n"),
        (["inspect"], "inspect needs a model\n"),
        (["generate", "--prompt", "x"], "generate needs a run\n"),
        (["train", "m.py", "--max_epoch", "3"], "train has no flag --max_epoch\n  → did you mean --max_epochs?\n"),
        (["train", "m.py", "--batch-size=3"], "train has no flag --batch-size\n  → did you mean --batch_size?\n"),
        (["train", "m.py", "--bogus"], "train has no flag --bogus\n  → anyformer train --help lists all flags\n"),
        (["train", "m.py", "--max_epochs", "many"], "--max_epochs is 'many'; it must be a whole number\n"),
        (["train", "m.py", "--max_steps=1.5"], "--max_steps is '1.5'; it must be a whole number\n"),
        (["train", "m.py", "--use_gpu", "maybe"], "--use_gpu is 'maybe'; it must be true or false\n"),
        (["train", "m.py", "--precision", "64"], "--precision is '64'; it must be one of auto, 32, 16, bf16\n"),
        (["train", "m.py", "--learning_rate", "fast"], "--learning_rate is 'fast'; it must be a number\n"),
        (["train", "m.py", "--batch_size", "0"], "batch_size is 0; it must be greater than 0\n"),
        (["train", "m.py", "--data"], "--data needs a value\n"),
        (["train", "m.py", "a b"], "unexpected argument 'a"),
        (["train", "m.py", "--config", "nope.yaml"], "no settings file"),
        (["train", "--resume", "runs/none"], "cannot resume runs/none: there is no such folder\n"),
        (["report", "runs/x", "--data", "y"], "report has no flag --data\n"),
    ],
)
def test_wrong_usage_exits_2_with_one_message(api: FakeApi, capsys: Capture, argv: list[str], message: str) -> None:
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("anyformer: ")
    assert message in err
    assert "Traceback" not in err
    assert "usage:" not in err
    assert not api.calls


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sise: 4", "the settings file has an unknown key batch_sise\n  → did you mean batch_size?\n"),
        ("batch_size: four", "batch_size in the settings file is 'four'; it must be a whole number or auto\n"),
        ("precision: 32", 'must be one of auto, 32, 16, bf16\n  → write precision: "32", in quotes\n'),
        ("batch_size: [4", "the settings file is not a YAML mapping of settings\n"),
        ("- 1", "the settings file is not a YAML mapping of settings\n"),
    ],
)
def test_a_wrong_settings_file_is_explained(api: FakeApi, capsys: Capture, text: str, message: str) -> None:
    Path("s.yaml").write_text(text + "\n", encoding="utf-8")
    assert cli.main(["train", "m.py", "--config", "s.yaml"]) == 2
    assert message in capsys.readouterr().err


def test_print_config_makes_a_file_that_config_takes(api: FakeApi, capsys: Capture) -> None:
    flags = ["--precision", "32", "--learning_rate", "1e-3", "--prompt", "a: 'b' #", "--data", "12", "--max_steps", "7"]
    assert cli.main(["train", "--print_config", *flags]) == 0
    printed = capsys.readouterr().out
    assert set(yaml.safe_load(printed)) == {field.name for field in dataclasses.fields(TrainSettings)}
    Path("settings.yaml").write_text(printed, encoding="utf-8")
    assert cli.main(["train", "m.py", "--config", "settings.yaml", "--max_steps", "9"]) == 0
    ((_, _, keywords),) = api.calls
    wanted = TrainSettings(precision="32", learning_rate=1e-3, prompt="a: 'b' #", data="12", max_steps=9)
    assert keywords["settings"] == wanted


@pytest.mark.parametrize("flag", [["--resume", "runs/novel"], ["--resume=runs/novel"]])
def test_resume_starts_from_the_runs_own_settings(api: FakeApi, capsys: Capture, flag: list[str]) -> None:
    Path("runs/novel").mkdir(parents=True)
    stored = TrainSettings(data="corpus.txt", batch_size=4, max_epochs=2)
    Path("runs/novel/settings.yaml").write_text(yaml.safe_dump(stored.to_dict()), encoding="utf-8")
    assert cli.main(["train", *flag, "--max_epochs", "5"]) == 0
    ((_, args, keywords),) = api.calls
    assert args == (None,)
    assert keywords["settings"] == dataclasses.replace(stored, max_epochs=5, resume="runs/novel")
    assert "resuming runs/novel" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("train", TrainSettings),
        ("demo", DemoSettings),
        ("evaluate", EvaluateSettings),
        ("export", ExportSettings),
        ("generate", GenerateSettings),
        ("repair", RepairSettings),
        ("inspect", InspectSettings),
        ("check", CheckSettings),
    ],
)
def test_every_field_is_a_flag_with_its_docstring(capsys: Capture, command: str, settings: type) -> None:
    import ast
    import inspect

    assert cli.main([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    body = ast.parse(inspect.getsource(settings)).body[0].body  # type: ignore[attr-defined]
    docs = {
        field.target.id: doc.value.value
        for field, doc in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
    }
    assert set(docs) == {field.name for field in dataclasses.fields(settings)}
    for name, doc in docs.items():
        assert f"--{name} " in shown
        assert " ".join(doc.split()) in shown
    for flag in ("--config", "--print_config", "--json", "--quiet", "--debug"):
        assert flag in shown
    assert "null" not in shown


def test_help_and_version(capsys: Capture) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"anyformer {anyformer.__version__}\n"
    for argv in ([], ["--help"]):
        assert cli.main(argv) == 0
        shown = capsys.readouterr().out
        assert all(f"  {name} " in shown for name in cli.COMMANDS)


def test_json_stays_strict_where_a_figure_is_not_finite(
    api: FakeApi, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RESULTS, "perplexity", float("inf"))
    monkeypatch.setitem(RESULTS, "val_loss", float("nan"))
    assert cli.main(["demo", "--json"]) == 0
    record = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (record["results"]["perplexity"], record["results"]["val_loss"]) == (None, None)


_TIME_FIRST = """
import warnings, torch
from torch import nn

class TextClassifier(nn.Module):
    def __init__(self, vocab_size=30, d_model=16, num_classes=2):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(d_model, 2, 32, 0.0), 1)
        self.head = nn.Linear(d_model, num_classes)
        warnings.warn("of the model itself")

    def forward(self, ids):
        return self.head(self.encoder(self.tokens(ids).transpose(0, 1)).mean(0))
"""


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_torchs_advice_on_its_own_layers_is_for_debugging(tmp_path: Path, debug: list[str]) -> None:
    (tmp_path / "model.py").write_text(_TIME_FIRST)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert cli.main(["inspect", str(tmp_path / "model.py"), *debug]) == 0
    told = [str(warning.message) for warning in caught]
    assert any("of the model itself" in text for text in told)
    assert any("enable_nested_tensor" in text for text in told) is bool(debug)


def test_a_terminal_without_unicode_costs_signs_not_results() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "anyformer", "train", "--help"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 0
    assert b"--min_lr_ratio" in done.stdout


def test_a_closed_pipe_is_quiet() -> None:
    """``anyformer … | head -c 0``: no traceback, not even from the interpreter's own flush at exit."""
    command = f"{sys.executable} -m anyformer --help | true"  # true is gone long before Python has started
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
