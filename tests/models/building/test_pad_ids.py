"""The id of padding that a constructor asks for is the one that its own embeddings have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anyformer.models.source import LoadedModel, load_model

FILE = """
import torch
from torch import nn

class Transformer(nn.Module):
    def __init__(self, src_pad_idx, trg_pad_idx, vocab_size, width=8):
        super().__init__()
        self.pads = (src_pad_idx, trg_pad_idx)
        self.src = nn.Embedding(vocab_size, widthSRC)
        self.trg = nn.Embedding(vocab_size, widthTRG)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, src, trg):
        return self.head(self.trg(trg) + self.src(src).mean(1, keepdim=True))
"""


def loaded(folder: Path, of_source: str, of_target: str, config: str = "") -> LoadedModel:
    (folder / "model.py").write_text(FILE.replace("SRC", of_source).replace("TRG", of_target), encoding="utf-8")
    if config:
        (folder / "config.json").write_text(config, encoding="utf-8")
    return load_model(folder / "model.py", seed=3)


@pytest.mark.parametrize(
    ("of_source", "of_target", "pads"),
    [
        (", padding_idx=1", ", padding_idx=1", (1, 1)),
        (", padding_idx=1", "", (1, 1)),
        (", padding_idx=0", ", padding_idx=0", (0, 0)),
        (", padding_idx=1", ", padding_idx=2", (0, 0)),  # which is whose is not known
        ("", "", (0, 0)),
    ],
)
def test_what_nobody_stated_is_as_the_embeddings_have_it(
    tmp_path: Path, of_source: str, of_target: str, pads: tuple[int, int]
) -> None:
    model = loaded(tmp_path, of_source, of_target)
    assert model.module.pads == pads
    told = [f.measured for f in model.findings if f.name == "padding"]
    assert told == (["src_pad_idx=1, trg_pad_idx=1"] if pads == (1, 1) else [])
    again = loaded(tmp_path, of_source, of_target, json.dumps({"src_pad_idx": pads[0], "trg_pad_idx": pads[1]}))
    assert bool((again.module.src.weight == model.module.src.weight).all())  # built twice from one seed


def test_what_the_configuration_states_stays(tmp_path: Path) -> None:
    model = loaded(tmp_path, ", padding_idx=1", "", '{"src_pad_idx": 5}')
    assert model.module.pads == (5, 1)
