"""The width of the last layer is the vocabulary, whatever its parameter is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyformer.models.source import load_model

FILE = """
from torch import nn

class Model(nn.Module):
    def __init__(self, input_size, output_size, hidden_dim=32):
        super().__init__()
        self.tok = nn.Embedding(input_size, hidden_dim)
        self.LAST = nn.Linear(hidden_dim, output_size)

    def forward(self, ids):
        return self.LAST(self.tok(ids))
"""


@pytest.mark.parametrize("last", ["fc_out", "finalLayer", "final", "head"])
def test_the_last_layers_width(tmp_path: Path, last: str) -> None:
    (tmp_path / "model.py").write_text(FILE.replace("LAST", last))
    module = load_model(tmp_path / "model.py").module
    assert getattr(module, last).out_features == module.tok.num_embeddings
