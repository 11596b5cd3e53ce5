"""What a run records and measures later is what it was: its model, its text, its settings, its weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import anyformer
from anyformer.core.errors import CallError, DataError, SettingsError, TokenizerError, TrainingError
from anyformer.core.settings import TrainSettings
from anyformer.core.view import QuietView
from anyformer.training import TrainResult, UniversalModelAdapter
from tests.test_readme import MODEL, TEXT

# a random table that no state dict holds
DRAWN = MODEL.replace(
    "        self.head =", "        self.table = torch.randn(vocab_size, width)\n        self.head ="
).replace("x = self.tokens(ids) +", "x = self.table[ids] + self.tokens(ids) +")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "m.py").write_text(MODEL)
    (tmp_path / "c.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(model: str = "m.py", **settings: object) -> TrainResult:
    values = {"max_steps": 6, "batch_size": 4, "max_length": 32, "name": "a", "view": QuietView(), **settings}
    return anyformer.train(model, "c.txt", **values)  # type: ignore[arg-type]


def test_what_a_constructor_draws_is_drawn_again(folder: Path) -> None:
    (folder / "drawn.py").write_text(DRAWN)
    result = train("drawn.py")
    torch.manual_seed(999)
    assert anyformer.evaluate("runs/a").loss == pytest.approx(result.results["val_loss"], rel=1e-6)


def test_a_text_that_changed_is_not_the_held_out_text(folder: Path) -> None:
    train()
    (folder / "c.txt").write_text("# another beginning\n" + TEXT)
    with pytest.raises(DataError, match="no longer the text"):
        anyformer.evaluate("runs/a")
    assert anyformer.evaluate("runs/a", "c.txt").tokens == len("# another beginning\n" + TEXT) - 1


@pytest.mark.parametrize("given", [{"tokenizer": "bpe"}, {"vocab_size": 280}, {"weights": "nothere.pt"}, {"seed": 7}])
def test_a_resumed_run_refuses_what_it_could_not_honour(folder: Path, given: dict[str, object]) -> None:
    train()
    with pytest.raises(SettingsError, match=next(iter(given))):
        anyformer.train(resume="runs/a", max_steps=8, view=QuietView(), **given)  # type: ignore[arg-type]
    record = json.loads(Path("runs/a/run.json").read_text())
    assert record["settings"]["tokenizer"] == "auto"


def test_a_resumed_run_refuses_another_model(folder: Path) -> None:
    train()
    (folder / "other.py").write_text(MODEL + "\n# edited\n")
    with pytest.raises(SettingsError, match="is not the model"):
        anyformer.train("other.py", resume="runs/a", max_steps=8, view=QuietView())
    again = anyformer.train("m.py", resume="runs/a", max_steps=8, view=QuietView())
    assert again.results["steps"] == 8


def test_the_last_samples_are_of_the_weights_in_place(folder: Path) -> None:
    # the loss rises again at a rate like this, so that the best step is not the last
    result = train(
        max_steps=12, learning_rate=3.0, warmup_steps=0, min_lr_ratio=1.0, eval_every=2, gradient_clip_val=0.0
    )
    best = int(str(result.results["best_checkpoint"]).rpartition("-")[2])
    assert best < 12
    steps = [json.loads(line)["step"] for line in Path("runs/a/samples.jsonl").read_text().split("\n") if line]
    assert steps[-3:] == [best] * 3


def test_two_processes_do_not_train_one_run(folder: Path) -> None:
    result = train()
    from anyformer.runs.directory import RunDirectory

    with RunDirectory.open(result.run_path).locked(), pytest.raises(TrainingError, match="another process"):
        anyformer.train(resume="runs/a", max_steps=8, view=QuietView())


def test_a_model_that_reads_a_file_beside_itself_is_named_before_it_trains(folder: Path) -> None:
    source = MODEL.replace("import torch\n", "import torch\nfrom pathlib import Path\n", 1)
    source = source.replace(
        "        self.tokens =",
        '        width = int(Path(__file__).with_name("w.txt").read_text())\n        self.tokens =',
    )
    (folder / "w.txt").write_text("32")
    (folder / "reads.py").write_text(source)
    result = train("reads.py")
    finding = next(finding for finding in result.findings if finding.name == "rebuild")
    assert finding.verdict == "warn"
    assert "beside its source" in finding.reason


def test_sigterm_saves_and_says_so(folder: Path) -> None:
    command = [sys.executable, "-m", "anyformer", "train", "m.py", "--data", "c.txt", "--name", "t", "--json"]
    flags = ["--max_steps", "100000", "--max_length", "32", "--eval_every", "50000", "--precision", "32"]
    process = subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    metrics = Path("runs/t/metrics/metrics.csv")
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert json.loads(out)["error"]["type"] == "Interrupted"
    assert "anyformer train --resume runs/t" in err
    assert json.loads(Path("runs/t/run.json").read_text())["state"] == "interrupted"
    assert list(Path("runs/t/checkpoints").glob("step-*"))


def test_unknown_text_gives_no_bits_per_byte_and_no_prompt(folder: Path) -> None:
    (folder / "small.py").write_text(MODEL.replace("vocab_size=300", "vocab_size=12"))
    result = train("small.py")
    assert result.results["unknown_share"] > 0
    assert result.results["bits_per_byte"] is None
    assert any(finding.name == "unknown text" for finding in result.findings)
    with pytest.raises(TokenizerError, match="cannot write: 'ü'"):
        anyformer.generate("runs/a", "ü")


def test_labels_that_are_shifted_already_are_refused() -> None:
    namespace: dict[str, object] = {}
    exec(MODEL, namespace)
    adapter = UniversalModelAdapter(namespace["TinyLM"]())  # type: ignore[operator]
    data = torch.randint(0, 300, (4, 17), generator=torch.Generator().manual_seed(0))
    with pytest.raises(DataError, match="already shifted"):
        adapter.training_step({"input_ids": data[:, :-1], "labels": data[:, 1:]}, 0)
    assert torch.isfinite(adapter.training_step({"input_ids": data, "labels": data.clone()}, 0))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch_size": "16"}, "batch_size is '16'; it must be int"),
        ({"batch_size": True}, "batch_size is True"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"precision": "fp16"}, "one of auto, 32, 16, bf16"),
        ({"seed": 2**40}, "seed is"),
        ({"name": "x\ny"}, "not a plain folder name"),
        ({"name": "x" * 300}, "not a plain folder name"),
    ],
)
def test_wrong_types_and_values_are_named(given: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        TrainSettings(**given)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert TrainSettings(precision=16).precision == "16"  # type: ignore[arg-type]


def test_a_plain_trainer_is_told_of_a_leak_that_begins_late() -> None:
    class Late(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = torch.nn.Embedding(50, 16)
            self.head = torch.nn.Linear(16, 50)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.tokens(ids)
            return self.head(x + x.mean(1, keepdim=True) if ids.shape[1] > 200 else x)

    adapter = UniversalModelAdapter(Late())
    ids = torch.randint(0, 50, (4, 240), generator=torch.Generator().manual_seed(0))
    with pytest.raises(CallError, match="sees the future"):
        adapter.training_step({"input_ids": ids, "labels": ids.clone()}, 0)
