"""Every way to go wrong ends in one clear message, the right exit code, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyformer import cli

MODEL = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, vocab_size=40, positions=32):
        super().__init__()
        self.e = nn.Embedding(vocab_size, 8)
        self.p = nn.Embedding(positions, 8)
        self.h = nn.Linear(8, vocab_size)

    def forward(self, tokens):
        return self.h(self.e(tokens) + self.p(torch.arange(tokens.shape[1])))
"""
SHORT = ["--max_steps", "6", "--batch_size", "4", "--max_length", "16", "--precision", "32"]

Said = Callable[..., str]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    Path("m.py").write_text(MODEL)
    Path("t.txt").write_text("the cat sat on a mat and ran far " * 150)
    yield
    half = [str(path) for path in tmp_path.rglob("*") if ".tmp" in path.name]
    assert not half


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Run a command that must fail; return its one message."""

    def run(*argv: str, code: int = 2, runs: int = 0) -> str:
        capsys.readouterr()
        assert cli.main(argv) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        assert len(re.findall(r"^anyformer: ", err, re.MULTILINE)) == 1
        message = err[err.index("anyformer: ") :]
        assert "\n  → " in message, message
        assert not re.search(r"unexpected \w+Error", message)
        assert len(message) < 900
        found = list(Path("runs").iterdir()) if Path("runs").is_dir() else []
        assert len(found) == runs
        return message

    return run


def train(*more: str, model: str = "m.py", data: str = "t.txt") -> list[str]:
    return ["train", model, "--data", data, *SHORT, *more]


def test_no_such_model(said: Said) -> None:
    Path("model_a.py").write_text(MODEL)
    message = said(*train(model="model.py"))
    assert "model.py" in message


def test_no_such_data(said: Said) -> None:
    assert "nowhere.txt" in said(*train(data="nowhere.txt"))


def test_a_file_that_is_no_python_shows_line_and_caret(said: Said) -> None:
    Path("m.py").write_text("import torch\nclass M(torch.nn.Module:\n    pass\n")
    message = said(*train())
    assert re.search(r"m\.py:2 is not Python", message)
    assert "class M(torch.nn.Module:" in message
    assert re.search(r"^ +\^", message, re.MULTILINE)


def test_no_module_in_the_file(said: Said) -> None:
    Path("m.py").write_text("class NotOne:\n    pass\n")
    assert "nn.Module" in said(*train())


def test_several_candidates_are_named(said: Said) -> None:
    Path("m.py").write_text(MODEL + MODEL.replace("Tiny", "Other"))
    message = said(*train())
    assert "Tiny" in message
    assert "Other" in message
    assert "m.py:" in message


def test_a_missing_import_names_the_package(said: Said) -> None:
    used = MODEL.replace("    def forward", "    kind = einops_of_another_kind\n\n    def forward")
    Path("m.py").write_text("import einops_of_another_kind\n" + used)
    assert "einops_of_another_kind" in said(*train(), code=1)


def test_weights_that_do_not_fit_name_the_tensors(said: Said) -> None:
    torch.save({"e.weight": torch.zeros(40, 9), "extra.bias": torch.zeros(2)}, "w.pt")
    message = said(*train("--weights", "w.pt"))
    for name in ("e.weight", "extra.bias", "h.weight"):
        assert name in message


def test_a_tokenizer_with_ids_beyond_the_embedding(said: Said) -> None:
    from anyformer.tokenization import BPETrainerConfig, FastBPETrainer

    tokenizer = FastBPETrainer(BPETrainerConfig(vocab_size=300, exact=False)).train_on_dataset(["the cat sat " * 9] * 9)
    tokenizer.save_pretrained("tok")
    message = said(*train("--tokenizer", "tok"))
    assert re.search(r"\d+ ids.*40", message)


def test_a_vocabulary_beyond_the_embedding(said: Said) -> None:
    message = said(*train("--vocab_size", "41"))
    assert "vocab_size is 41" in message
    assert "40" in message


def test_sequences_beyond_the_positions(said: Said) -> None:
    message = said(*train("--max_length", "33"))
    assert "max_length is 33" in message
    assert "--max_length 32" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"   \n\n ", "too short"),
        (b"the cat", "short"),
        (b"\x00\x01\xff\xfe" * 999, "not a text: NUL byte"),
    ],
)
def test_text_that_cannot_be_trained_on(said: Said, content: bytes, words: str) -> None:
    Path("t.txt").write_bytes(content)
    assert re.search(words, said(*train()))


def test_an_unknown_column_names_those_there_are(said: Said) -> None:
    Path("t.jsonl").write_text("".join(json.dumps({"body": "a b c", "id": i}) + "\n" for i in range(50)))
    message = said(*train("--text_column", "text", data="t.jsonl"))
    assert "text" in message
    assert "body" in message


@pytest.mark.parametrize("where", ["t.txt/runs", "/proc/runs"])
def test_an_unwritable_run_directory(said: Said, where: str) -> None:
    if where.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("no /proc here")
    message = said(*train("--output_dir", where), code=1)
    assert where in message
    assert "--output_dir" in message


def full(*args: Any, **keywords: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_under_the_token_cache(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.data.cache._write_meta", full)
    message = said(*train(), code=1)
    assert "disk is full" in message
    assert "ANYFORMER_CACHE" in message
    assert not list(Path("cache").iterdir())


def test_a_full_disk_under_the_run_directory(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.runs.directory.write_atomically", full)
    assert "is full" in said(*train(), code=1)


def test_a_full_disk_while_the_model_is_stored(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.runs.directory.shutil.copyfile", full)
    assert "is full" in said(*train(), code=1)


def test_a_full_disk_under_a_checkpoint(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    from anyformer.runs import checkpoints

    real, calls = checkpoints.write_atomically, []

    def second_fails(path: Path, content: bytes) -> None:
        calls.append(path)
        if len(calls) > 1:
            full()
        real(path, content)

    monkeypatch.setattr(checkpoints, "write_atomically", second_fails)
    message = said(*train("--eval_every", "2"), code=1, runs=1)
    assert "no space left to save the checkpoint step-00000004" in message
    assert "newest: step-00000002" in message
    (run,) = Path("runs").iterdir()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    manifest = json.loads((run / "run.json").read_text())
    assert manifest["state"] == "failed"
    assert "no space left" in manifest["error"]


def test_a_loss_that_is_not_a_number(said: Said) -> None:
    Path("m.py").write_text(
        MODEL.replace(
            "        return self.h(self.e(tokens)",
            '        self.n += self.training * torch.is_grad_enabled()\n'
            "        x = self.e(tokens) / (self.n != 5).float()\n        return self.h(x",
        ).replace("        self.h =", '        self.register_buffer("n", torch.zeros(()))\n        self.h =')
    )  # fmt: skip
    message = said(*train("--eval_every", "2"), code=1, runs=1)
    assert "at step 5" in message
    assert "the first output that is not: h" in message
    assert "the weights were not updated with it" in message
    assert "the last good checkpoint is kept: runs/m-t/checkpoints/step-00000004" in message
    assert json.loads(Path("runs/m-t/run.json").read_text())["state"] == "failed"


def test_a_learning_rate_that_explodes(said: Said) -> None:
    message = said(*train("--learning_rate", "1e38", "--warmup_steps", "0", "--eval_every", "1"), code=1, runs=1)
    assert re.search(r"is (nan|inf) at step \d", message)
    assert "the first parameter that is not finite: e.weight" in message
    assert "were not updated" not in message  # they were: by the step before


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*train(data="nowhere.txt"), "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "\nanyformer: no data at nowhere.txt\n" in err


def test_ctrl_c_while_the_text_is_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from anyformer.tokenization import encoding

    def interrupted(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return np.empty(0)

    monkeypatch.setattr(encoding, "encode_texts", interrupted)
    assert cli.main(train()) == 130
    assert "anyformer: interrupted" in capsys.readouterr().err
    assert not Path("runs").exists()
    assert not list(Path("cache").iterdir())


def test_ctrl_c_while_everything_is_loaded() -> None:
    process = subprocess.Popen([sys.executable, "-m", "anyformer", *train()], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.readline()
    assert first.startswith("anyformer train · m.py on t.txt → runs/m-t")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert (process.returncode, rest.strip()) == (130, "anyformer: interrupted")
    assert not Path("runs").exists()
