"""Configurations that hold more than the model's values."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from torch import nn

from anyformer.models.building.sections import models_own
from anyformer.models.source import load_model

NET = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self, vocab_size=30, d_model=4):
            super().__init__()
            self.e = nn.Embedding(vocab_size, d_model)
"""
READS = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.e = nn.Embedding({values})
"""


@pytest.mark.parametrize("name", ["model", "model_args", "network", "Net", "architecture"])
def test_the_models_section_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.py").write_text(textwrap.dedent(NET))
    loaded = load_model(tmp_path / "model.py", config={name: {"hidden_size": 6}, "train": {"lr": 1}})
    assert loaded.module.e.weight.shape == (30, 6)
    assert loaded.provenance.config == {"hidden_size": 6}
    told = [f for f in loaded.findings if f.name == "configuration"]
    assert [(f.verdict, f.measured, f.reason) for f in told] == [("note", f"section {name}", "not the model's: train")]


@pytest.mark.parametrize(
    "values", ['cfg["model"]["rows"], cfg["model"]["part"]["width"]', "cfg.model.rows, cfg.model.part.width"]
)
def test_a_section_that_is_read_stays_one(tmp_path: Path, values: str) -> None:
    (tmp_path / "model.py").write_text(textwrap.dedent(READS).format(values=values))
    given = {"model": {"rows": 12, "part": {"width": 6}}}
    assert load_model(tmp_path / "model.py", config=given).module.e.weight.shape == (12, 6)


def test_other_sections_alone_change_nothing() -> None:
    given = {"train": {"lr": 1}, "d_model": 4}
    assert models_own(given, nn.Linear, {}) == (given, [])


def test_two_sections_that_are_read_keep_their_own_values(tmp_path: Path) -> None:
    text = textwrap.dedent(READS).format(values='cfg["model"]["rows"], cfg["network"]["rows"]')
    (tmp_path / "model.py").write_text(text)
    given = {"model": {"rows": 12}, "network": {"rows": 6}}
    assert load_model(tmp_path / "model.py", config=given).module.e.weight.shape == (12, 6)
