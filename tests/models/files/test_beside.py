"""Configuration files beside the model's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyformer.core.errors import ConstructError
from anyformer.models.files.beside import config_beside
from anyformer.models.source import load_model

NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self, vocab_size=30, d_model=4):
        super().__init__()
        self.e = nn.Embedding(vocab_size, d_model)
"""


@pytest.mark.parametrize("name", ["config.yaml", "config.yml", "hparams.yaml", "params.yaml"])
def test_yaml_gives_the_sizes(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.py").write_text(NET)
    (tmp_path / name).write_text("# sizes\nmodel:\n  d_model: 6\ntrain:\n  lr: 6.0e-4\n")
    loaded = load_model(tmp_path / "model.py")
    assert loaded.module.e.weight.shape == (30, 6)
    assert loaded.sources[name] == tmp_path / name
    assert name in loaded.provenance.files


def test_json_comes_first_and_the_callers_values_win(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1")
    (tmp_path / "config.json").write_text('{"a": 2, "b": 3}')
    values, file = config_beside(tmp_path / "model.py", {"b": 4})
    assert values == {"a": 2, "b": 4}
    assert file == tmp_path / "config.json"


def test_comments_alone_are_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("# nothing yet\n")
    assert config_beside(tmp_path / "model.py", {"b": 4}) == ({"b": 4}, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [1", "is not YAML"), ("- 1\n- 2\n", "holds a list"), ("!!python/object/apply:os.getcwd []", "is not YAML")],
)
def test_a_file_that_holds_no_values_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConstructError, match=f"config.yaml {said}"):
        config_beside(tmp_path / "model.py", None)
