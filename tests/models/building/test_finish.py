"""Weights that the constructor leaves to its caller to draw."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyformer.models.source import load_model

NET = """
from torch import nn

class Net({base}):
    def __init__(self):
        super().__init__({sizes})
        self.e = nn.Embedding(30, 4)
        {then}

    {decorator}
    def {name}({parameters}):
        for p in self.parameters():
            nn.init.constant_(p, 0.5)
"""


def drawn(folder: Path, **parts: str) -> tuple[bool, str]:
    usual = {"base": "nn.Module", "sizes": "", "then": "pass", "decorator": "", "parameters": "self"}
    (folder / "model.py").write_text(NET.format(**{**usual, **parts}))
    loaded = load_model(folder / "model.py")
    told = " ".join(f.measured for f in loaded.findings if f.name == "initialisation")
    return bool((loaded.module.e.weight == 0.5).all()), told


@pytest.mark.parametrize("parameters", ["self, buffer_device=None", "self, std=0.02, *more, **rest"])
def test_a_method_whose_arguments_have_defaults_is_called(tmp_path: Path, parameters: str) -> None:
    assert drawn(tmp_path, name="init_weights", parameters=parameters) == (True, "init_weights() called")


@pytest.mark.parametrize("name", ["init_weights", "initialize_weights", "reset_parameters", "init_parameters"])
def test_a_public_method_is_called(tmp_path: Path, name: str) -> None:
    assert drawn(tmp_path, name=name) == (True, f"{name}() called")


@pytest.mark.parametrize(
    "parts",
    [
        {"name": "init_weights", "decorator": "@staticmethod", "parameters": "m"},
        {"name": "reset_parameters", "parameters": "self, std"},
        {"name": "reset_parameters", "then": "self.apply(lambda m: None)"},
        {"name": "reset_everything"},
    ],
)
def test_what_is_no_such_method_is_not(tmp_path: Path, parts: dict[str, str]) -> None:
    assert drawn(tmp_path, **parts) == (False, "")


@pytest.mark.parametrize("name", ["init_weights", "reset_parameters"])
def test_the_constructors_own_call_is_the_only_one(tmp_path: Path, name: str) -> None:
    assert drawn(tmp_path, name=name, then=f"self.{name}()") == (True, "")


def test_a_base_of_torchs_calls_its_own(tmp_path: Path) -> None:
    assert drawn(tmp_path, name="reset_parameters", base="nn.Linear", sizes="3, 2") == (False, "")


FAILS = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(30, 4)
        self.norm = nn.LayerNorm(4)

    def init_weights(self):
        nn.init.constant_(self.e.weight, 0.5)
        nn.init.xavier_uniform_(self.norm.weight)
"""


def test_one_that_fails_is_undone_and_said(tmp_path: Path) -> None:
    """The author's own program may never call it."""
    (tmp_path / "model.py").write_text(FAILS)
    loaded = load_model(tmp_path / "model.py")
    assert not (loaded.module.e.weight == 0.5).any()
    assert bool((loaded.module.norm.weight == 1).all())
    (said,) = [f for f in loaded.findings if f.name == "initialisation"]
    assert (said.verdict, said.measured) == ("warn", "init_weights() fails, and is left out")
    assert "model.py:12" in said.reason
    assert "Fan in and fan out" in said.reason


LAZY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(30, 4)
        self.head = nn.LazyLinear(30)

    def forward(self, ids):
        return self.head(self.e(ids))

    def init_weights(self):
        self.e = nn.Embedding(40, 4)
        raise ValueError("no")
"""


def test_one_that_fails_over_weights_without_a_shape_or_layers_put_anew(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(LAZY)
    (said,) = [f for f in load_model(tmp_path / "model.py").findings if f.name == "initialisation"]
    assert (said.verdict, "ValueError: no" in said.reason) == ("warn", True)
