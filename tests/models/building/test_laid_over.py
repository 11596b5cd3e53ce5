"""A configuration is laid over the file's own call of the model: sizes that stand there need not be repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anyformer.models.source import load_model

FILE = """
from torch import nn

class LM(nn.Module):
    def __init__(self, vocab_size, dim=512, layers=3, dropout=0.1):
        super().__init__()
        self.sizes = vocab_size, dim, layers, dropout
        self.emb = nn.Embedding(vocab_size, dim)
        self.head = nn.Linear(dim, vocab_size)

    def forward(self, ids):
        return self.head(self.emb(ids))

if __name__ == "__main__":
    words = open("corpus.txt").read().split()
    model = LM(vocab_size=len(set(words)), dim=64, layers=2)
"""


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (None, (1024, 64, 2, 0.1)),
        ({"vocab_size": 5000}, (5000, 64, 2, 0.1)),
        ({"vocab_size": 5000, "n_layers": 4}, (5000, 64, 4, 0.1)),
        ({"d_model": 32, "dropout": 0.0}, (1024, 32, 2, 0.0)),
    ],
)
def test_what_is_built_can_be_built_again(
    tmp_path: Path, config: dict[str, Any] | None, sizes: tuple[float, ...]
) -> None:
    file = tmp_path / "model.py"
    file.write_text(FILE)
    first = load_model(file, config=config)
    assert first.module.sizes == sizes
    again = load_model(file, config=first.provenance.config)
    assert again.module.sizes == sizes
    if config is None:  # as a run keeps it
        assert first.provenance.config == {"vocab_size": 1024, "dim": 64, "layers": 2}
