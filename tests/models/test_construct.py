"""Constructors in every shape that users write, and messages that say what was tried."""

from __future__ import annotations

import textwrap
import types

import pytest
from torch import nn

from anyformer.core.errors import ConstructError
from anyformer.models.source import load_model


def load(tmp_path, body: str, config: dict | None = None):
    path = tmp_path / "model.py"
    header = "from dataclasses import dataclass\nfrom torch import nn\n"
    path.write_text(header + textwrap.dedent(body), encoding="utf-8")
    return load_model(path, config=config)


def verdicts(loaded) -> dict[str, str]:
    return {f.name: f.measured for f in loaded.findings}


CONFIG = """
    @dataclass
    class GPTConfig:
        vocab_size: int = 11
        n_embd: int = 4
    class GPT(nn.Module):
        def __init__(self, config{annotation}):
            super().__init__()
            self.config = config
            self.head = nn.Linear(config.n_embd, config.vocab_size)
"""


@pytest.mark.parametrize("annotation", ["", ": GPTConfig", ": 'GPTConfig'", ": GPTConfig | None = None"])
def test_a_dataclass_of_the_file_is_built_from_the_fields_that_match(tmp_path, annotation):
    loaded = load(tmp_path, CONFIG.format(annotation=annotation), {"vocab_size": 7, "n_layer": 3})
    assert type(loaded.module.config).__name__ == "GPTConfig"
    assert loaded.module.head.weight.shape == (7, 4)
    assert loaded.provenance.config == {"vocab_size": 7}
    assert "GPTConfig(vocab_size=7)" in verdicts(loaded)["construction"]
    assert "n_layer=3" in verdicts(loaded)["configuration"]


def test_its_defaults_where_there_is_no_config(tmp_path):
    loaded = load(tmp_path, CONFIG.format(annotation=""))
    assert loaded.module.head.out_features == 11
    assert loaded.provenance.config is None


def test_a_plain_configuration_class(tmp_path):
    body = """
        class Config:
            width = 4
            depth = 2
        class Net(nn.Module):
            def __init__(self, cfg):
                super().__init__()
                self.head = nn.Linear(cfg.width, cfg.depth)
    """
    assert load(tmp_path, body, {"width": 6}).module.head.weight.shape == (2, 6)


def test_a_namespace_where_the_file_has_no_configuration_class(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self, args, *, bias=True):
                super().__init__()
                self.args = args
                self.head = nn.Linear(args.width, 2, bias=bias)
    """
    loaded = load(tmp_path, body, {"width": 6, "bias": False})
    assert loaded.module.args == types.SimpleNamespace(width=6)
    assert loaded.module.head.bias is None
    assert loaded.provenance.config == {"width": 6, "bias": False}


@pytest.mark.parametrize("annotation", [": dict", ": dict[str, int]", ""])
def test_a_dict(tmp_path, annotation):
    body = f"""
        class Net(nn.Module):
            def __init__(self, config{annotation}):
                super().__init__()
                self.head = nn.Linear(config["width"], 2)
    """
    loaded = load(tmp_path, body, {"width": 6})
    assert loaded.module.head.in_features == 6
    assert loaded.provenance.config == {"width": 6}


def test_a_constructor_of_keywords_only_gets_all(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self, **options):
                super().__init__()
                self.head = nn.Linear(options["width"], 2)
    """
    assert load(tmp_path, body, {"width": 6}).module.head.in_features == 6


def test_a_parameterless_constructor_says_that_config_is_not_used(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(3, 2)
    """
    loaded = load(tmp_path, body, {"vocab_size": 9})
    assert loaded.provenance.config is None
    assert "vocab_size=9" in verdicts(loaded)["configuration"]


def test_missing_values_are_named_with_the_config_that_gives_them(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self, vocab_size, width, depth=2):
                super().__init__()
    """
    with pytest.raises(ConstructError) as caught:
        load(tmp_path, body, {"width": 3})
    text = str(caught.value)
    assert "Net needs vocab_size\n" in text
    assert '{"vocab_size": …}' in text
    assert "given: width" in text


def test_a_configuration_object_with_nothing_to_make_it_from(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.head = nn.Linear(config.width, 2)
    """
    with pytest.raises(ConstructError, match=r"Net needs config(?s:.*)config\.json"):
        load(tmp_path, body)


def test_every_attempt_and_its_error_are_told(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.head = nn.Linear(config.width, 2)
    """
    with pytest.raises(ConstructError) as caught:
        load(tmp_path, body, {"depth": 3})
    text = str(caught.value)
    assert "SimpleNamespace" in text
    assert "dict(config)" in text
    assert text.count("model.py:7: self.head = nn.Linear(config.width, 2)") == 2
    assert "has no attribute 'width'" in text


def test_a_failing_constructor_is_not_retried_without_its_values(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self, width=4, heads=2):
                super().__init__()
                if width % heads:
                    raise ValueError("width must be a multiple of heads")
    """
    with pytest.raises(ConstructError, match=r"model\.py:8(?s:.*)ValueError: width must be a multiple"):
        load(tmp_path, body, {"width": 5})


def test_a_class_that_gives_something_else(tmp_path):
    body = """
        class Net(nn.Module):
            def __new__(cls): return 3
    """
    with pytest.raises(ConstructError, match="gave a int"):
        load(tmp_path, body)


def test_a_finished_module_takes_no_config():
    with pytest.raises(ConstructError, match="finished module"):
        load_model(nn.Linear(1, 1), config={"a": 1})
