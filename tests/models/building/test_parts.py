"""Arguments that are no numbers: a vocabulary of which the length is read, a part that is a class of the file."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch

from anyformer.core.errors import CallError, ConstructError
from anyformer.models.callplan import infer_call_plan
from anyformer.models.source import load_model

WORDS = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self, d_model, {name}):
            super().__init__()
            self.n = len({name})
            self.e, self.head = nn.Embedding(self.n, d_model), nn.Linear(d_model, len({name}))
            {more}

        def forward(self, x):
            return self.head(self.e(x))
"""
PARTS = """
    import torch
    from torch import nn

    class Embeddings(nn.Module):
        def __init__(self, vocab_size, width):
            super().__init__()
            self.e = nn.Embedding(vocab_size, width)

        def forward(self, x):
            return self.e(x)

    class TinyBert(nn.Module):
        def __init__(self, vocab_size, hidden_size=16):
            super().__init__()
            self.embeddings = Embeddings(vocab_size, hidden_size)
            self.hidden_size = hidden_size

        def forward(self, x):
            h = self.embeddings(x)
            return h + h.mean(1, keepdim=True)

    class BertForPretraining(nn.Module):
        def __init__(self, bert, vocab_size):
            super().__init__()
            self.bert = bert
            self.mlm_head = nn.Linear(bert.hidden_size, vocab_size)

        def forward(self, input_ids):
            return self.mlm_head(self.bert(input_ids))
"""


@pytest.mark.parametrize("name", ["word_map", "vocab_dict", "stoi"])
def test_a_vocabulary_of_which_only_the_length_is_read_is_as_long_as_asked(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.py").write_text(textwrap.dedent(WORDS.format(name=name, more="")))
    loaded = load_model(tmp_path / "model.py", fallback={"vocab_size": 70})
    assert (loaded.module.e.num_embeddings, loaded.module.head.out_features) == (70, 70)
    assert infer_call_plan(loaded.module).vocab_size == 70
    assert loaded.provenance.config is not None
    assert loaded.provenance.config[name] == 70  # a number in the record, not the entries
    again = load_model(tmp_path / "model.py", config=loaded.provenance.config)
    assert again.module.e.num_embeddings == 70


@pytest.mark.parametrize(
    ("name", "more"), [("tokenizer", ""), ("word_map", 'self.pad = word_map["the"]'), ("parts", "")]
)
def test_a_vocabulary_that_is_looked_into_is_missing(tmp_path: Path, name: str, more: str) -> None:
    (tmp_path / "model.py").write_text(textwrap.dedent(WORDS.format(name=name, more=more)))
    with pytest.raises(ConstructError):
        load_model(tmp_path / "model.py", fallback={"vocab_size": 70})


def test_a_part_is_the_one_class_of_the_file_whose_name_ends_so(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(textwrap.dedent(PARTS))
    loaded = load_model(f"{tmp_path / 'model.py'}:BertForPretraining", fallback={"vocab_size": 50})
    assert type(loaded.module.bert).__name__ == "TinyBert"
    assert loaded.module.bert.embeddings.e.num_embeddings == 50
    assert loaded.module(torch.ones(1, 3, dtype=torch.int64)).shape == (1, 3, 50)


def test_of_two_such_classes_none_is_taken(tmp_path: Path) -> None:
    other = textwrap.dedent(PARTS) + "\n\nclass LargeBert(TinyBert):\n    pass\n"
    (tmp_path / "model.py").write_text(other)
    with pytest.raises((ConstructError, CallError)):
        infer_call_plan(load_model(f"{tmp_path / 'model.py'}:BertForPretraining", fallback={"vocab_size": 50}).module)


LETTERS = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, N, num_classes, vocab_size=30, L=2):
            super().__init__()
            self.e, self.position_embedding = nn.Embedding(vocab_size, 8), nn.Embedding(N, 8)
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(L))
            self.classifier = nn.Linear(8, num_classes)

        def forward(self, x):
            return self.classifier((self.e(x) + self.position_embedding(torch.arange(x.shape[1]))).mean(1))
"""


def test_the_use_of_a_letter_counts_more_than_the_letter(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(textwrap.dedent(LETTERS))
    module = load_model(tmp_path / "model.py").module
    assert module.position_embedding.num_embeddings == 256  # a length; N is the number of layers elsewhere
    assert len(module.layers) == 2


ROOT = """
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.f = nn.Linear(width, width)

        def forward(self, x):
            return x + self.f(x.mean(1, keepdim=True))

    class TextReader(nn.Module):
        def __init__(self, vocab_size, d_model):
            super().__init__()
            self.e, self.block = nn.Embedding(vocab_size, d_model), Block(d_model)

        def forward(self, x):
            return self.block(self.e(x))
    {other}
    class Classifier(nn.Module):
        def __init__(self, backbone, d_model, num_classes=3):
            super().__init__()
            self.inner = backbone
            self.head = nn.Linear(d_model, num_classes)

        def forward(self, x):
            return self.head({used}.mean(1))
"""
OTHER = """
    class Another(TextReader):
        pass
"""


def test_a_part_is_the_only_class_that_is_no_part_of_another(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(textwrap.dedent(ROOT.format(other="", used="self.inner(x)")))
    module = load_model(f"{tmp_path / 'model.py'}:Classifier", fallback={"vocab_size": 50}).module
    assert type(module.inner).__name__ == "TextReader"
    assert module.inner.e.weight.shape == (50, module.head.in_features)


@pytest.mark.parametrize(("other", "used"), [(OTHER, "self.inner(x)"), ("", "self.inner.weight[x]")])
def test_of_two_that_it_can_be_or_where_it_is_not_called_none_is_taken(tmp_path: Path, other: str, used: str) -> None:
    (tmp_path / "model.py").write_text(textwrap.dedent(ROOT).format(other=textwrap.dedent(other), used=used))
    with pytest.raises(ConstructError, match="needs backbone"):
        load_model(f"{tmp_path / 'model.py'}:Classifier", fallback={"vocab_size": 50})


VECTORS = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, embeddings, num_classes=2):
            super().__init__()
            self.e = nn.Embedding.from_pretrained({made})
            self.classifier = nn.Linear(embeddings.{width}, num_classes)

        def forward(self, x):
            return self.classifier(self.e(x).mean(1))
"""


@pytest.mark.parametrize(
    ("made", "width"), [("embeddings, freeze=False", "size(1)"), ("torch.FloatTensor(embeddings)", "shape[1]")]
)
def test_vectors_learnt_elsewhere_are_random_and_said(tmp_path: Path, made: str, width: str) -> None:
    (tmp_path / "model.py").write_text(textwrap.dedent(VECTORS.format(made=made, width=width)))
    loaded = load_model(tmp_path / "model.py", fallback={"vocab_size": 70})
    assert loaded.module.e.weight.shape == (70, loaded.module.classifier.in_features)
    assert loaded.module.e.weight.std() > 0.5
    said = next(f for f in loaded.findings if f.name == "vectors")
    assert said.verdict == "warn"
    assert "embeddings: random" in said.measured
    again = load_model(tmp_path / "model.py", config=loaded.provenance.config)
    assert again.module.e.weight.shape == loaded.module.e.weight.shape
    assert all(f.name != "configuration" for f in again.findings)  # every value of the record is used


def test_vectors_are_as_wide_as_the_model(tmp_path: Path) -> None:
    """A head's output_dim may mean a width by its name, too; the vectors are given by their keyword."""
    (tmp_path / "model.py").write_text(
        textwrap.dedent("""
            from torch import nn

            class Head(nn.Module):
                def __init__(self, d_model, output_dim):
                    super().__init__()
                    self.linear = nn.Linear(d_model, output_dim)

                def forward(self, x):
                    return self.linear(x.mean(1))

            class Net(nn.Module):
                def __init__(self, vectors, d_model=30, output_dim=2):
                    super().__init__()
                    self.e = nn.Embedding.from_pretrained(embeddings=vectors, freeze=True)
                    self.layer = nn.Linear(d_model, d_model)
                    self.head = Head(d_model, output_dim)

                def forward(self, x):
                    return self.head(self.layer(self.e(x)))

            if __name__ == "__main__":
                net = Net(load_vectors(), d_model=30, output_dim=2)
        """)
    )
    loaded = load_model(f"{tmp_path / 'model.py'}:Net", fallback={"vocab_size": 70})
    assert loaded.module.e.weight.shape == (70, 30)


UNKNOWN = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self, vocab_size, {name}{hint}):
            super().__init__()
            assert {name} {condition}
            self.e = nn.Embedding(vocab_size, 8)
            self.f = {use}
            self.head = nn.Linear(8, vocab_size)

        def forward(self, x):
            return self.head(self.e(x))
"""


@pytest.mark.parametrize(
    ("name", "hint", "condition", "use", "value"),
    [
        ("wobble", "", "> 0", "nn.Linear(8, 8 * wobble)", 4),
        ("wobble", ": int", "== 2", "8 // wobble", 2),
        ("wobble", "", "< 1", "1 - wobble", 0.5),
        ("wobble", ": float", "< 1", "1 - wobble", 0.1),
        ("wobble", ": int", "== 2", "[wobble]", 2),
    ],
)
def test_a_number_that_nobody_knows_is_tried_and_said(
    tmp_path: Path, name: str, hint: str, condition: str, use: str, value: float
) -> None:
    body = UNKNOWN.format(name=name, hint=hint, condition=condition, use=use)
    (tmp_path / "model.py").write_text(textwrap.dedent(body))
    loaded = load_model(tmp_path / "model.py")
    said = next(f for f in loaded.findings if f.name == "guessed")
    assert (said.verdict, said.measured) == ("warn", f"wobble={value!r}")
    assert loaded.provenance.config is not None
    assert loaded.provenance.config["wobble"] == value
    given = load_model(tmp_path / "model.py", config=loaded.provenance.config)
    assert all(f.name != "guessed" for f in given.findings)


def test_a_list_of_names_is_made_up_and_said(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        textwrap.dedent("""
            from __future__ import annotations
            from collections.abc import Sequence
            from torch import nn

            class SkillClassifier(nn.Module):
                def __init__(self, vocab_size: int, skills: Sequence[str]):
                    super().__init__()
                    self.skills = list(skills)
                    self.e, self.fc = nn.Embedding(vocab_size, 8), nn.Linear(8, len(self.skills))

                def forward(self, x):
                    return self.fc(self.e(x).mean(1))
        """)
    )
    loaded = load_model(tmp_path / "model.py")
    said = next(f for f in loaded.findings if f.name == "guessed")
    assert (said.verdict, said.measured) == ("warn", "skills=['first', 'second']")
    given = load_model(tmp_path / "model.py", config={"skills": ["a", "b", "c"]})
    assert given.module(torch.tensor([[1, 2]])).shape == (1, 3)


@pytest.mark.parametrize(
    ("hint", "use"), [("", "wobble.strip()"), (": str", "8 * wobble"), ("", "len(wobble) * 2"), ("", "[wobble]")]
)
def test_what_is_no_number_is_missing(tmp_path: Path, hint: str, use: str) -> None:
    body = UNKNOWN.format(name="wobble", hint=hint, condition="is not None", use=use)
    (tmp_path / "model.py").write_text(textwrap.dedent(body))
    with pytest.raises(ConstructError, match="Net needs wobble") as caught:
        load_model(tmp_path / "model.py")
    assert "could not be built" not in str(caught.value)


def test_a_number_that_no_value_of_ours_fits_is_missing(tmp_path: Path) -> None:
    body = UNKNOWN.format(name="wobble", hint="", condition="== 1234", use="8 * wobble")
    (tmp_path / "model.py").write_text(textwrap.dedent(body))
    with pytest.raises(ConstructError, match="Net needs wobble"):
        load_model(tmp_path / "model.py")


def test_an_open_global_that_a_file_beside_it_gives_again(tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text("vocab_size = 0\nwidth = 8\ndef values():\n    return [vocab_size, width]\n")
    (tmp_path / "model.py").write_text(
        textwrap.dedent(
            """
            from torch import nn
            import settings
            vocab_size, width = settings.values()

            def set_sizes(values):
                global vocab_size, width
                vocab_size, width = values

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    set_sizes(settings.values())
                    self.e, self.head = nn.Embedding(vocab_size, width), nn.Linear(width, vocab_size)

                def forward(self, x):
                    return self.head(self.e(x))
            """
        )
    )
    module = load_model(tmp_path / "model.py", fallback={"vocab_size": 60}).module
    assert module.e.weight.shape == (60, 8)


CHOICE = """
    from torch import nn

    class RMSNorm(nn.Module):
        def __init__(self, d_model):
            super().__init__()
            self.g = nn.Linear(d_model, 1)

    class Net(nn.Module):
        def __init__(self, vocab_size, d_model, norm{hint}):
            super().__init__()
            self.e = nn.Embedding(vocab_size, d_model)
            {chooses}
"""


@pytest.mark.parametrize("test", ['norm == "rms"', 'norm in ("rms", "layer")', '"rms" == norm'])
def test_a_choice_of_words_is_no_part_but_the_first_of_them(tmp_path: Path, test: str) -> None:
    chooses = f"self.norm = RMSNorm(d_model) if {test} else nn.Identity()"
    (tmp_path / "model.py").write_text(textwrap.dedent(CHOICE.format(hint="", chooses=chooses)))
    loaded = load_model(f"{tmp_path / 'model.py'}:Net")
    said = next(f for f in loaded.findings if f.name == "guessed")
    assert (said.verdict, said.measured) == ("warn", "norm='rms'")
    assert type(loaded.module.norm).__name__ == "RMSNorm"


def test_a_choice_of_classes_is_no_word(tmp_path: Path) -> None:
    chooses = 'self.norm = norm(d_model) if norm != "rms" else None'
    (tmp_path / "model.py").write_text(textwrap.dedent(CHOICE.format(hint=": type", chooses=chooses)))
    with pytest.raises(ConstructError, match="Net needs norm"):
        load_model(f"{tmp_path / 'model.py'}:Net")


def test_sizes_known_by_their_words_are_warned_of_as_others(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, numCharacters, wordDim):\n"
        "        super().__init__()\n        self.e = nn.Embedding(numCharacters, wordDim)\n"
    )
    found = next(f for f in load_model(tmp_path / "model.py").findings if f.name == "sizes")
    assert (found.verdict, found.measured) == ("warn", "numCharacters=1024, wordDim=128")


PART = """
    from torch import nn

    class Part(nn.Module):
        def __init__(self, width, wobble={default}):
            super().__init__()
            assert wobble == 0.7
            self.f = nn.Linear(width, width)

        def forward(self, x):
            return self.f(x)
"""
WHOLE = """
    from torch import nn
    from part import Part

    class Net(nn.Module):
        def __init__(self, vocab_size, fizz):
            super().__init__()
            self.e = nn.Embedding(vocab_size, 8)
            self.f = Part(8, {fizz})
            self.head = nn.Linear(8, vocab_size)

        def forward(self, x):
            return self.head(self.f(self.e(x)))
"""


@pytest.mark.parametrize("fizz", ["fizz", "wobble=fizz"])
def test_what_nobody_knows_is_what_the_part_it_goes_to_has_of_itself(tmp_path: Path, fizz: str) -> None:
    (tmp_path / "part.py").write_text(textwrap.dedent(PART.format(default=0.7)))
    (tmp_path / "model.py").write_text(textwrap.dedent(WHOLE.format(fizz=fizz)))
    loaded = load_model(tmp_path / "model.py")
    assert loaded.provenance.config is not None
    assert loaded.provenance.config["fizz"] == 0.7
    assert "fizz=0.7" in next(f for f in loaded.findings if f.name == "sizes").measured


def test_a_part_that_has_none_of_itself_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text(textwrap.dedent(PART.format(default=None)))
    (tmp_path / "model.py").write_text(textwrap.dedent(WHOLE.format(fizz="fizz")))
    with pytest.raises(ConstructError, match="Net needs fizz"):
        load_model(tmp_path / "model.py")


KEEPS = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self, wobble, vocab_size):
            super().__init__()
            {keeps}
            self.e = nn.Embedding(vocab_size, 8)
            self.head = nn.Linear(8, vocab_size)

        def forward(self, x):
            {uses}
            return self.head(self.e(x))

        def name(self):
            return self.wobble

        def masked(self, x):
            return x.eq(self.wobble)
"""


@pytest.mark.parametrize("keeps", ["pass", "self.wobble = wobble"])
def test_what_the_forward_never_reads_is_none(tmp_path: Path, keeps: str) -> None:
    (tmp_path / "model.py").write_text(textwrap.dedent(KEEPS.format(keeps=keeps, uses="pass")))
    loaded = load_model(tmp_path / "model.py")
    assert getattr(loaded.module, "wobble", None) is None
    assert any("wobble" in f.measured and "None" in f.measured for f in loaded.findings)


@pytest.mark.parametrize("uses", ["self.name()", "x = self.masked(x)", "print(self.wobble)"])
def test_what_the_forward_or_a_method_of_its_reads_is_missing(tmp_path: Path, uses: str) -> None:
    (tmp_path / "model.py").write_text(textwrap.dedent(KEEPS.format(keeps="self.wobble = wobble", uses=uses)))
    with pytest.raises(ConstructError, match="Net needs wobble"):
        load_model(tmp_path / "model.py")


INHERITS = """
    from torch import nn

    class Base(nn.Module):
        def forward(self, x):
            raise NotImplementedError

    class Net(Base):
        def __init__(self, wobble, vocab_size):
            super().__init__()
            {keeps}
            self.e = nn.Embedding(vocab_size, 8)
            self.head = nn.Linear(8, vocab_size)

        {more}

        def forward(self, x):
            {uses}
            return self.head(self.e(x))
"""


@pytest.mark.parametrize(
    ("keeps", "more", "uses"),
    [
        ("self.wobble = wobble", "", "print(self.wobble)"),
        ("self.all = dict(locals())", "", "print(self.all['wobble'])"),
        ("self._w = wobble", "@property\n        def kind(self): return self._w", "print(self.kind)"),
        ("self._w = wobble; self.start()", "def start(self): self.seen = self._w", "pass"),
    ],
)
def test_what_is_read_in_another_way_is_missing(tmp_path: Path, keeps: str, more: str, uses: str) -> None:
    (tmp_path / "model.py").write_text(textwrap.dedent(INHERITS.format(keeps=keeps, more=more, uses=uses)))
    with pytest.raises(ConstructError, match="Net needs wobble"):
        load_model(f"{tmp_path / 'model.py'}:Net")


def test_a_number_of_outputs_beside_a_vocabulary_is_one_of_classes(tmp_path: Path) -> None:
    body = """
        from torch import nn

        class Authors(nn.Module):
            def __init__(self, vocab_size, d_model, n_authors):
                super().__init__()
                self.e, self.gru = nn.Embedding(vocab_size, d_model), nn.GRU(d_model, d_model, batch_first=True)
                self.out = nn.Linear(d_model, n_authors)

            def forward(self, x):
                h, _ = self.gru(self.e(x))
                return self.out(h[:, -1])
    """
    (tmp_path / "model.py").write_text(textwrap.dedent(body))
    assert load_model(tmp_path / "model.py", fallback={"num_classes": 5}).module.out.out_features == 5


def test_a_device_that_may_not_be_none_is_the_cpu(tmp_path: Path) -> None:
    body = KEEPS.format(keeps="assert device is not None", uses="pass").replace(
        "wobble, vocab_size", "vocab_size, device=None"
    )
    (tmp_path / "model.py").write_text(textwrap.dedent(body))
    assert load_model(tmp_path / "model.py").module.e.weight.device.type == "cpu"


def test_a_dict_of_which_all_values_have_defaults_is_empty(tmp_path: Path) -> None:
    body = KEEPS.format(keeps="self.n = cfg.get('dim', 8)", uses="pass").replace(
        "wobble, vocab_size", "cfg, vocab_size"
    )
    (tmp_path / "model.py").write_text(textwrap.dedent(body))
    assert load_model(tmp_path / "model.py").module.n == 8


def test_a_size_that_a_part_may_also_take_as_a_configuration_stays_a_number(tmp_path: Path) -> None:
    body = """
        from torch import nn

        class Part(nn.Module):
            def __init__(self, config_or_width, n_heads=2):
                super().__init__()
                width = config_or_width if isinstance(config_or_width, int) else config_or_width.d_model
                self.f = nn.Linear(width, width)

        class Net(nn.Module):
            def __init__(self, config, vocab_size):
                super().__init__()
                d_model = config.d_model
                self.e = nn.Embedding(vocab_size, d_model)
                self.f = Part(config)
                self.g = Part(d_model, config.n_heads)
                self.head = nn.Linear(d_model, vocab_size)

            def forward(self, x):
                return self.head(self.g.f(self.f.f(self.e(x))))
    """
    (tmp_path / "model.py").write_text(textwrap.dedent(body))
    module = load_model(tmp_path / "model.py").module
    assert module.e.embedding_dim == module.g.f.in_features == module.f.f.in_features


def test_a_width_inside_a_head_is_no_number_of_classes(tmp_path: Path) -> None:
    """Of two units behind a ReLU both may be dead: all texts then get the same logit."""
    body = """
        from torch import nn

        class TextClassifier(nn.Module):
            def __init__(self, vocab_size: int, embed_dim: int, class_hidden_dim: int, n_classes: int):
                super().__init__()
                self.e = nn.Embedding(vocab_size, embed_dim)
                self.classifier = nn.Sequential(
                    nn.Linear(embed_dim, class_hidden_dim), nn.ReLU(), nn.Linear(class_hidden_dim, n_classes)
                )

            def forward(self, x):
                return self.classifier(self.e(x).mean(1))
    """
    (tmp_path / "model.py").write_text(textwrap.dedent(body))
    module = load_model(tmp_path / "model.py").module
    assert module.classifier[0].out_features > 16
    assert module.classifier[2].out_features == 2


def test_a_list_of_sizes_has_one_for_each_layer(tmp_path: Path) -> None:
    body = """
        from typing import List, Sequence
        from torch import nn

        class Net(nn.Module):
            def __init__(self, n_layers: int, vocab_size: int, d_model: int, hidden_size: List[int],
                         n_heads: Sequence[int], dropout: list):
                super().__init__()
                assert n_layers == len(hidden_size) == len(n_heads) == len(dropout)
                self.e = nn.Embedding(vocab_size, d_model)
                self.blocks = nn.ModuleList(
                    nn.TransformerEncoderLayer(d_model, n_heads[i], hidden_size[i], dropout[i]) for i in range(n_layers)
                )
                self.head = nn.Linear(d_model, vocab_size)

            def forward(self, x):
                return self.head(self.e(x))
    """
    (tmp_path / "model.py").write_text(textwrap.dedent(body))
    loaded = load_model(tmp_path / "model.py")
    assert len(loaded.module.blocks) == 2
    assert loaded.provenance.config["n_heads"] == [4, 4]
    again = load_model(
        tmp_path / "model.py",
        config=loaded.provenance.config
        | {"n_layers": 3, "n_heads": [2, 4, 8], "hidden_size": [16, 16, 16], "dropout": [0.0, 0.0, 0.0]},
    )
    assert [b.self_attn.num_heads for b in again.module.blocks] == [2, 4, 8]


def test_keywords_that_a_constructor_pops_are_given(tmp_path: Path) -> None:
    body = """
        from torch import nn

        class Net(nn.Module):
            def __init__(self, **kwargs):
                super().__init__()
                rows, width = kwargs.pop("vocab_size"), kwargs.pop("d_model", 12)
                assert not kwargs
                self.e, self.head = nn.Embedding(rows, width), nn.Linear(width, rows)

            def forward(self, x):
                return self.head(self.e(x))
    """
    (tmp_path / "model.py").write_text(textwrap.dedent(body))
    loaded = load_model(tmp_path / "model.py", fallback={"vocab_size": 33})
    assert loaded.module.e.weight.shape == (33, 12)
    assert load_model(tmp_path / "model.py", config={"vocab_size": 9, "d_model": 4}).module.e.weight.shape == (9, 4)


def test_a_configuration_that_asks_for_a_seed_and_hands_its_classes_on_as_a_length(tmp_path: Path) -> None:
    body = """
        import torch
        from torch import nn

        class Last(nn.Module):
            def __init__(self, width, length):
                super().__init__()
                self.f, self.places = nn.Linear(width, length), torch.arange(length)

            def forward(self, x):
                return self.f(x)

        class TextClassifier(nn.Module):
            def __init__(self, cfgs):
                super().__init__()
                torch.manual_seed(cfgs.seed)
                self.e = nn.Embedding(cfgs.vocab_size, cfgs.d_model)
                self.f = Last(cfgs.d_model, length=cfgs.class_number)

            def forward(self, x):
                return self.f(self.e(x).mean(1))
    """
    (tmp_path / "model.py").write_text(textwrap.dedent(body))
    module = load_model(tmp_path / "model.py").module
    assert module.f.f.out_features == 2


def test_a_vocabulary_has_the_id_that_the_file_writes_down_for_padding(tmp_path: Path) -> None:
    body = """
        from torch import nn

        class Net(nn.Module):
            def __init__(self, vocab_size, d_model=8):
                super().__init__()
                self.e, self.head = nn.Embedding(vocab_size, d_model, padding_idx=700), nn.Linear(d_model, vocab_size)

            def forward(self, x):
                return self.head(self.e(x))
    """
    (tmp_path / "model.py").write_text(textwrap.dedent(body))
    loaded = load_model(tmp_path / "model.py", fallback={"vocab_size": 300})
    assert loaded.module.e.num_embeddings == 701
    (said,) = (f for f in loaded.findings if f.name == "vocabulary")
    assert (said.verdict, said.measured) == ("warn", "701 ids")
    assert load_model(tmp_path / "model.py", fallback={"vocab_size": 900}).module.e.num_embeddings == 900
    with pytest.raises(ConstructError, match="Padding_idx"):
        load_model(tmp_path / "model.py", config={"vocab_size": 300})
