"""MODEL in every form, what is recorded of it, and every way in which it fails."""

from __future__ import annotations

import hashlib
import json
import random
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from anyformer.core.errors import ConstructError, DependencyError, SourceError
from anyformer.models.callplan import infer_call_plan
from anyformer.models.source import Provenance, load_model

TINY = """
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width=4):
            super().__init__()
            self.linear = nn.Linear(width, width)

    class Net(nn.Module):
        def __init__(self, vocab_size=7, width=4):
            super().__init__()
            self.tokens = nn.Embedding(vocab_size, width)
            self.block = Block(width)
            self.head = nn.Linear(width, vocab_size)

        def forward(self, ids):
            return self.head(self.block.linear(self.tokens(ids)))
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
    return folder / "model.py"


def message(error: type[Exception], model: object, **options: object) -> str:
    with pytest.raises(error) as caught:
        load_model(model, **options)
    return str(caught.value)


# forms


def test_a_file(tmp_path):
    path = write(tmp_path, {"model.py": TINY})
    loaded = load_model(str(path))
    assert type(loaded.module).__name__ == "Net"
    assert loaded.provenance.kind == "file"
    assert loaded.provenance.location == str(path)
    assert loaded.provenance.class_name == "Net"
    assert loaded.provenance.config is None
    assert loaded.provenance.files == {"model.py": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert loaded.sources == {"model.py": path}
    assert [f.measured for f in loaded.findings if f.name == "class"] == ["Net"]


def test_a_class_of_a_file_by_name(tmp_path):
    path = write(tmp_path, {"model.py": TINY})
    assert type(load_model(f"{path}:Block").module).__name__ == "Block"


def test_a_folder_with_its_config(tmp_path):
    write(tmp_path, {"model.py": TINY, "config.json": '{"vocab_size": 9, "colour": "red"}'})
    loaded = load_model(tmp_path)
    assert loaded.module.head.out_features == 9
    assert loaded.provenance.kind == "folder"
    assert loaded.provenance.location == str(tmp_path)
    assert loaded.provenance.config == {"vocab_size": 9}
    assert list(loaded.sources) == ["model.py", "config.json"]
    assert any(f.verdict == "warn" and "colour='red'" in f.measured for f in loaded.findings)


def test_config_wins_over_config_json(tmp_path):
    path = write(tmp_path, {"model.py": TINY, "config.json": '{"vocab_size": 9, "width": 6}'})
    loaded = load_model(path, config={"vocab_size": 5})
    assert loaded.provenance.config == {"vocab_size": 5, "width": 6}
    assert loaded.module.head.weight.shape == (5, 6)


def test_an_import_path(tmp_path, monkeypatch):
    write(tmp_path, {"mypkg_for_test/__init__.py": "", "mypkg_for_test/nets.py": TINY})
    monkeypatch.chdir(tmp_path)
    loaded = load_model("mypkg_for_test.nets:Net", config={"vocab_size": 8})
    assert loaded.module.head.out_features == 8
    assert loaded.provenance.kind == "import"
    assert list(loaded.sources) == ["nets.py"]
    assert str(tmp_path) not in sys.path
    assert "has no class Nut" in message(ConstructError, "mypkg_for_test.nets:Nut")
    assert "not a subclass of torch.nn.Module" in message(ConstructError, "mypkg_for_test.nets:torch")
    assert "no module named nowhere_at_all" in message(SourceError, "nowhere_at_all:Net")


def test_examples():
    loaded = load_model("example:gpt", config={"n_layer": 1, "vocab_size": 50})
    assert loaded.provenance.kind == "example"
    assert loaded.provenance.config == {"n_layer": 1, "vocab_size": 50}
    assert loaded.sources["example_gpt.py"].name == "example_gpt.py"
    assert "example:gpt2" in message(SourceError, "example:bert")


def test_gpt2_has_its_published_size():
    loaded = load_model("example:gpt2")
    assert sum(p.numel() for p in loaded.module.parameters()) == 124_439_808


def test_a_module():
    module = nn.Linear(2, 2)
    loaded = load_model(module)
    assert loaded.module is module
    assert loaded.provenance.kind == "module"
    assert loaded.sources == {}


def test_provenance_survives_json(tmp_path):
    provenance = load_model(write(tmp_path, {"model.py": TINY}), config={"width": 2}).provenance
    record = json.loads(json.dumps(provenance.to_dict()))
    assert Provenance.from_dict({**record, "parameters": 3}) == provenance
    with pytest.raises(ValueError, match="magic"):
        Provenance.from_dict({**record, "kind": "magic"})


def test_the_recorded_config_builds_the_same_again(tmp_path):
    path = write(tmp_path, {"model.py": TINY})
    first = load_model(path, config={"vocab_size": 5, "unused": 1}, seed=3)
    again = load_model(f"{path}:{first.provenance.class_name}", config=first.provenance.config, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.module.parameters(), again.module.parameters(), strict=True))


# seed and side effects


def test_seed_decides_the_weights_and_leaves_the_random_state(tmp_path):
    path = write(tmp_path, {"model.py": "import torch\ntorch.manual_seed(99)\n" + textwrap.dedent(TINY)})
    state = (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())
    one, same, other = (load_model(path, seed=s).module.head.weight for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert state == (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist())


def test_what_the_file_prints_goes_to_stderr(tmp_path, capfd):
    body = textwrap.dedent(TINY).replace("super().__init__()", "super().__init__(); print('building')")
    load_model(write(tmp_path, {"model.py": "print('loading')\n" + body}))
    out, err = capfd.readouterr()
    assert out == ""
    assert "loading" in err
    assert "building" in err


def test_nothing_is_written_beside_the_file(tmp_path):
    write(tmp_path, {"model.py": "import layers_here\n" + textwrap.dedent(TINY), "layers_here.py": "x = 1"})
    load_model(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["layers_here.py", "model.py"]


# siblings

USING = """
    {imports}
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = layers.Part()
            self.size = layers.SIZE
"""
PART = """
    from torch import nn
    SIZE = {size}
    class Part(nn.Linear):
        def __init__(self):
            super().__init__(2, SIZE)
"""


@pytest.mark.parametrize("imports", ["import layers", "from . import layers", "from sub import layers"])
def test_siblings_are_loaded_recorded_and_not_shared(tmp_path, imports):
    where = "sub/layers.py" if "sub" in imports else "layers.py"
    for name, size in (("a", 3), ("b", 4)):
        write(tmp_path / name, {"model.py": USING.format(imports=imports), where: PART.format(size=size)})
    a, b, again = (load_model(tmp_path / name) for name in "aba")
    assert [m.module.size for m in (a, b, again)] == [3, 4, 3]
    assert list(a.sources) == ["model.py", where]
    assert a.provenance.files[where] != b.provenance.files[where]
    assert "layers" not in sys.modules
    assert "sub" not in sys.modules
    assert str(tmp_path / "a") not in sys.path


def test_a_sibling_does_not_stand_in_for_an_installed_package(tmp_path):
    yaml = sys.modules.get("yaml") or __import__("yaml")
    write(tmp_path, {"model.py": "import yaml\nassert yaml.MINE\n" + textwrap.dedent(TINY), "yaml.py": "MINE = True"})
    loaded = load_model(tmp_path)
    assert sys.modules["yaml"] is yaml
    assert "yaml.py" in loaded.sources


def test_an_edited_sibling_is_read_anew(tmp_path):
    write(tmp_path, {"model.py": USING.format(imports="import layers"), "layers.py": PART.format(size=3)})
    assert load_model(tmp_path).module.size == 3
    write(tmp_path, {"layers.py": PART.format(size=5)})
    assert load_model(tmp_path).module.size == 5


def test_imports_inside_the_constructor_find_siblings(tmp_path):
    body = USING.format(imports="").replace("super().__init__()", "super().__init__(); import layers")
    write(tmp_path, {"model.py": body, "layers.py": PART.format(size=3)})
    assert list(load_model(tmp_path).sources) == ["model.py", "layers.py"]


def test_a_failed_load_leaves_no_trace(tmp_path):
    write(tmp_path, {"model.py": "import layers\nraise KeyError('x')", "layers.py": "y = 1"})
    message(SourceError, tmp_path)
    assert "layers" not in sys.modules
    assert str(tmp_path) not in sys.path


# choice of the class

TWO = """
    from torch import nn
    class A(nn.Module): pass
    class B(nn.Module): pass
"""


def test_several_candidates_are_named_with_the_way_out(tmp_path):
    path = write(tmp_path, {"model.py": TWO})
    text = message(ConstructError, path)
    assert "several models: A, B" in text
    assert f"{path}:A" in text
    assert f"{path}:B" in text


@pytest.mark.parametrize("config", [{"class_name": "B"}, {"model_name": "B"}, {"architectures": ["X", "B"]}])
def test_config_json_names_the_class(tmp_path, config):
    write(tmp_path, {"model.py": TWO, "config.json": json.dumps(config)})
    loaded = load_model(tmp_path)
    assert loaded.provenance.class_name == "B"
    assert not [f for f in loaded.findings if f.verdict == "warn"]


def test_a_name_in_config_json_that_is_no_class_decides_nothing(tmp_path):
    write(tmp_path, {"model.py": TINY, "config.json": '{"model_name": "my-model"}'})
    assert load_model(tmp_path).provenance.class_name == "Net"


def test_classes_used_through_functions_constants_and_bases_are_parts(tmp_path):
    text = """
        from torch import nn
        class Base(nn.Module): pass
        class Left(nn.Module): pass
        class Right(nn.Module): pass
        class Deep(nn.Module): pass
        KINDS = {"left": Left}
        def make(): return helper()
        def helper(): return Right()
        class Trainer:
            def __init__(self, model): self.model = Model()
        class Model(Base):
            def __init__(self):
                super().__init__()
                self.parts = nn.ModuleList([KINDS["left"](), make(), Deep()])
            @classmethod
            def default(cls): return Model()
    """
    assert load_model(write(tmp_path, {"model.py": text})).provenance.class_name == "Model"


def test_a_model_that_the_file_only_imports_from_a_sibling(tmp_path):
    files = {"model.py": "from torch import nn\nfrom torch.nn import Linear\nfrom nets import Net", "nets.py": TINY}
    assert load_model(write(tmp_path, files)).provenance.class_name == "Net"


def test_no_model_in_the_file(tmp_path):
    path = write(tmp_path, {"model.py": "from torch.nn import Linear\nclass A: pass\ndef f(): pass"})
    text = message(ConstructError, path)
    assert "defines no torch.nn.Module" in text
    assert "it defines: A, f" in text
    assert "A in" in message(ConstructError, f"{path}:A")
    assert "has no class Gpt" in message(ConstructError, f"{path}:Gpt")


# failures


def test_no_such_file_suggests_close_names(tmp_path):
    path = write(tmp_path, {"model.py": TINY})
    text = message(SourceError, tmp_path / "modle.py")
    assert "no such file" in text
    assert f"did you mean {path}?" in text
    assert "is no folder" in message(SourceError, tmp_path / "no" / "model.py")


@pytest.mark.parametrize("spec", ["manual:config.yaml", "https://example.com/model.py", "git+ssh://example.com/a"])
def test_other_sources_say_what_is_accepted(spec):
    text = message(SourceError, spec)
    assert "not supported" in text
    assert "model.py:ClassName" in text


def test_a_run_and_a_folder_without_model(tmp_path):
    write(tmp_path, {"net.py": TINY})
    text = message(SourceError, tmp_path)
    assert "has no model.py" in text
    assert str(tmp_path / "net.py") in text
    write(tmp_path, {"run.json": "{}"})
    assert "is a run" in message(SourceError, tmp_path)


def test_a_syntax_error_shows_line_and_caret(tmp_path):
    path = write(tmp_path, {"model.py": "import torch\n\nif True:\n    x = 3 +* 4\n"})
    lines = message(SourceError, path).splitlines()
    assert f"{path}:4 is not Python" in lines[0]
    assert lines[1].strip() == "x = 3 +* 4"
    caret = lines[2].index("^") - lines[1].index("x")
    assert caret == "x = 3 +* 4".index("*")


def test_a_caret_counts_characters_not_bytes(tmp_path):
    path = write(tmp_path, {"model.py": "é = 'ä' +* 4\n"})
    lines = message(SourceError, path).splitlines()
    assert lines[2].index("^") == lines[1].index("*")


def test_smart_quotes_and_broken_indentation(tmp_path):
    text = message(SourceError, write(tmp_path, {"model.py": "x = “hello”\n"}))
    assert "typographic quotes" in text
    assert "model.py:1" in text
    assert "model.py:3" in message(SourceError, write(tmp_path, {"model.py": "def f():\n    x = 1\n  y = 2\n"}))


def test_a_syntax_error_in_a_sibling_names_the_sibling(tmp_path):
    text = message(SourceError, write(tmp_path, {"model.py": "import layers", "layers.py": "x = = 1"}))
    assert "layers.py:1 is not Python" in text


def test_a_missing_package_is_named(tmp_path):
    text = message(DependencyError, write(tmp_path, {"model.py": "import os\nimport not_there_pkg.sub\n"}))
    assert "imports not_there_pkg, which is not installed" in text
    assert "pip install not_there_pkg" in text
    assert "put not_there_pkg.py into" in text
    assert "model.py:2: import not_there_pkg.sub" in text


def test_a_missing_relative_sibling_is_no_package(tmp_path):
    text = message(SourceError, write(tmp_path, {"model.py": "from .layers import Part\n"}))
    assert "imports layers from its own folder" in text
    assert "pip" not in text


def test_a_failing_file_shows_the_users_line(tmp_path):
    path = write(tmp_path, {"model.py": "import torch\nx = torch.zeros(2) @ torch.zeros(3)\n"})
    text = message(SourceError, path)
    assert "model.py:2: x = torch.zeros(2) @ torch.zeros(3)" in text
    assert "RuntimeError" in text


def test_a_file_that_exits(tmp_path):
    text = message(SourceError, write(tmp_path, {"model.py": "import sys\nsys.exit(3)\n"}))
    assert "ends the program" in text
    assert "model.py:2" in text


def test_files_that_are_no_text(tmp_path):
    path = tmp_path / "model.py"
    path.write_bytes(b"x = 1\ny = '\xff'\n")
    assert "line 2" in message(SourceError, path)
    path.write_bytes(b"x = 1\0")
    assert "null bytes" in message(SourceError, path)


def test_a_byte_order_mark_is_no_error(tmp_path):
    path = tmp_path / "model.py"
    path.write_text("\ufeff" + textwrap.dedent(TINY), encoding="utf-8")
    assert load_model(path).provenance.class_name == "Net"


def test_a_broken_config_json(tmp_path):
    write(tmp_path, {"model.py": TINY, "config.json": "{vocab_size: 3}"})
    assert "config.json is not JSON" in message(ConstructError, tmp_path)
    write(tmp_path, {"config.json": "[1]"})
    assert "holds a list" in message(ConstructError, tmp_path)


# what is stated about the call, and the user's own weights


def test_a_stated_call_is_read_beside_an_import_path(tmp_path, monkeypatch):
    write(tmp_path, {"stated_pkg/__init__.py": "", "stated_pkg/nets.py": TINY})
    monkeypatch.chdir(tmp_path)
    assert load_model("stated_pkg.nets:Net").overrides is None
    (tmp_path / "stated_pkg" / "anyformer.yaml").write_text("call:\n  tokens: ids\n")
    loaded = load_model("stated_pkg.nets:Net")
    assert loaded.overrides == {"tokens": "ids"}
    assert list(loaded.provenance.files) == ["nets.py", "anyformer.yaml"]
    assert loaded.sources["anyformer.yaml"].read_text() == "call:\n  tokens: ids\n"


def test_what_the_caller_states_wins_key_by_key(tmp_path):
    path = write(tmp_path, {"model.py": TINY, "anyformer.yaml": "call: {tokens: ids, mask: none}"})
    loaded = load_model(path)
    assert loaded.stating(None) is loaded
    assert loaded.stating({"mask": "keep"}).overrides == {"tokens": "ids", "mask": "keep"}
    assert load_model(nn.Linear(2, 2)).stating({"tokens": "x"}).overrides == {"tokens": "x"}


WITH_START = (
    TINY
    + """
        def init_weights(self):
            torch.nn.init.zeros_(self.head.weight)
"""
)


def test_given_weights_are_recorded_and_findings_on_a_fresh_start_do_not_apply(tmp_path):
    path = write(tmp_path, {"model.py": WITH_START})
    fresh = load_model(f"{path}:Net")
    (start,) = [f for f in fresh.findings if f.name == "initialisation"]
    assert (start.verdict, start.measured) == ("note", "init_weights() called")
    assert fresh.provenance.weights is None
    state = {name: torch.full_like(t, 0.25) for name, t in fresh.module.state_dict().items()}
    torch.save(state, tmp_path / "own.pt")
    loaded = load_model(f"{path}:Net", weights=tmp_path / "own.pt")
    digest = hashlib.sha256((tmp_path / "own.pt").read_bytes()).hexdigest()
    assert all(torch.equal(t, state[name]) for name, t in loaded.module.state_dict().items())
    assert loaded.provenance.weights == {"own.pt": digest}
    assert Provenance.from_dict(json.loads(json.dumps(loaded.provenance.to_dict()))) == loaded.provenance
    (start,) = [f for f in loaded.findings if f.name == "initialisation"]
    assert (start.verdict, start.reason) == ("n/a", "not applicable: weights were given")
    (given,) = [f for f in loaded.findings if f.name == "weights"]
    assert (given.verdict, given.measured) == ("note", "own.pt")
    assert given.reason == f"sha256 {digest[:16]}…; every tensor fits"
    others = [f.name for f in fresh.findings if f.name != "initialisation"]
    assert [f.verdict for f in loaded.findings if f.name in others] == ["note"] * len(others)


LAZY = """
    from torch import nn

    class Lazy(nn.Module):
        def __init__(self, vocab_size=30):
            super().__init__()
            self.tokens = nn.Embedding(vocab_size, 8)
            self.head = nn.LazyLinear(vocab_size)

        def forward(self, ids):
            return self.head(self.tokens(ids).cumsum(1))
"""


def test_lazy_layers_are_counted_once_they_have_a_shape(tmp_path):
    loaded = load_model(write(tmp_path, {"model.py": LAZY}))
    plan = infer_call_plan(loaded.module)
    assert (plan.vocab_size, loaded.module.head.weight.shape) == (30, (30, 8))
    state = {name: torch.ones_like(t) for name, t in loaded.module.state_dict().items()}
    torch.save(state, tmp_path / "own.pt")
    again = load_model(tmp_path / "model.py", weights=tmp_path / "own.pt")
    assert bool((again.module.head.weight == 1).all())
