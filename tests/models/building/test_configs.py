"""Configuration objects of unusual kinds, and what is said of values that no file can hold."""

from __future__ import annotations

import dataclasses
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


COMPUTED = """
    import functools
    from dataclasses import dataclass

    @dataclass
    class GPTConfig:
        vocab_size: int = 30
        d_model: int = 24
        n_heads: int = 3

        {kind}
        def d_ff(self):
            return self.d_model * 3

    {written}

    class GPT(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.e = nn.Embedding(config.vocab_size, config.d_model)
            self.f = nn.Linear(config.d_model, config.d_ff)
"""


@pytest.mark.parametrize("written", ["", "cfg = GPTConfig(n_heads=4)", "cfg = GPTConfig(); cfg.d_ff"])
@pytest.mark.parametrize("kind", ["@property", "@functools.cached_property"])
def test_what_the_class_computes_is_left_to_it(tmp_path: Path, kind: str, written: str) -> None:
    body = textwrap.dedent(COMPUTED).format(kind=kind, written=written)
    assert load(tmp_path, body).module.f.weight.shape == (72, 24)
    assert load(tmp_path, body, {"d_model": 8}).module.f.weight.shape == (24, 8)
    loaded = load(tmp_path, body, {"d_ff": 5})
    assert loaded.module.f.weight.shape == (72, 24)
    assert any(f.name == "configuration" and "d_ff=5" in f.measured for f in loaded.findings)


DERIVED = """
    from dataclasses import dataclass

    {decorator}
    class GPTConfig:
        {fields}
            self.head_dim = head_dim or d_model // n_heads

    class GPT(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.e = nn.Embedding(config.vocab_size, config.d_model)
            self.q = nn.Linear(config.d_model, config.n_heads * config.head_dim)

    cfg = GPTConfig(30, 64, n_heads=8{stated})
"""
FIELDS = "vocab_size: int\n    d_model: int = 16\n    n_heads: int = 2\n    head_dim: int = None\n"
POST = (
    FIELDS
    + "    def __post_init__(self):\n        d_model, n_heads, head_dim = self.d_model, self.n_heads, self.head_dim"
)
PLAIN = (
    "def __init__(self, vocab_size, d_model=16, n_heads=2, head_dim=None):\n"
    "        self.vocab_size, self.d_model, self.n_heads = vocab_size, d_model, n_heads"
)


@pytest.mark.parametrize(("decorator", "fields"), [("@dataclass", POST), ("", PLAIN)])
@pytest.mark.parametrize(("stated", "out"), [("", 32), (", head_dim=5", 40)])
def test_what_the_class_derived_follows_a_changed_value(
    tmp_path: Path, decorator: str, fields: str, stated: str, out: int
) -> None:
    body = textwrap.dedent(DERIVED).format(decorator=decorator, fields=fields, stated=stated)
    assert load(tmp_path, body).module.q.weight.shape == (40 if stated else 64, 64)
    loaded = load(tmp_path, body, {"d_model": 32})
    assert loaded.module.q.weight.shape == (out, 32)
    assert loaded.module.e.weight.shape == (30, 32)


NESTED = """
    from dataclasses import dataclass, field
    from typing import Dict, List, Optional, Union

    @dataclass
    class Attn:
        heads: int = 2
        size: int = 4

    @dataclass
    class Config:
        vocab_size: int = 30
        attn: {hint} = None

    class GPT(nn.Module):
        def __init__(self, config: Config):
            super().__init__()
            attn = config.attn{index}
            assert isinstance(attn, Attn)
            self.e = nn.Embedding(config.vocab_size, attn.heads * attn.size)
"""


@pytest.mark.parametrize(
    ("hint", "index", "given"),
    [
        ("Optional[Attn]", "", {"heads": 5}),
        ("Attn | None", "", {"heads": 5}),
        ("Union[int, Attn]", "", {"heads": 5}),
        ("List[Attn]", "[0]", [{"heads": 5}]),
        ("Optional[list[Attn]]", "[0]", [{"heads": 5}]),
        ("Dict[str, Attn]", "['a']", {"a": {"heads": 5}}),
    ],
)
def test_nested_values_become_what_the_field_declares(tmp_path: Path, hint: str, index: str, given: object) -> None:
    body = textwrap.dedent(NESTED).format(hint=hint, index=index)
    assert load(tmp_path, body, {"attn": given}).module.e.weight.shape == (30, 20)


def test_a_dataclass_of_the_file_under_any_name(tmp_path: Path) -> None:
    body = """
        from dataclasses import dataclass

        @dataclass
        class Encoding:
            rows: int = 30
            columns: int = 4

        class Net(nn.Module):
            def __init__(self, encoder_conf: Encoding, head: nn.Module = None):
                super().__init__()
                assert isinstance(encoder_conf, Encoding)
                self.e = nn.Embedding(encoder_conf.rows, encoder_conf.columns)
    """
    assert load(tmp_path, body).module.e.weight.shape == (30, 4)
    assert load(tmp_path, body, {"columns": 6}).module.e.weight.shape == (30, 6)


def test_a_configuration_class_that_sets_its_values_in_its_constructor(tmp_path: Path) -> None:
    body = """
        class Config:
            def __init__(self):
                self.n_vocab = 30
                self.embed = 12
                self.pretrained = None

        class Model(nn.Module):
            def __init__(self, config):
                super().__init__()
                assert config.pretrained is None
                self.e = nn.Embedding(config.n_vocab, config.embed)
    """
    assert load(tmp_path, body).module.e.weight.shape == (30, 12)
    assert load(tmp_path, body, {"embed": 6}).module.e.weight.shape == (30, 6)


def test_the_packages_own_dict_says_what_an_absent_key_is(tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text(
        "class dotdict(dict):\n    __getattr__ = dict.get\ndef scaled(x):\n    return 2 * x\n"
    )
    body = """
        from tools import scaled

        class Net(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.e = nn.Embedding(config.vocab_size, scaled(config.width))
                self.extra = None if config.bottleneck is None else nn.Linear(1, 1)
    """
    module = load(tmp_path, body, {"vocab_size": 30, "width": 3}).module
    assert module.e.weight.shape == (30, 6)
    assert module.extra is None


@pytest.mark.parametrize("hint", ["", ": tuple", ": 'tuple[int, ...]'"])
def test_lists_become_tuples_where_the_constructor_wants_them(tmp_path: Path, hint: str) -> None:
    body = f"""
        class Net(nn.Module):
            def __init__(self, depth{hint}, vocab_size=30):
                super().__init__()
                assert isinstance(depth, tuple) and isinstance(depth[1], tuple)
                self.e = nn.Embedding(vocab_size, depth[0])
    """
    loaded = load(tmp_path, body, {"depth": [3, [1, 2]]})
    assert loaded.module.e.weight.shape == (30, 3)
    assert loaded.provenance.config == {"depth": [3, [1, 2]]}
    if hint:
        with pytest.raises(ConstructError, match="needs depth"):
            load(tmp_path, body)


def test_windows_of_a_convolution_over_words(tmp_path: Path) -> None:
    body = """
        class TextCNN(nn.Module):
            def __init__(self, vocab_size, embed_dim, num_filters, filter_sizes, class_num):
                super().__init__()
                self.e = nn.Embedding(vocab_size, embed_dim)
                self.c = nn.ModuleList(nn.Conv2d(1, num_filters, (k, embed_dim)) for k in filter_sizes)
                self.o = nn.Linear(len(filter_sizes) * num_filters, class_num)
    """
    loaded = load(tmp_path, body)
    assert [c.kernel_size[0] for c in loaded.module.c] == [3, 4, 5]
    assert loaded.module.o.weight.shape == (2, 3 * 64)
    assert loaded.provenance.config is not None
    assert loaded.provenance.config["filter_sizes"] == [3, 4, 5]
    module = load(tmp_path, body, {"kernel_sizes": [2], "kernel_num": 7, "num_classes": 4}).module
    assert module.o.weight.shape == (4, 7)
    assert module.c[0].kernel_size[0] == 2


def test_a_configuration_with_slots_has_values_too() -> None:
    @dataclasses.dataclass(frozen=True, slots=True)
    class Config:
        vocab_size: int = 100
        d_model: int = 32

    assert configs.contents(Config(d_model=8)) == {"vocab_size": 100, "d_model": 8}
    assert configs.with_values(Config(), {"vocab_size": 50}) == Config(vocab_size=50)


def test_a_configuration_that_asks_for_its_sizes_itself_gets_them(tmp_path: Path) -> None:
    body = """
        from dataclasses import dataclass

        @dataclass
        class Config:
            vocab_size: int | None = None
            d_model: int | None = None
            n_layers: int | None = None
            n_kv_heads: int | None = None

            def __post_init__(self):
                missing = [n for n in ("vocab_size", "d_model", "n_layers") if getattr(self, n) is None]
                if missing:
                    raise ValueError(f"Missing required fields {missing}")
                self.depth = self.n_layers

        class Net(nn.Module):
            def __init__(self, config: Config):
                super().__init__()
                self.config = config
                self.e = nn.Embedding(config.vocab_size, config.d_model)
                self.layers = nn.ModuleList(nn.Linear(config.d_model, config.d_model) for _ in range(config.depth))
    """
    loaded = load(tmp_path, body)
    assert (loaded.module.e.weight.shape, len(loaded.module.layers)) == ((1024, 128), 2)
    assert loaded.module.config.n_kv_heads is None  # it was not asked for
    again = load(tmp_path, body, loaded.provenance.config).module
    assert again.config == loaded.module.config or vars(again.config) == vars(loaded.module.config)
