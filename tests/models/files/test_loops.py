"""Loops of a script that fill its vocabulary: run where they do nothing else; what else counts it has no value."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from anyformer.models.source import LoadedModel, load_model

SCRIPT = """
import re
import torch
from torch import nn

text = "hello, how are you? i am romeo. my name is juliet."
words = sorted(set(re.sub("[.,?]", "", text).split()))
ids = {"[PAD]": 0, "[MASK]": 1}
LOOP
vocab_size = len(ids)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.head = nn.Embedding(vocab_size, 8), nn.Linear(8, vocab_size)
    def forward(self, tokens):
        return self.head(self.e(tokens))

model = Net()
optimizer = torch.optim.Adam(model.parameters())
optimizer.zero_grad()
"""
ROWS = 2 + 11  # words


def loaded(folder: Path, loop: str, config: str = "") -> LoadedModel:
    (folder / "model.py").write_text(SCRIPT.replace("LOOP", textwrap.dedent(loop)), encoding="utf-8")
    if config:
        (folder / "config.json").write_text(config, encoding="utf-8")
    return load_model(folder / "model.py")


def rows(model: LoadedModel) -> int:
    return model.module.e.num_embeddings  # type: ignore[union-attr,return-value]


@pytest.mark.parametrize(
    "loop",
    [
        "for i, w in enumerate(words):\n    ids[w] = i + 2",
        "for w in words:\n    if w not in ids:\n        ids[w] = len(ids)",
        "for a in [1, 2]:\n    for w in words:\n        ids[w.strip()] = ids.get(w, len(ids))",
    ],
)
def test_a_loop_that_fills_a_table_is_run(tmp_path: Path, loop: str) -> None:
    model = loaded(tmp_path, loop)
    assert rows(model) == ROWS
    assert "sizes" not in {finding.name for finding in model.findings}
    assert "not run" in next(f.measured for f in model.findings if f.name == "script")  # the training is


@pytest.mark.parametrize(
    "loop",
    [
        "for i, w in enumerate(open('words.txt')):\n    ids[w] = i + 2",
        "for i, w in enumerate(words):\n    print(w)\n    ids[w] = i + 2",
        "def read(w):\n    raise OSError\nfor w in words:\n    ids[read(w)] = len(ids)",
        "with open('words.txt') as f:\n    for w in f:\n        ids[w] = len(ids)",
        "ids.update(torch.load('ids.pt'))",
    ],
)
def test_what_counts_a_table_that_was_not_filled_is_a_size_that_nobody_set(tmp_path: Path, loop: str) -> None:
    model = loaded(tmp_path, loop)
    assert rows(model) == 1024
    (told,) = [f for f in model.findings if f.name == "sizes"]
    assert (told.verdict, told.measured) == ("warn", "vocab_size=1024")
    assert rows(loaded(tmp_path, loop, '{"vocab_size": 77}')) == 77


def test_the_configuration_says_otherwise_than_the_file(tmp_path: Path) -> None:
    model = loaded(tmp_path, "for i, w in enumerate(words):\n    ids[w] = i + 2", '{"vocab_size": 77}')
    assert rows(model) == 77
    (told,) = [f for f in model.findings if f.name == "sizes"]
    assert (told.measured, told.reason) == ("vocab_size=77", f"as the configuration says; {ROWS} in the file")
    assert "configuration" not in {f.name for f in model.findings}


UNDER_MAIN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.head = nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size)
    def forward(self, tokens):
        return self.head(self.e(tokens))

if __name__ == "__main__":
    words = open("words.txt").read().split()
    ids = {"[PAD]": 0, "[MASK]": 1}
    width = 4
    FILLS
    model = Net()
"""


@pytest.mark.parametrize(
    "fills",
    [
        "for i, word in enumerate(words):\n        ids[word] = i + 2\n    vocab_size = len(ids)",
        "ids.update({word: 2 for word in words})\n    vocab_size = max(ids.values()) + 1",
        "vocab_size = 2\n    for word in words:\n        vocab_size += 1",
    ],
)
def test_what_a_loop_under_main_fills_has_no_length_that_is_known(tmp_path: Path, fills: str) -> None:
    """Nothing under __main__ is run: the two entries that stand there are not the vocabulary."""
    (tmp_path / "model.py").write_text(UNDER_MAIN.replace("FILLS", fills), encoding="utf-8")
    model = load_model(tmp_path / "model.py", fallback={"vocab_size": 77})
    assert (model.module.e.num_embeddings, model.module.e.embedding_dim) == (77, 4)


def test_what_is_added_once_under_main_is_added(tmp_path: Path) -> None:
    text = UNDER_MAIN.replace("FILLS", "vocab_size = len(ids)\n    vocab_size += 40")
    (tmp_path / "model.py").write_text(text, encoding="utf-8")
    assert load_model(tmp_path / "model.py").module.e.num_embeddings == 42
