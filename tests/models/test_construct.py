"""Constructors in every shape that users write, and messages that say what was tried."""

from __future__ import annotations

import json
import textwrap
import types

import pytest
import torch
from torch import nn

from anyformer.core.errors import ConstructError
from anyformer.models.files import limits
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
            def __init__(self, vocab_size, width, flavour, depth=2):
                super().__init__()
                self.flavour = flavour.strip()
    """
    with pytest.raises(ConstructError) as caught:
        load(tmp_path, body, {"width": 3})
    text = str(caught.value)
    assert "Net needs flavour\n" in text
    assert '{"flavour": …}' in text
    assert "given: width" in text
    assert "tried: config.json" in text


def test_a_configuration_value_that_nobody_knows(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.head = nn.Linear(config.vocab_size, 2)
                self.flavour = config.flavour.strip()
    """
    with pytest.raises(ConstructError, match=r"model\.py:8(?s:.*)no attribute 'flavour'"):
        load(tmp_path, body)


def test_every_attempt_and_its_error_are_told(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self, config, vocab_size=None):
                super().__init__()
                self.head = nn.Linear(self.pick(config), 2)
            def pick(self, config):
                return int(config)
        def build_net(config):
            return Net(config.flavour)
    """
    with pytest.raises(ConstructError) as caught:
        load(tmp_path, body, {"depth": 3})
    text = str(caught.value)
    assert "SimpleNamespace(" in text
    assert "dict(" in text
    assert text.count("model.py:9: return int(config)") >= 2
    assert "build_net" in text
    assert "has no attribute 'flavour'" in text


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


# required values that no configuration gives


def test_required_sizes_are_chosen_fit_together_and_are_announced(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self, ntoken, ninp, nhead, nhid, nlayers, dropout, max_len, pad_idx, device, tie_weights):
                super().__init__()
                assert ninp % nhead == 0
                assert tie_weights is False and device == "cpu" and pad_idx == 0
                self.e = nn.Embedding(ntoken, ninp)
                self.layers = nn.ModuleList(nn.Linear(ninp, nhid) for _ in range(nlayers))
    """
    loaded = load(tmp_path, body)
    sizes = next(f for f in loaded.findings if f.name == "sizes")
    assert sizes.verdict == "warn"
    assert "ntoken=1024" in sizes.measured
    assert "config.json" in sizes.reason
    width, inner = loaded.module.layers[0].in_features, loaded.module.layers[0].out_features
    assert inner == 4 * width
    assert loaded.provenance.config["nhead"] > 1
    again = load_model(f"{tmp_path / 'model.py'}:Net", config=loaded.provenance.config)
    assert again.module.e.weight.shape == loaded.module.e.weight.shape
    assert not [f for f in again.findings if f.name == "sizes"]


def test_the_callers_fallback_is_used_only_where_it_is_needed(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self, n_vocab, width=4):
                super().__init__()
                self.e = nn.Embedding(n_vocab, width)
    """
    path = tmp_path / "model.py"
    load(tmp_path, body)
    wish = {"vocab_size": 77, "width": 9}
    assert load_model(path, fallback=wish).module.e.weight.shape == (77, 4)
    assert load_model(path, fallback=wish).provenance.config == {"n_vocab": 77}
    assert load_model(path, fallback=wish, config={"n_vocab": 5}).module.e.num_embeddings == 5


def test_what_is_no_size_by_name_is_known_by_its_use(tmp_path):
    body = """
        class Inner(nn.Module):
            def __init__(self, embed_dim, num_heads):
                super().__init__()
                self.a = nn.MultiheadAttention(embed_dim, num_heads)
        class Net(nn.Module):
            def __init__(self, input_thing, size, k, m, rate, deep):
                super().__init__()
                self.tokens = nn.Embedding(input_thing, size)
                self.pos = nn.Embedding(m, size)
                self.layers = nn.ModuleList(Inner(size, k) for _ in range(deep))
                self.drop = nn.Dropout(rate)
                self.out = nn.Linear(size, input_thing)
    """
    module = load(tmp_path, body).module
    assert module.tokens.num_embeddings == module.out.out_features == 1024
    assert module.pos.num_embeddings == 256
    assert 0 < module.drop.p < 1
    assert len(module.layers) > 1


@pytest.mark.parametrize("given", [{"n_heads": 6}, {"d_model": 66}, {"n_heads": 5, "head_dim": 10}])
def test_chosen_sizes_fit_the_given_ones(tmp_path, given):
    body = """
        class Net(nn.Module):
            def __init__(self, d_model, n_heads, head_dim, n_kv_heads):
                super().__init__()
                assert d_model == n_heads * head_dim and n_heads % n_kv_heads == 0
                self.sizes = dict(d_model=d_model, n_heads=n_heads, head_dim=head_dim)
    """
    sizes = load(tmp_path, body, given).module.sizes
    assert {k: sizes[k] for k in given} == given


def test_the_files_own_values_win_over_ours(tmp_path):
    body = """
        VOCAB_SIZE = 99
        n_embd = 24
        class Net(nn.Module):
            def __init__(self, vocab_size, n_embd, n_head):
                super().__init__()
                self.heads = n_head
                self.e = nn.Embedding(vocab_size, n_embd)
    """
    module = load(tmp_path, body).module
    assert module.e.weight.shape == (99, 24)
    assert 24 % module.heads == 0


@pytest.mark.parametrize(
    "block",
    [
        'if __name__ == "__main__":\n    a = 100\n    net = Net(a, 2 * 16, depth=5).to("cpu")',
        "def main():\n    a, b = 100, 32\n    model = Net(vocab=a, dim=b, depth=5)\n    raise SystemExit",
    ],
)
def test_the_call_in_main_gives_the_sizes(tmp_path, block):
    body = textwrap.dedent("""
        class Net(nn.Module):
            def __init__(self, vocab, dim, depth=2):
                super().__init__()
                self.depth = depth
                self.e = nn.Embedding(vocab, dim)
    """)
    loaded = load(tmp_path, body + block)
    assert (loaded.module.e.weight.shape, loaded.module.depth) == ((100, 32), 5)
    assert load(tmp_path, body + block, {"vocab": 7}).module.e.weight.shape == (7, 32)


def test_a_trial_vocabulary_in_main_is_not_taken(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self, vocab, dim):
                super().__init__()
                self.e = nn.Embedding(vocab, dim)
        if __name__ == "__main__":
            Net(10, 32)
    """
    assert load(tmp_path, body).module.e.weight.shape == (1024, 32)


@pytest.mark.parametrize(
    ("feeds", "rows"),
    [
        ("torch.randint(0, vocab, (2, 9))", 1024),
        ("torch.randint(vocab, (2, 9))", 1024),
        ("torch.randint(low=0, high=vocab, size=(2, 9))", 1024),
        ("torch.randint(0, 7, (2, 9))", 100),
        ("read_ids()", 100),
    ],
)
def test_a_vocabulary_that_the_file_draws_random_ids_for_is_not_taken(tmp_path, feeds, rows):
    body = f"""
        class Net(nn.Module):
            def __init__(self, vocab, dim):
                super().__init__()
                self.e = nn.Embedding(vocab, dim)
        def main():
            vocab = 100
            net = Net(vocab, 32)
            net({feeds})
    """
    assert load(tmp_path, body).module.e.weight.shape == (rows, 32)
    assert load(tmp_path, body.replace("vocab = 100", "vocab = 5000")).module.e.weight.shape == (5000, 32)


@pytest.mark.parametrize(("shown", "classes"), [(1, 3), (2, 2), (5, 5)])
def test_a_demonstration_with_one_score_per_text_leaves_the_classes_as_they_are(tmp_path, shown, classes):
    body = """
        class Net(nn.Module):
            def __init__(self, vocab_size, num_classes=3, dim=32):
                super().__init__()
                self.e, self.head = nn.Embedding(vocab_size, dim), nn.Linear(dim, num_classes)
        if __name__ == "__main__":
            Net(vocab_size=100, num_classes=SHOWN)
    """.replace("SHOWN", str(shown))
    assert load(tmp_path, body).module.head.out_features == classes
    assert load(tmp_path, body, {"num_classes": 1}).module.head.out_features == 1


@pytest.mark.parametrize(
    "config", ["Config(vocab_size=len(tok), dim=48, depth=3)", '{"vocab_size": tok.vocab_size, "dim": 48, "depth": 3}']
)
def test_sizes_beside_a_vocabulary_that_is_the_tokenizers_are_kept(tmp_path, config):
    read = "c.{}" if config.startswith("C") else 'c["{}"]'
    body = f"""
        from dataclasses import dataclass
        @dataclass
        class Config:
            vocab_size: int
            dim: int = 16
            depth: int = 1
        class Net(nn.Module):
            def __init__(self, c):
                super().__init__()
                self.e = nn.Embedding({read.format("vocab_size")}, {read.format("dim")})
                self.layers = nn.ModuleList(nn.Identity() for _ in range({read.format("depth")}))
        def main():
            tok = load_tokenizer("somewhere")
            config = {config}
            model = Net(config)
    """
    module = load(tmp_path, body).module
    assert (module.e.weight.shape, len(module.layers)) == ((1024, 48), 3)
    assert load(tmp_path, body, {"vocab_size": 70}).module.e.weight.shape == (70, 48)


def test_a_parts_own_sizes_hold_for_the_configuration_beside_it(tmp_path):
    body = """
        class Bert(nn.Module):
            def __init__(self, vocab_size, hidden=80):
                super().__init__()
                self.e = nn.Embedding(vocab_size, hidden)
        class Whole(nn.Module):
            def __init__(self, bert, config):
                super().__init__()
                self.bert = bert
                self.head = nn.Linear(config.hidden, config.vocab_size)
    """
    module = load(tmp_path, body).module
    assert (module.bert.e.weight.shape, module.head.weight.shape) == ((1024, 80), (1024, 80))


@pytest.mark.parametrize("unset", ["None", "0", "-1"])
def test_a_vocabulary_that_is_set_later_is_open(tmp_path, unset):
    body = f"""
        from dataclasses import dataclass
        @dataclass
        class Config:
            vocab_size: int = {unset}
            dim: int = 24
        class Net(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.e = nn.Embedding(config.vocab_size, config.dim)
    """
    assert load(tmp_path, body).module.e.weight.shape == (1024, 24)
    glob = f"""
        vocab_size = {unset}
        def load_tokens(path):
            global vocab_size
            vocab_size = len(open(path).read())
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.e = nn.Embedding(vocab_size, 24)
    """
    assert load(tmp_path, glob).module.e.weight.shape == (1024, 24)
    assert load(tmp_path, glob, {"vocab_size": 90}).module.e.weight.shape == (90, 24)


CFG = """
    {globals}
    class Block(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.q = nn.Linear(cfg["emb_dim"], cfg["emb_dim"], bias=cfg["qkv_bias"])
    class GPTModel(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.e = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
            self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg["n_layers"]))
            self.extra = cfg.get("extra", 3)
"""
SIZES = '{"vocab_size": 500, "emb_dim": 24, "n_layers": 3, "qkv_bias": False}'


@pytest.mark.parametrize(
    "line", [f"GPT_124M = {SIZES}", f'PRESETS = {{"small": {SIZES}, "large": {{"vocab_size": 9}}}}']
)
def test_a_dict_of_the_file(tmp_path, line):
    loaded = load(tmp_path, CFG.format(globals=line))
    assert loaded.module.e.weight.shape == (500, 24)
    assert len(loaded.module.blocks) == 3
    assert load(tmp_path, CFG.format(globals=line), {"n_layer": 1}).module.e.weight.shape == (500, 24)


def test_a_dict_from_what_the_constructor_and_its_parts_read(tmp_path):
    loaded = load(tmp_path, CFG.format(globals=""), {"d_model": 20})
    assert loaded.module.e.embedding_dim == 20
    assert {"vocab_size", "n_layers", "qkv_bias", "d_model"} == set(loaded.provenance.config)
    assert loaded.module.extra == 3
    assert verdicts(loaded)["names"] == "emb_dim from d_model"


def test_an_instance_of_the_file(tmp_path):
    text = CONFIG.format(annotation="") + "    settings = GPTConfig(vocab_size=70, n_embd=6)\n"
    assert load(tmp_path, text).module.head.weight.shape == (70, 6)
    assert load(tmp_path, text, {"hidden_size": 8}).module.head.weight.shape == (70, 8)


def test_a_vocabulary_to_be_set_later_is_missing(tmp_path):
    text = CONFIG.format(annotation=": GPTConfig").replace("vocab_size: int = 11", "vocab_size: int = -1")
    assert load(tmp_path, text).module.head.out_features == 1024
    path = tmp_path / "model.py"
    assert load_model(path, fallback={"vocab_size": 40}).module.head.out_features == 40


def test_a_default_configuration_that_leaves_sizes_open(tmp_path):
    body = """
        class Node: pass
        class GPT(nn.Module):
            @staticmethod
            def get_default_config():
                C = Node()
                C.model_type, C.n_layer, C.n_embd, C.vocab_size, C.rate = "gpt", None, None, None, 0.25
                return C
            def __init__(self, config):
                super().__init__()
                assert (config.model_type is not None) ^ (config.n_embd is not None)
                if config.model_type is not None:
                    config.__dict__.update({"nano": dict(n_layer=3, n_embd=12)}[config.model_type])
                self.e = nn.Embedding(config.vocab_size, config.n_embd)
                self.layers = nn.ModuleList(nn.Dropout(config.rate) for _ in range(config.n_layer))
    """
    loaded = load(tmp_path, body)
    assert loaded.module.e.num_embeddings == 1024
    assert loaded.module.layers[0].p == 0.25
    nano = load(tmp_path, body, {"model_type": "nano"}).module
    assert (nano.e.embedding_dim, len(nano.layers)) == (12, 3)
    again = load(tmp_path, body, loaded.provenance.config).module
    assert again.e.weight.shape == loaded.module.e.weight.shape


@pytest.mark.parametrize("config", [{"dtype": "float64"}, {"dtype": "torch.float64"}])
@pytest.mark.parametrize("use", ["getattr(torch, config.dtype)", "{'float64': torch.float64}[config.dtype]"])
def test_a_number_format_may_be_looked_up_by_its_name(tmp_path, config, use):
    (tmp_path / "model.py").write_text(
        textwrap.dedent(f"""
        import torch
        from torch import nn
        class LM(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.e = nn.Embedding(config.vocab_size, 8, dtype={use})
                self.h = nn.Linear(8, config.vocab_size, dtype={use})
            def forward(self, x): return self.h(self.e(x))
        """)
    )
    module = load_model(tmp_path / "model.py", config={"vocab_size": 20, **config}).module
    assert module.e.weight.dtype == torch.float64


def test_nested_configuration_and_dtype_by_name(tmp_path):
    body = """
        class Part(nn.Module):
            def __init__(self, c):
                super().__init__()
                self.q = nn.Linear(c.dim, c.dim, dtype=c.dtype)
        class Net(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.e = nn.Embedding(config.data.vocab_size, config.model.dim)
                self.part = Part(config.model)
    """
    module = load(tmp_path, body, {"dtype": "torch.bfloat16", "vocab_size": 9}).module
    assert str(module.part.q.weight.dtype) == "torch.bfloat16"
    assert module.e.num_embeddings == 9


def test_flags_defaults_are_the_configuration(tmp_path):
    body = """
        import argparse
        class Net(nn.Module):
            def __init__(self, args):
                super().__init__()
                self.e = nn.Embedding(args.vocab, args.d_model)
        def get_args():
            parser = argparse.ArgumentParser()
            parser.add_argument("--d_model", type=int, default=48)
            parser.add_argument("--vocab", type=int)
            return parser.parse_args()
    """
    assert load(tmp_path, body).module.e.weight.shape == (1024, 48)


def test_aliases_that_contradict_each_other_are_refused(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self, n_embd, vocab_size=9):
                super().__init__()
    """
    with pytest.raises(ConstructError, match=r"gives n_embd twice: d_model=4, dim=8"):
        load(tmp_path, body, {"d_model": 4, "dim": 8})
    assert load(tmp_path, body, {"d_model": 4, "dim": 4}).provenance.config["d_model"] == 4


def test_one_vocabulary_serves_source_and_target(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self, src_vocab_size, trg_vocab_size, src_pad_idx, device="cuda"):
                super().__init__()
                self.sizes = (src_vocab_size, trg_vocab_size, src_pad_idx, device)
    """
    loaded = load(tmp_path, body, {"vocab_size": 33})
    assert loaded.module.sizes == (33, 33, 0, "cpu")
    assert "cuda" in verdicts(loaded)["device"]


# modules as arguments, factories


def test_a_part_that_is_an_argument_is_built_first(tmp_path):
    body = """
        class BERT(nn.Module):
            def __init__(self, vocab_size, hidden=12):
                super().__init__()
                self.hidden = hidden
                self.e = nn.Embedding(vocab_size, hidden)
        class BERTLM(nn.Module):
            def __init__(self, bert: BERT, vocab_size):
                super().__init__()
                self.bert, self.head = bert, nn.Linear(bert.hidden, vocab_size)
    """
    module = load(tmp_path, body, {"vocab_size": 21}).module
    assert (module.bert.e.num_embeddings, module.head.out_features) == (21, 21)


FACTORY = """
    class Encoder(nn.Module):
        def __init__(self, size, layers):
            super().__init__()
            self.layers = layers
    class Model(nn.Module):
        def __init__(self, encoder: Encoder, embed: nn.Module):
            super().__init__()
            self.encoder, self.embed = encoder, embed
    def {name}(src_vocab, N=2, d_model=16):
        layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(N))
        return Model(Encoder(d_model, layers), nn.Embedding(src_vocab, d_model))
"""


@pytest.mark.parametrize("name", ["make_model", "build_transformer", "Build_Transformer", "create_model", "get_model"])
def test_a_factory_builds_what_needs_modules(tmp_path, name):
    loaded = load(tmp_path, FACTORY.format(name=name), {"src_vocab": 15, "n_layers": 3})
    assert type(loaded.module).__name__ == loaded.provenance.class_name == "Model"
    assert (loaded.module.embed.num_embeddings, len(loaded.module.encoder.layers)) == (15, 3)
    again = load_model(f"{tmp_path / 'model.py'}:Model", config=loaded.provenance.config)
    assert len(again.module.encoder.layers) == 3
    assert type(load_model(f"{tmp_path / 'model.py'}:{name}").module).__name__ == "Model"


def test_a_file_with_a_factory_and_no_class(tmp_path):
    body = """
        def get_model(vocab_size, d_model=16):
            return nn.Sequential(nn.Embedding(vocab_size, d_model), nn.Linear(d_model, vocab_size))
    """
    loaded = load(tmp_path, body, {"vocab_size": 31})
    assert loaded.module[0].num_embeddings == 31
    again = load_model(f"{tmp_path / 'model.py'}:{loaded.provenance.class_name}", config=loaded.provenance.config)
    assert again.module[1].out_features == 31


def test_encoder_and_decoder_that_the_script_hands_over(tmp_path):
    body = """
        class Encoder(nn.Module):
            def __init__(self, input_dim, hid_dim, n_layers):
                super().__init__()
                self.e = nn.Embedding(input_dim, hid_dim)
        class Decoder(nn.Module):
            def __init__(self, output_dim, hid_dim, n_layers):
                super().__init__()
                self.fc_out = nn.Linear(hid_dim, output_dim)
                self.e = nn.Embedding(output_dim, hid_dim)
        class Seq2Seq(nn.Module):
            def __init__(self, enc, dec, device):
                super().__init__()
                self.enc, self.dec = enc, dec
        def run():
            HID = 40
            enc = Encoder(len(words()), HID, 3)
            dec = Decoder(len(words()), HID, 3)
            model = Seq2Seq(enc, dec, device).cuda()
    """
    loaded = load(tmp_path, body)
    assert loaded.provenance.class_name == "Seq2Seq"
    assert loaded.module.enc.e.weight.shape == loaded.module.dec.e.weight.shape == (1024, 40)


# after and before the construction


@pytest.mark.parametrize(("call", "said"), [("", True), ("self.init_weights()", False)])
def test_init_weights_is_called_where_the_constructor_does_not(tmp_path, call, said):
    body = f"""
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.calls = 0
                {call or "pass"}
            def init_weights(self):
                self.calls += 1
    """
    loaded = load(tmp_path, body)
    assert loaded.module.calls == 1
    assert ("initialisation" in verdicts(loaded)) is said


def test_a_huge_model_is_refused_before_it_is_built(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self, vocab_size=10**7):
                super().__init__()
                self.e = nn.Embedding(vocab_size, 4_000_000)
    """
    with pytest.raises(ConstructError, match=r"Net would take 149,0\d\d\.\d GiB(?s:.*)\(10000000, 4000000\)"):
        load(tmp_path, body)


def test_every_attempt_draws_the_same_weights(tmp_path):
    body = """
        @dataclass
        class Config:
            n_embd: int = None
        class Net(nn.Module):
            def __init__(self, config: Config):
                super().__init__()
                self.first = nn.Linear(3, 3)
                self.second = nn.Linear(config.n_embd, 3)
    """
    load(tmp_path, body)
    path = tmp_path / "model.py"
    first = load_model(path, seed=5)  # a first attempt draws numbers and fails
    again = load_model(path, seed=5, config=first.provenance.config)
    assert first.module.first.weight.equal(again.module.first.weight)


SEVERAL = """
    TINY = {"dim": 4, "vocab_size": 9, "experts": 0}
    LARGE = {"dim": 6, "vocab_size": 9, "experts": 3, "expert_dim": 5}
    class Expert(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.w = nn.Linear(cfg["dim"], cfg["expert_dim"])
    class Net(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.e = nn.Embedding(cfg["vocab_size"], cfg["dim"])
            self.x = Expert(cfg) if "experts" in cfg and cfg["experts"] > 0 else None
"""


def test_of_several_dicts_the_first_that_has_what_is_always_read(tmp_path):
    module = load(tmp_path, SEVERAL).module
    assert (module.e.embedding_dim, module.x) == (4, None)


def test_a_complete_configuration_is_not_mixed_with_one_of_the_file(tmp_path):
    module = load(tmp_path, SEVERAL.replace("TINY", "_TINY"), {"dim": 8, "vocab_size": 11}).module
    assert (module.e.weight.shape, module.x) == ((11, 8), None)
    more = load(tmp_path, SEVERAL, {"dim": 8, "vocab_size": 11, "experts": 2, "expert_dim": 7}).module
    assert more.x.w.out_features == 7


def test_matrices_of_several_types_become_float32_and_buffers_stay(tmp_path):
    body = """
        import torch
        class Net(nn.Module):
            def __init__(self, mixed=True):
                super().__init__()
                self.e = nn.Embedding(9, 4, dtype=torch.bfloat16)
                self.head = nn.Linear(4, 9, bias=False, dtype=None if mixed else torch.bfloat16)
                self.norm = nn.LayerNorm(4)
                self.register_buffer("cos", torch.ones(3, dtype=torch.bfloat16))
    """
    loaded = load(tmp_path, body)
    assert {str(p.dtype) for p in loaded.module.parameters()} == {"torch.float32"}
    assert str(loaded.module.cos.dtype) == "torch.bfloat16"
    assert verdicts(loaded)["dtype"] == "float32 instead of bfloat16: e.weight"
    # a norm of its own type is usual
    assert str(load(tmp_path, body, {"mixed": False}).module.e.weight.dtype) == "torch.bfloat16"


def test_tensors_without_memory_are_refused(tmp_path):
    body = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.e = nn.Embedding(9, 4, device="meta")
    """
    with pytest.raises(ConstructError, match=r"Net leaves 1 tensors without memory(.|\n)*e\.weight"):
        load(tmp_path, body)


LAYERS = """
    class Net(nn.Module):
        def __init__(self, n=8, width=64):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(n)])
"""


@pytest.mark.parametrize(("config", "refused"), [(None, True), ({"n": 8}, False), ({"n": 80}, True)])
def test_a_large_model_is_counted_before_it_is_drawn(tmp_path, monkeypatch, config, refused):
    """Defaults are built where they can be trained (four times their size), asked sizes where they fit."""
    monkeypatch.setattr(limits, "_UNCOUNTED", 20_000)
    monkeypatch.setattr(limits, "available_memory", lambda: 2 * 8 * 64 * 64 * 4)
    drawn: list[bool] = []
    original = nn.Linear.reset_parameters
    monkeypatch.setattr(
        nn.Linear, "reset_parameters", lambda self: (drawn.append(not self.weight.is_meta), original(self))[1]
    )
    if not refused:
        assert len(load(tmp_path, LAYERS, config).module.layers) == 8
        return
    count = (config or {"n": 8})["n"] * 64 * 64
    with pytest.raises(ConstructError, match=rf"{count:,} parameters(.|\n)*config\.json"):
        load(tmp_path, LAYERS, config)
    assert sum(drawn) < 3  # 20,000 bytes are one layer


def test_what_grows_without_an_estimate_is_stopped(tmp_path, monkeypatch):
    """A constructor that cannot run on the meta device: two layers, since four times their 16 KB must fit."""
    monkeypatch.setattr(limits, "_UNCOUNTED", 20_000)
    monkeypatch.setattr(limits, "available_memory", lambda: 100_000)
    body = LAYERS.replace("self.layers =", "float(nn.Linear(1, 1).weight)\n            self.layers =")
    with pytest.raises(ConstructError, match=r"does not fit: at least 8,192 parameters"):
        load(tmp_path, body)


def test_a_part_that_is_named_like_the_model_itself_is_missing(tmp_path):
    body = """
        class Transformer(nn.Module):
            def __init__(self, transformer):
                super().__init__()
                self.t = transformer
    """
    with pytest.raises(ConstructError, match="Transformer needs transformer"):
        load(tmp_path, body)


def test_a_field_that_the_configuration_computes_or_leaves_out_is_not_filled_by_its_use(tmp_path):
    """litgpt's rope_n_elem and q_lora_rank: ``arange(rope)`` and ``Linear(rank)`` make them no length and no width."""
    body = """
        from dataclasses import field
        import torch
        @dataclass
        class Config:
            n_embd: int = 4
            block_size: int = 16
            vocab_size: int = 11
            rank: int | None = None
            rope: int = field(init=False)
            def __post_init__(self):
                self.rope = self.n_embd // 2
        class GPT(nn.Module):
            def __init__(self, config: Config):
                super().__init__()
                self.e = nn.Embedding(config.vocab_size, config.n_embd)
                self.low = nn.Linear(4, config.rank) if config.rank else None
                self.register_buffer("cos", torch.arange(config.rope))
    """
    module = load(tmp_path, body, {"n_embd": 8, "block_size": 32, "vocab_size": 9}).module
    assert (module.e.weight.shape, module.low, len(module.cos)) == ((9, 8), None, 4)
    assert load(tmp_path, body, {"n_embd": 8, "rank": 3}).module.low.out_features == 3


def test_pad_ids_of_two_texts_are_set_where_their_default_is_none(tmp_path):
    body = """
        class Seq2Seq(nn.Module):
            def __init__(self, vocab_size=9, src_pad_idx=None, trg_pad_idx=None, pad_idx=None):
                super().__init__()
                self.e = nn.Embedding(vocab_size, 4)
                self.pads = (src_pad_idx, trg_pad_idx, pad_idx)
    """
    loaded = load(tmp_path, body)
    assert loaded.module.pads == (0, 0, None)
    assert "src_pad_idx=0" in verdicts(loaded)["sizes"]


# the file's own sizes, too large for this machine

LLAMA = """
    @dataclass
    class ModelArgs:
        dim: int = 4096
        n_layers: int = 3
        n_heads: int = 32
        n_kv_heads: int = None
        vocab_size: int = -1
        multiple_of: int = 256
        max_seq_len: int = 2048
    class Block(nn.Module):
        def __init__(self, args):
            super().__init__()
            kv = args.n_heads if args.n_kv_heads is None else args.n_kv_heads
            assert args.dim % args.n_heads == 0 and args.n_heads % kv == 0
            self.q = nn.Linear(args.dim, args.dim, bias=False)
            self.k = nn.Linear(args.dim, kv * (args.dim // args.n_heads), bias=False)
            self.up = nn.Linear(args.dim, args.multiple_of, bias=False)
    class Transformer(nn.Module):
        def __init__(self, args: ModelArgs):
            super().__init__()
            self.args = args
            self.first = nn.Linear(3, 3, bias=False)  # draws numbers before the build is stopped
            self.e = nn.Embedding(args.vocab_size, args.dim)
            self.layers = nn.ModuleList(Block(args) for _ in range(args.n_layers))
"""
LLAMA_DICT = """
    import torch
    LLAMA32_CONFIG_1B = {
        "vocab_size": 128_256, "context_length": 131_072, "emb_dim": 2048, "n_heads": 32, "n_layers": 16,
        "hidden_dim": 8192, "n_kv_groups": 8, "head_dim": 64, "dtype": torch.bfloat16, "rope_base": 5.0, "extra": 7,
        "eos_id": 128_001, "bos_id": 9,
    }
    class GPTModel(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            assert cfg["n_heads"] % cfg["n_kv_groups"] == 0 and cfg["n_heads"] > cfg["n_kv_groups"]
            assert cfg["head_dim"] * cfg["n_heads"] == cfg["emb_dim"] and cfg["head_dim"] % 2 == 0
            self.cfg, self.extra = cfg, cfg.get("extra", 3)
            self.e = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"], dtype=cfg["dtype"])
            self.up = nn.ModuleList(nn.Linear(cfg["emb_dim"], cfg["hidden_dim"]) for _ in range(cfg["n_layers"]))
            self.pos = nn.Embedding(cfg["context_length"], 2)
            self.base = cfg["rope_base"]
"""


def shapes(module) -> dict:
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


@pytest.fixture
def little_memory(monkeypatch):
    """64 MiB free: 4 million parameters can be trained."""
    monkeypatch.setattr(limits, "_UNCOUNTED", 2**20)
    monkeypatch.setattr(limits, "available_memory", lambda: 2**26)


@pytest.mark.usefixtures("little_memory")
def test_defaults_that_are_too_large_give_way_to_small_sizes(tmp_path):
    path = tmp_path / "model.py"
    loaded = load(tmp_path, LLAMA)
    args = loaded.module.args
    assert (args.dim, args.n_layers, args.n_kv_heads, args.vocab_size) == (128, 2, None, 1024)
    assert args.multiple_of == 256  # no size: the file's own
    (sizes,) = [f for f in loaded.findings if f.name == "sizes"]
    assert sizes.verdict == "warn"
    own = 9 + 1024 * 4096 + 3 * (2 * 4096 * 4096 + 4096 * 256)
    small = 9 + 1024 * 128 + 2 * (2 * 128 * 128 + 128 * 256)
    assert f"own sizes make {own / 1e6:.1f} M parameters, more than fits here: built with dim=128" in sizes.measured
    assert f"instead ({small / 1e6:.1f} M parameters)" in sizes.measured
    assert all(f"{k}={v}" in sizes.measured for k, v in loaded.provenance.config.items())
    assert "config.json" in sizes.reason
    assert not {"configuration", "names"} & set(verdicts(loaded))
    seeded = load_model(path, seed=3)
    again = load_model(path, seed=3, config=loaded.provenance.config)
    assert shapes(again.module) == shapes(loaded.module)
    assert again.module.layers[1].q.weight.equal(seeded.module.layers[1].q.weight)
    assert not [f for f in again.findings if f.name == "sizes"]


NESTED = """
    from dataclasses import dataclass, field

    @dataclass(frozen=True)
    class TextConfig:
        vocab_size: int = 262_144
        embed_dim: int = 2048
        num_layers: int = 30
        softcap: float = 30.0

    @dataclass(frozen=True)
    class ImageConfig:
        embed_dim: int = 64

    @dataclass(frozen=True)
    class Config:
        text: TextConfig = field(default_factory=TextConfig)
        image: ImageConfig = field(default_factory=ImageConfig)

    class Nested(nn.Module):
        def __init__(self, cfg: Config):
            super().__init__()
            self.cfg = cfg
            self.e = nn.Embedding(cfg.text.vocab_size, cfg.text.embed_dim)
            width, depth = cfg.text.embed_dim, cfg.text.num_layers
            self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
            self.image = nn.Linear(cfg.image.embed_dim, 8)
            self.head = nn.Linear(cfg.text.embed_dim, cfg.text.vocab_size)

        def forward(self, x):
            return self.head(self.layers[0](self.e(x)))
"""


@pytest.mark.usefixtures("little_memory")
def test_a_large_configuration_inside_the_configuration_is_made_smaller(tmp_path):
    loaded = load(tmp_path, NESTED)
    text, image = loaded.module.cfg.text, loaded.module.cfg.image
    assert (text.embed_dim, text.vocab_size, text.num_layers) == (128, 1024, 2)
    assert image.embed_dim == 64  # narrow already
    assert text.softcap == 30.0
    (said,) = [f for f in loaded.findings if f.name == "sizes"]
    assert "'vocab_size': 1024" in said.measured
    again = load_model(tmp_path / "model.py", config=loaded.provenance.config)
    assert shapes(again.module) == shapes(loaded.module)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("config", [{"dim": 4096}, {"vocab_size": 32_000}, {"dropout": 0.1}, {"model_type": "7B"}])
def test_sizes_that_the_user_states_are_never_replaced(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConstructError, match=r"Transformer would take .*parameters(.|\n)*config\.json"):
        load(tmp_path, LLAMA)
    (tmp_path / "config.json").write_text('{"class_name": "Transformer"}', encoding="utf-8")
    assert load(tmp_path, LLAMA).module.args.dim == 128  # the name of the class states no size


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("only_sizes", [False, True])
def test_a_large_dict_of_the_file_keeps_what_is_no_size(tmp_path, only_sizes):
    """With a dtype, which config.json cannot hold; and where our sizes alone are all that is always read."""
    body = LLAMA_DICT
    if only_sizes:
        body = body.replace(', dtype=cfg["dtype"]', "").replace('cfg["rope_base"]', 'cfg.get("rope_base")')
    loaded = load(tmp_path, body)
    cfg = loaded.module.cfg
    assert (cfg["emb_dim"], cfg["n_heads"], cfg["n_kv_groups"], cfg["head_dim"]) == (128, 4, 1, 32)
    assert (cfg["context_length"], cfg["hidden_dim"], cfg["n_layers"]) == (256, 512, 2)
    assert (cfg["bos_id"], cfg["eos_id"]) == (9, 2)  # an id of a token beyond the small vocabulary is replaced
    assert (loaded.module.base, loaded.module.extra) == (5.0, 7)
    (sizes,) = [f for f in loaded.findings if f.name == "sizes"]
    assert "n_kv_groups=1" in sizes.measured
    assert "rope_base" not in sizes.measured
    again = load(tmp_path, body, json.loads(json.dumps(loaded.provenance.config)))
    assert shapes(again.module) == shapes(loaded.module)
    assert (again.module.extra, again.module.e.weight.dtype) == (7, loaded.module.e.weight.dtype)


@pytest.mark.usefixtures("little_memory")
def test_only_what_is_too_large_is_replaced(tmp_path):
    """A narrow model with a huge vocabulary keeps its width, heads and layers."""
    body = """
        class Net(nn.Module):
            def __init__(self, vocab_size=5_000_000, n_embd=24, n_head=3, n_layer=2, max_len=99):
                super().__init__()
                self.sizes = (n_embd, n_head, n_layer, max_len)
                self.e = nn.Embedding(vocab_size, n_embd)
    """
    loaded = load(tmp_path, body)
    assert loaded.module.sizes == (24, 3, 2, 99)
    assert loaded.provenance.config == {"vocab_size": 1024}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("own", [-1, 500, 32_000])
def test_the_callers_vocabulary_comes_before_a_small_one_of_ours(tmp_path, own):
    loaded = load(tmp_path, LLAMA.replace("vocab_size: int = -1", f"vocab_size: int = {own}"))
    assert loaded.module.e.num_embeddings == (own if own == 500 else 1024)
    asked = load_model(tmp_path / "model.py", fallback={"vocab_size": 700})
    assert (asked.module.e.num_embeddings, asked.provenance.config["vocab_size"]) == (700, 700)


@pytest.mark.usefixtures("little_memory")
def test_small_sizes_that_fail_leave_the_refusal_as_it_was(tmp_path, monkeypatch):
    body = LLAMA.replace("self.args = args", "assert args.dim >= 4096, 'wide models only'")
    with pytest.raises(ConstructError, match=r"would take (.|\n)*no sizes were given") as caught:
        load(tmp_path, body)
    assert "wide models only" not in str(caught.value)
    wide = body.replace("assert args.dim >= 4096, 'wide models only'", "self.w = nn.Linear(9000, 9000)")
    with pytest.raises(ConstructError, match=r"Transformer would take"):
        load(tmp_path, wide)
    monkeypatch.setattr(limits, "available_memory", lambda: 3 * 2**20)  # 1 MiB of small weights needs 4 to be trained
    with pytest.raises(ConstructError, match=r"Transformer would take"):
        load(tmp_path, LLAMA)


@pytest.mark.parametrize("name", ["build_model", "from_args", "create"])
def test_a_class_method_that_makes_the_parts(tmp_path, name):
    body = f"""
        class Part(nn.Module):
            def __init__(self, rows, width):
                super().__init__()
                self.e = nn.Embedding(rows, width)
        class Whole(nn.Module):
            def __init__(self, args, inner):
                super().__init__()
                self.inner = inner
            @staticmethod
            def add_args(parser):
                parser.add_argument("--embed-dim", type=int, default=6)
            @classmethod
            def {name}(cls, args, vocab_size=30):
                return cls(args, Part(vocab_size, args.embed_dim))
    """
    loaded = load(tmp_path, body)
    assert loaded.module.inner.e.weight.shape == (30, 6)
    loaded = load(tmp_path, body, {"embed_dim": 4, "vocab_size": 40})
    assert loaded.module.inner.e.weight.shape == (40, 4)
    assert loaded.provenance.config == {"embed_dim": 4, "vocab_size": 40, "factory": name}
    assert load(tmp_path, body, loaded.provenance.config).module.inner.e.weight.shape == (40, 4)


LEARNED = """
    class GPT(nn.Module):
        def __init__(self, vocab_size, n_embed, block_size=None, num_classes=None):
            super().__init__()
            self.e = nn.Embedding(vocab_size, n_embed)
            self.p = nn.Embedding(block_size{more}, n_embed)
            self.head = nn.Linear(n_embed, num_classes or vocab_size)
"""


def test_a_size_that_is_none_by_default_is_filled_where_the_constructor_fails_with_it(tmp_path):
    loaded = load(tmp_path, LEARNED.format(more=""), {"vocab_size": 40, "n_embed": 8})
    assert loaded.module.p.num_embeddings == 256
    assert loaded.module.head.out_features == 40  # None is a value that the class knows
    assert verdicts(loaded)["sizes"] == "block_size=256"
    told = next(f.reason for f in loaded.findings if f.name == "construction")
    assert "after 1 other ways failed" in told
    assert "nn.Embedding(block_size, n_embed)" in told
    again = load(tmp_path, LEARNED.format(more=""), loaded.provenance.config)
    assert again.module.p.num_embeddings == 256


def test_none_stays_where_the_constructor_takes_it(tmp_path):
    loaded = load(tmp_path, LEARNED.format(more=" or 7"), {"vocab_size": 40, "n_embed": 8})
    assert loaded.module.p.num_embeddings == 7
    assert "sizes" not in verdicts(loaded)


POOLED = """
    import torch.nn.functional as F
    class {name}(nn.Module):
        def __init__(self, vocab_size, embedding_dim, output_dim):
            super().__init__()
            self.e = nn.Embedding(vocab_size, embedding_dim)
            self.{layer} = nn.Linear(embedding_dim, output_dim)
        def forward(self, x):
            h = self.e(x)
            return self.{layer}({pooled})
"""


@pytest.mark.parametrize("layer", ["fc", "out"])
@pytest.mark.parametrize(
    "pooled", ["h.mean(dim=1)", "h[:, -1]", "h[:, 0, :]", "F.max_pool1d(h.transpose(1, 2), h.shape[1]).squeeze(2)"]
)
def test_the_output_of_pooled_positions_is_a_number_of_classes(tmp_path, layer, pooled):
    loaded = load(tmp_path, POOLED.format(name="TextNet", layer=layer, pooled=pooled))
    assert getattr(loaded.module, layer).out_features == 2
    given = load(tmp_path, POOLED.format(name="TextNet", layer=layer, pooled=pooled), {"num_classes": 5})
    assert getattr(given.module, layer).out_features == 5


@pytest.mark.parametrize(("name", "pooled"), [("TextEncoder", "h.mean(dim=1)"), ("TextNet", "h[:, :-1]")])
def test_the_output_of_an_encoder_or_of_every_position_is_none(tmp_path, name, pooled):
    assert load(tmp_path, POOLED.format(name=name, layer="fc", pooled=pooled)).module.fc.out_features == 128


TOOL = """
    class GPT(nn.Module):
        def __init__(self, vocab_size, tokenizer):
            super().__init__()
            self.enc = tokenizer
            self.e = nn.Embedding({rows}, 8)
        def forward(self, x):
            return self.e({ids})
        def generate(self, text):
            return self.enc.decode(self(self.enc.encode(text)))
"""


def test_a_tokenizer_that_is_only_kept_is_none(tmp_path):
    loaded = load(tmp_path, TOOL.format(rows="vocab_size", ids="x"), {"vocab_size": 40})
    assert loaded.module.enc is None
    assert verdicts(loaded)["parts"] == "tokenizer=None"


@pytest.mark.parametrize(
    ("rows", "ids"), [("len(tokenizer)", "x"), ("len(self.enc)", "x"), ("vocab_size", "self.enc.encode(x)")]
)
def test_a_tokenizer_that_is_used_is_missing(tmp_path, rows, ids):
    with pytest.raises(ConstructError, match="GPT needs tokenizer"):
        load(tmp_path, TOOL.format(rows=rows, ids=ids), {"vocab_size": 40})


def test_a_class_body_reads_the_names_it_bound_before(tmp_path):
    file = tmp_path / "model.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom torch import nn\n\n\n@dataclass\nclass Args:\n"
        "    vocab_size: int = 65\n"
        "    dim: int = 96\n    n_heads: int = 4\n    head_dim: int = dim // n_heads\n\n\nclass LM(nn.Module):\n"
        "    def __init__(self, args: Args):\n        super().__init__()\n"
        "        self.e, self.h = nn.Embedding(args.vocab_size, args.dim), nn.Linear(args.dim, args.vocab_size)\n\n"
        "    def forward(self, ids):\n        return self.h(self.e(ids)) * (dim > 0 if False else 1)\n"
    )
    loaded = load_model(str(file))
    sizes = [f for f in loaded.findings if f.name == "sizes"]
    assert "n_heads" not in str(sizes)
    assert "dim" in str(sizes)  # a method does not see the names of its class's body
    file.write_text(file.read_text().replace(" * (dim > 0 if False else 1)", ""))
    assert not [f for f in load_model(str(file)).findings if f.name == "sizes"]


KEYWORDS = """
    class Part(nn.Module):
        def __init__(self, {part}):
            super().__init__()
            self.up = nn.Linear({width}, kwargs["n_hidden"])
            self.causal = kwargs["causal"]
    class Net(nn.Module):
        def __init__(self, **kwargs):
            super().__init__()
            self.emb = nn.Embedding(kwargs["vocab_size"], kwargs["n_embd"])
            self.parts = nn.Sequential(*[Part(**kwargs) for _ in range(kwargs["n_layer"])])
"""


@pytest.mark.parametrize(("part", "width"), [("**kwargs", 'kwargs["n_embd"]'), ("n_embd, **kwargs", "n_embd")])
def test_what_a_part_reads_of_keywords_that_are_handed_on(tmp_path, part, width):
    loaded = load(tmp_path, KEYWORDS.format(part=part, width=width))
    up = loaded.module.parts[0].up
    assert up.out_features == 4 * up.in_features == 4 * loaded.module.emb.embedding_dim
    assert loaded.module.parts[0].causal is True


VOCABULARIES = """
    class Net(nn.Module):
        def __init__(self, src_vocab, tgt_vocab):
            super().__init__()
            self.emb = nn.Embedding(len(src_vocab), 8, padding_idx=src_vocab["{pad}"])
            self.out = nn.Linear(8, len(tgt_vocab))
            self.end = tgt_vocab["<eos>"]
"""


@pytest.mark.parametrize("pad", ["<pad>", "[PAD]", "<|pad|>"])
def test_a_vocabulary_of_which_the_length_and_special_tokens_are_read(tmp_path, pad):
    module = load(tmp_path, VOCABULARIES.format(pad=pad), {"src_vocab": 90, "tgt_vocab": 70}).module
    assert (module.emb.num_embeddings, module.emb.padding_idx) == (90, 0)
    assert (module.out.out_features, module.end) == (70, 0)


@pytest.mark.parametrize("asked", [None, {"vocab_size": 300}])
def test_a_padding_id_that_the_file_writes_down_has_a_row(tmp_path, asked):
    body = """
        class Net(nn.Module):
            def __init__(self, vocab_size):
                super().__init__()
                self.emb = nn.Embedding(vocab_size, 8, padding_idx=2000)
    """
    path = tmp_path / "model.py"
    path.write_text("from torch import nn\n" + textwrap.dedent(body))
    loaded = load_model(path, fallback=asked)
    assert loaded.module.emb.num_embeddings == 2001
    found = next(f for f in loaded.findings if f.name == "vocabulary")
    assert found.measured == "2,001 ids"
    assert "padding_idx=2,000" in found.reason


@pytest.mark.parametrize(
    ("made", "error"),
    [
        ("Missing(dim)", "NameError: name 'Missing' is not defined"),
        ("Rotary()", "missing 1 required positional argument: 'size'"),
        ("Rotary(dim, 3, 4)", "takes 2 positional arguments but 4 were given"),
        ("Rotary(dim, width=3)", "unexpected keyword argument 'width'"),
    ],
)
def test_an_error_that_no_value_mends_is_to_be_mended_in_the_file(tmp_path, made, error):
    body = f"""
    class Rotary(nn.Module):
        def __init__(self, size):
            super().__init__()

    class Net(nn.Module):
        def __init__(self, vocab_size=50, dim=16):
            super().__init__()
            self.rotary = {made}

        def forward(self, ids):
            return ids
    """
    with pytest.raises(ConstructError) as caught:
        load(tmp_path, body + "\n    model = Net()\n")
    assert error in caught.value.detail
    line = next(n for n, text in enumerate((tmp_path / "model.py").read_text().splitlines(), 1) if made in text)
    assert f"mend model.py:{line}" in caught.value.fix
    assert "config.json" not in caught.value.fix


@pytest.mark.parametrize(("gives", "drawn"), [("model", True), ("model, None", False)])
def test_a_function_that_draws_the_weights_builds_the_model(tmp_path, gives, drawn):
    body = f"""
        class Net(nn.Module):
            def __init__(self, vocab_size, dim=32):
                super().__init__()
                self.e = nn.Embedding(vocab_size, dim)
        def create_model(vocab_size, device, **kwargs):
            model = Net(vocab_size, **kwargs).to(device)
            for p in model.parameters():
                nn.init.constant_(p, 0.5)
            return {gives}
    """
    loaded = load(tmp_path, body)
    assert type(loaded.module).__name__ == "Net"
    assert bool((loaded.module.e.weight == 0.5).all()) == drawn
    again = load(tmp_path, body, loaded.provenance.config)
    assert torch.equal(again.module.e.weight, loaded.module.e.weight) or not drawn


def test_few_logits_beside_a_texts_vocabulary_are_classes(tmp_path):
    """A classifier written from a translator keeps its name for them."""
    (tmp_path / "model.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Transformer(nn.Module):\n"
        "    def __init__(self, src_vocab_size, tgt_vocab_size, d_model):\n        super().__init__()\n"
        "        self.embedding = nn.Embedding(src_vocab_size, d_model, padding_idx=0)\n"
        "        self.fc = nn.Linear(d_model, tgt_vocab_size)\n\n"
        "    def forward(self, src):\n        return self.fc(self.embedding(src).mean(1))\n\n\n"
        "model = Transformer(2000, 2, 32)\n"
    )
    loaded = load_model(tmp_path / "model.py")
    assert loaded.module.fc.out_features == 2
    assert loaded.module.embedding.num_embeddings == 2000
