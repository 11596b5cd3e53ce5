"""Every command and snippet of the README runs as written (the two make commands run in CI itself)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from anyformer import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

MODEL = """
import torch
from torch import nn


class TinyLM(nn.Module):
    def __init__(self, vocab_size=300, width=32, length=64):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(length, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, ids):
        T = ids.shape[1]
        x = self.tokens(ids) + self.positions(torch.arange(T, device=ids.device))
        mask = nn.Transformer.generate_square_subsequent_mask(T, device=ids.device)
        return self.head(self.layer(x, src_mask=mask, is_causal=True))
"""
TEXT = "def answer(question):\n    return 42 if question else None\n\n" * 60


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README names."""
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "corpus.txt").write_text(TEXT)
    (tmp_path / "held_out.txt").write_text(TEXT[:1500])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(language: str) -> list[str]:
    """The fenced blocks whose opening fence names exactly this language."""
    return [
        body
        for name, body in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
        if name == language
    ]


def test_commands(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commands = [shlex.split(line) for block in blocks("sh") for line in block.splitlines() if line.strip()]
    assert [command[1] for command in commands] == ["inspect", "train", "evaluate", "generate", "export"]
    for command in commands:
        assert cli.main(command[1:]) == 0, capfd.readouterr().err
    out = capfd.readouterr().out
    assert "held-out loss" in out
    assert (folder / "runs/my_model-corpus/report.html").is_file()


def test_tracking_takes_four_lines_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [block for block in blocks("bash") if "--wandb" in block]
    install, train, sync = [shlex.split(line) for line in block.splitlines()]
    assert install[-1] == "anyformer[track]"
    assert cli.main([*train[1:], "--print_config"]) == 0  # what the flags do is in tests/runs/test_trackers.py
    given = yaml.safe_load(capsys.readouterr().out)
    assert (given["tensorboard"], given["wandb"], given["mlflow"]) == (True, "offline", True)
    assert sync == ["wandb", "sync", "runs/my_model-corpus/metrics/wandb/offline-run-*"]


def test_python(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    exec(compile((folder / "my_model.py").read_text(), "my_model.py", "exec"), namespace)
    snippets = blocks("python")
    assert len(snippets) == 2
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {"model": namespace["TinyLM"]()})  # type: ignore[operator]
    assert "checkpoints/step-" in capsys.readouterr().out


def test_the_tree_and_the_links_are_true() -> None:
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        if not path.startswith("http"):
            assert (ROOT / path).exists(), path
    tree = next(block for block in blocks("") if "cli.py, ui/" in block)
    for line in tree.splitlines()[1:]:
        if match := re.match(r"  ([\w./, ]+?)  ", line):
            for name in match[1].split(", "):
                assert (ROOT / "src/anyformer" / name).exists(), name
    shown = set(re.findall(r"[\w]+(?=/)", tree)) | {"cli", "api", "adapters", "test_functions", "__init__", "__main__"}
    present = {p.stem for p in (ROOT / "src/anyformer").iterdir() if p.name not in ("__pycache__", "py.typed")}
    assert present <= shown, "the README's tree leaves these out"


def test_the_refusal_it_quotes_is_the_one_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaky = MODEL.replace("src_mask=mask, is_causal=True", "")
    (folder / "leaky.py").write_text(leaky)
    assert cli.main(["train", "leaky.py", "--data", "corpus.txt"]) == 1
    quoted = next(line for block in blocks("") for line in block.splitlines() if line.startswith("anyformer: "))
    assert quoted in capsys.readouterr().err
    assert not (folder / "runs").exists()
