"""Configuration objects of unusual kinds, and what is said of values that no file can hold."""

from __future__ import annotations

import enum
import textwrap
from pathlib import Path
from typing import Any

import pytest

from anyformer.core.errors import ConstructError
from anyformer.models.building import configs
from anyformer.models.source import LoadedModel, load_model

NAMED_TUPLE = """
    from typing import NamedTuple

    class GPTConfig(NamedTuple):
        vocab_size: int = 500
        n_embd: int = 16

    class GPT(nn.Module):
        def __init__(self, config: GPTConfig):
            super().__init__()
            assert isinstance(config, GPTConfig)
            self.e = nn.Embedding(config.vocab_size, config.n_embd)
"""


def load(folder: Path, body: str, config: dict[str, Any] | None = None) -> LoadedModel:
    (folder / "model.py").write_text("from torch import nn\n" + textwrap.dedent(body))
    return load_model(folder / "model.py", config=config)


@pytest.mark.parametrize("written", ["", "cfg = GPTConfig(400, 12)\n"])
def test_a_named_tuple(tmp_path: Path, written: str) -> None:
    body = textwrap.dedent(NAMED_TUPLE) + written
    if written:
        body = body.replace("config: GPTConfig", "config").replace(" = 500", "").replace(" = 16", "")
    assert load(tmp_path, body).module.e.weight.shape == ((400, 12) if written else (500, 16))
    loaded = load(tmp_path, body, {"n_embd": 24})
    assert loaded.module.e.weight.shape == ((400, 24) if written else (500, 24))
    assert loaded.provenance.config == {"n_embd": 24}


ENUM = """
    import enum

    class Act(enum.Enum):
        GELU = "gelu"
        RELU = 2

    class Net(nn.Module):
        def __init__(self, act: Act, vocab_size=30):
            super().__init__()
            assert isinstance(act, Act)
            self.act = act.name
            self.e = nn.Embedding(vocab_size, 8)
"""


@pytest.mark.parametrize(("given", "name"), [("gelu", "GELU"), (2, "RELU"), ("relu", "RELU")])
def test_a_required_enum_gets_the_member_of_its_value(tmp_path: Path, given: object, name: str) -> None:
    loaded = load(tmp_path, ENUM, {"act": given})
    assert loaded.module.act == name
    assert loaded.provenance.config == {"act": given}


def test_a_value_that_no_member_has_stays_as_it_is() -> None:
    colour = enum.Enum("colour", {"RED": 1})
    assert configs.member(colour, 2) == 2
    assert configs.member(colour, colour.RED) is colour.RED
    assert configs.member(int, 1) == 1
    assert configs.member(None, 1) == 1


def test_the_advice_fits_what_is_missing(tmp_path: Path) -> None:
    body = """
        class Net(nn.Module):
            def __init__(self, tokenizer, colour):
                super().__init__()
                self.e = nn.Embedding(len(tokenizer), 4)
                self.c = colour.title()
    """
    with pytest.raises(ConstructError) as caught:
        load(tmp_path, body)
    assert "tokenizer: config.json cannot hold such an object" in caught.value.fix
    assert "def build_model(): return Net(tokenizer=…, colour=…)" in caught.value.fix
    with pytest.raises(ConstructError) as caught:
        load(tmp_path, body.replace("tokenizer, ", "").replace("len(tokenizer)", "9"))
    assert caught.value.fix == 'write config.json beside the file: {"colour": …}'
