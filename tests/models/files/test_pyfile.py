"""Files that do more than define a model: scripts that train, ask, exit, never end, or import what is not installed."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch

from anyformer.core.errors import ConstructError, DependencyError, SourceError
from anyformer.models.building.written import Written
from anyformer.models.files import pyfile
from anyformer.models.source import LoadedModel, load_model

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, vocab_size=30):
        super().__init__()
        self.e = nn.Embedding(vocab_size, 4)
"""


def load(tmp_path, text: str, **options) -> LoadedModel:
    (tmp_path / "model.py").write_text(textwrap.dedent(text), encoding="utf-8")
    return load_model(tmp_path / "model.py", **options)


def said(loaded: LoadedModel, name: str) -> str:
    return " ".join(f"{f.measured} {f.reason}" for f in loaded.findings if f.name == name)


SCRIPT = """
    import torch
    import torch.nn as nn
    n_embd = 12
    n_head = n_embd // 4
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(7)
    with open("input.txt") as f:
        text = f.read()
    chars = sorted(set(text))
    vocab_size = len(chars)
    stoi = {c: i for i, c in enumerate(chars)}
    encode = lambda s: [stoi[c] for c in s]

    class Head(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.register_buffer("mask", torch.tril(torch.ones(n_head, n_head)))
            self.key = nn.Linear(n_embd, size)

    class LanguageModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.e = nn.Embedding(vocab_size, n_embd)
            self.h = Head(n_embd // n_head)
            self.out = nn.Linear(n_embd, vocab_size)

    model = LanguageModel().to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(1000):
        loss = model(encode(text)).sum()
        loss.backward()
        optimizer.step()
    open("trained.txt", "w").write("done")
"""


def test_a_script_that_trains_is_loaded_without_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load(tmp_path, SCRIPT)
    assert loaded.provenance.class_name == "LanguageModel"
    assert loaded.module.e.weight.shape == (1024, 12)
    assert loaded.module.h.mask.shape == (3, 3)
    assert "30-33" in said(loaded, "script")
    assert "vocab_size=1024" in said(loaded, "sizes")
    assert not (tmp_path / "trained.txt").exists()
    again = load(tmp_path, SCRIPT, config=loaded.provenance.config)
    assert again.module.e.weight.shape == (1024, 12)


@pytest.mark.parametrize("placeholder", ['chars = ""', "chars = []"])
def test_what_stands_for_a_text_that_is_not_read_is_no_text(tmp_path, monkeypatch, placeholder):
    """An empty ``chars`` made a vocabulary of 0."""
    monkeypatch.chdir(tmp_path)
    reading = 'with open("input.txt") as f:\n        text = f.read()\n        chars = sorted(set(text))\n'
    script = SCRIPT.replace('with open("input.txt") as f:', f'{placeholder}\n    with open("input.txt") as f:')
    script = script.replace("        text = f.read()\n    chars = sorted(set(text))\n", reading.partition("\n")[2])
    script = script.replace("LanguageModel()", "LanguageModel(vocab_size)")
    script = script.replace(
        "__init__(self):\n            super().__init__()\n            self.e",
        "__init__(self, vocab_size):\n            super().__init__()\n            self.e",
    )
    loaded = load(tmp_path, script, fallback={"vocab_size": 50})
    assert loaded.module.e.weight.shape == (50, 12)
    assert "vocab_size=50" in said(loaded, "sizes")


def test_an_empty_list_that_forward_fills_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (
        NET.replace("class Net", "norms = []\nhidden = None\n\nclass Net")
        + """
    def forward(self, x):
        norms.append(float(self.e(x).norm()))
        return self.e(x)

for step in range(3):
    norms = []
    hidden = None
    open("trained.txt", "w")
    Net().e.weight.sum().backward()
"""
    )
    loaded = load(tmp_path, text)
    assert loaded.module(torch.zeros(1, 2, dtype=torch.long)).shape == (1, 2, 4)


def test_training_that_would_succeed_is_not_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = """
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(2):
    model.e.weight.sum().backward()
    optimizer.step()
with open("trained.txt", "w") as f:
    f.write("done")
"""
    loaded = load(tmp_path, NET + train)
    assert not (tmp_path / "trained.txt").exists()
    assert "trains (" in said(loaded, "script")


def test_its_vocabulary_is_the_callers_or_the_configurations(tmp_path):
    assert load(tmp_path, SCRIPT, fallback={"vocab_size": 50}).module.out.out_features == 50
    loaded = load(tmp_path, SCRIPT, fallback={"vocab_size": 50}, config={"vocab_size": 60})
    assert loaded.module.out.out_features == 60
    assert not said(loaded, "configuration")
    assert loaded.provenance.config == {"vocab_size": 60}


@pytest.mark.parametrize(
    "work",
    [
        "while True:\n    pass",
        "import argparse\nparser = argparse.ArgumentParser()\nargs = parser.parse_args()",
        "name = input('name? ')",
        "import sys\nsys.exit(3)",
        "import os\nos._exit(3)",
        "import torch.distributed as dist\ndist.init_process_group('nccl')",
        "def train():\n    loss = Net().e.weight.sum()\n    loss.backward()\n    raise KeyError\ntrain()",
        "model = Net().to('cuda')",
        "data = open('there_is_no_such.txt').read()",
        "import requests\nrequests.get('http://127.0.0.1:9/x')",
        "x = torch.zeros(2) @ torch.zeros(3)",
    ],
)
def test_work_at_module_level_is_left_out_and_said(tmp_path, work):
    loaded = load(tmp_path, NET + work)
    assert loaded.module.e.num_embeddings == 30
    assert "not run" in said(loaded, "script")
    before = load(tmp_path, NET)
    assert not said(before, "script")


def test_a_loop_that_only_computes_is_run(tmp_path):
    loaded = load(tmp_path, NET + "sizes = []\nfor i in range(3):\n    sizes.append(i)\nassert len(sizes) == 3\n")
    assert not said(loaded, "script")


def test_a_file_that_takes_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(pyfile, "IMPORT_SECONDS", 0.2)
    text = "n = 0\nwhile n >= 0:\n    n += 1\n"
    loaded = load(tmp_path, NET + text)
    assert "does not finish loading" in said(loaded, "script")
    with pytest.raises(SourceError, match=r"does not finish loading(?s:.*)model\.py:[123]"):
        load(tmp_path, text)


def test_a_package_that_the_model_does_not_need(tmp_path):
    text = "import wandb_of_another_kind as wandb\nfrom tik_of_another_kind import get\n" + NET
    loaded = load(tmp_path, text + "def log():\n    wandb.log(get())\nwandb.init()\n")
    assert "wandb_of_another_kind, tik_of_another_kind" in said(loaded, "import")
    assert loaded.module.e.num_embeddings == 30


@pytest.mark.parametrize("use", ["f = rearrange(1)", "def forward(self, x): return helper(x)", "x: rearrange = 1"])
def test_a_package_that_the_model_needs(tmp_path, use):
    helper = "from einops_of_another_kind import rearrange\ndef helper(x):\n    return rearrange(x)\n"
    with pytest.raises(DependencyError, match=r"einops_of_another_kind, which is not installed(?s:.*)pip install"):
        load(tmp_path, helper + NET + "    " + use + "\n")


WRITES = (
    "    def write(self, x):\n        return self.said(tik_of_another_kind.get(x))\n"
    "    def said(self, x):\n        return x\n"
)


def test_a_package_of_a_method_that_nothing_calls(tmp_path):
    loaded = load(tmp_path, "import tik_of_another_kind\n" + NET + WRITES)
    assert "tik_of_another_kind" in said(loaded, "import")
    assert loaded.module.said(3) == 3
    with pytest.raises(
        ImportError, match="tik_of_another_kind, which is not installed: pip install tik_of_another_kind"
    ):
        loaded.module.write("a")


def test_a_package_of_a_method_that_forward_calls(tmp_path):
    calls = (
        "    def forward(self, x):\n        return self.more(x)\n    def more(self, x):\n        return self.write(x)\n"
    )
    with pytest.raises(DependencyError, match=r"tik_of_another_kind, which is not installed(?s:.*)pip install"):
        load(tmp_path, "import tik_of_another_kind\n" + NET + WRITES + calls)


def test_a_package_of_a_method_that_is_called_by_a_name_put_together(tmp_path):
    calls = "    def forward(self, x):\n        return getattr(self, 'wri' + 'te')(x)\n"
    with pytest.raises(DependencyError, match=r"tik_of_another_kind, which is not installed(?s:.*)pip install"):
        load(tmp_path, "import tik_of_another_kind\n" + NET + WRITES + calls)


BUILDER = """
    import logging
    from info_of_another_kind import summary
    from layers import Table
    def build_model(vocab_size=30):
        {first}
        return Table(vocab_size)
    def show(model):
        summary(model)
"""


def test_a_package_that_only_a_function_beside_the_models_builder_uses(tmp_path):
    (tmp_path / "layers.py").write_text(NET.replace("Net", "Table"), encoding="utf-8")
    loaded = load(tmp_path, BUILDER.format(first="pass"))
    assert "info_of_another_kind" in said(loaded, "import")
    assert loaded.module.e.num_embeddings == 30
    with pytest.raises(DependencyError, match=r"info_of_another_kind, which is not installed(?s:.*)pip install info"):
        load(tmp_path, BUILDER.format(first="summary(Table)"), config={"factory": "build_model"})


def test_a_package_whose_class_is_the_base_of_the_only_model(tmp_path):
    text = "from base_of_another_kind import Base\nimport torch\nclass Net(Base):\n    pass\n"
    with pytest.raises(DependencyError, match=r"base_of_another_kind, which is not installed"):
        load(tmp_path, text)


def test_a_script_whose_model_is_of_a_package_that_is_missing(tmp_path):
    text = "from x_of_another_kind import Wrapper\nimport torch\nmodel = Wrapper(9)\nmodel.cuda()\n"
    work = "loss = model(1)\nloss.backward()\n"
    with pytest.raises(DependencyError, match=r"needs x_of_another_kind, not installed(?s:.*)pip install x_of_another"):
        load(tmp_path, text + work)


def test_an_import_inside_try_is_no_finding(tmp_path):
    guarded = "try:\n    from flash_of_another_kind import f\nexcept ImportError:\n    f = None\n"
    assert not said(load(tmp_path, guarded + NET + "    def forward(self, x): return f(x)"), "import")


def test_a_class_that_cannot_be_defined_is_the_error(tmp_path):
    broken = NET.replace("from torch import nn\n", "")
    with pytest.raises(SourceError, match=r"model\.py:4(?s:.*)name 'nn' is not defined"):
        load(tmp_path, broken)


def test_a_broken_part_of_the_model_is_the_error(tmp_path):
    text = NET + "class Part(nn.Module):\n    size = undefined_name\n"
    with pytest.raises(SourceError, match=r"undefined_name"):
        load(tmp_path, text)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_global_device_that_is_not_there(tmp_path):
    text = NET.replace("vocab_size, 4)", "vocab_size, 4, device=device)") + "device = torch.device('cuda')\n"
    loaded = load(tmp_path, text)
    assert loaded.module.e.weight.device.type == "cpu"
    assert "cpu instead of device='cuda'" in said(loaded, "device")


MAIN_GUARD = """
    import torch
    from torch import nn

    def table(size):
        return nn.Embedding(size, d_model)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.e = table(vocab_size)
            self.h = nn.Linear(d_model, n_classes)
        def forward(self, x):
            return self.e(x)[:, :maxlen]

    if __name__ == "__main__":
        words = {w: i for i, w in enumerate("a b c".split())}
        vocab_size = len(words)
        d_model = n_classes = 4 * 3
        maxlen = 30
        model = Net()
        raise KeyError
"""


def test_globals_that_only_the_program_sets(tmp_path):
    """A class without parameters reads them; forward's are filled, too."""
    loaded = load(tmp_path, MAIN_GUARD, fallback={"vocab_size": 77})
    assert loaded.module.e.weight.shape == (77, 12)
    assert loaded.module.h.out_features == 12
    assert loaded.module(torch.zeros(1, 40, dtype=torch.long)).shape == (1, 30, 12)
    assert "d_model=12" in said(loaded, "sizes")
    assert "vocab_size=77" in said(loaded, "sizes")
    again = load(tmp_path, MAIN_GUARD, config=loaded.provenance.config)
    assert again.module.e.weight.shape == (77, 12)


def test_globals_that_are_none_until_the_program_sets_them(tmp_path):
    """A width that a function sets, as a global, cannot stay None; what none sets may be meant so."""
    text = """
        from torch import nn
        n_embd = None
        block_size = None
        {more}

        class Net(nn.Module):
            def __init__(self, vocab_size=30):
                super().__init__()
                self.e, self.p = nn.Embedding(vocab_size, n_embd or 7), nn.Embedding(block_size or 9, n_embd or 7)
                self.size = head_dim

        def main():
            global n_embd, block_size
            n_embd, block_size = 64, 32
    """
    loaded = load(tmp_path, text.replace("{more}", "head_dim = None"))
    assert (loaded.module.e.embedding_dim, loaded.module.p.num_embeddings) == (128, 256)
    assert "n_embd=128" in said(loaded, "sizes")
    alone = load(tmp_path, text.replace("{more}", "head_dim = None").replace("n_embd = None", "n_embd = 5"))
    assert (alone.module.p.weight.shape, alone.module.size) == ((9, 5), None)


def test_the_configuration_wins_over_the_programs_globals(tmp_path):
    loaded = load(tmp_path, MAIN_GUARD, config={"vocab_size": 5, "n_embd": 9, "d_model": 8, "n_classes": 3})
    assert (loaded.module.e.weight.shape, loaded.module.h.out_features) == ((5, 8), 3)


def test_a_global_that_is_no_size_is_named_with_its_line(tmp_path):
    text = NET.replace("vocab_size, 4)", "table, 4)").replace("class Net", 'table = input("rows? ")\n\nclass Net')
    with pytest.raises(ConstructError, match=r"model\.py:5: table = input\((.|\n)*was not run: starts work"):
        load(tmp_path, text)
    assert load(tmp_path, text, config={"table": 6}).module.e.num_embeddings == 6


def test_a_loop_that_never_ends_and_sets_what_the_model_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(pyfile, "IMPORT_SECONDS", 0.3)
    text = NET.replace("class Net", "rows = 3\nwhile rows != 4:\n    rows += 2\n\nclass Net")
    with pytest.raises(SourceError, match="does not finish loading"):
        load(tmp_path, text.replace("vocab_size, 4)", "rows, 4)"))
    assert load(tmp_path, text).module.e.num_embeddings == 30


def test_weights_from_a_hub_are_not_fetched_while_the_file_is_loaded(tmp_path):
    text = """
        from torch import nn
        class AutoModel:
            def from_pretrained(name): raise ConnectionError("no network")
        class Net(nn.Module):
            def __init__(self, net):
                super().__init__()
                self.net = net
        net = AutoModel.from_pretrained("bert")
        model = Net(net)
    """
    found = r"model\.py:9: net = AutoModel\.from_pretrained(.|\n)*loads from a hub(.|\n)*from_config"
    with pytest.raises(ConstructError, match=found):
        load(tmp_path, text)


# settings of the program


SETTINGS = """
import os, random, signal, sys, warnings
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
torch.set_default_device("meta")
torch.use_deterministic_algorithms(True)
torch.backends.cudnn.deterministic = True
os.chdir("/")
sys.path.append("/nowhere")
sys.setrecursionlimit(3000)
sys.excepthook = print
signal.signal(signal.SIGINT, signal.SIG_IGN)
warnings.simplefilter("error")
"""


def program() -> dict[str, object]:
    """The settings of this program that a file might change."""
    return {
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "device": torch.zeros(1).device,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": torch.backends.cudnn.deterministic,
        "folder": os.getcwd(),
        "path": list(sys.path),
        "depth": sys.getrecursionlimit(),
        "hook": sys.excepthook,
        "interrupt": signal.getsignal(signal.SIGINT),
        "warnings": list(warnings.filters),
    }


def test_what_a_file_changes_in_the_program_is_put_back(tmp_path):
    before = program()
    loaded = load(tmp_path, NET + SETTINGS)
    assert program() == before
    assert loaded.module.e.weight.dtype == torch.float64, "the file's default dtype applies while the model is built"
    assert loaded.module.e.weight.device.type == "cpu"
    for part in ("default dtype float64", "gradients on: False", "default device meta", "put back"):
        assert part in said(loaded, "settings")
    assert not said(load(tmp_path, NET), "settings")


@pytest.mark.parametrize("end", ["raise KeyError\n", "while True:\n    pass\n"])
def test_it_is_put_back_when_the_file_fails(tmp_path, monkeypatch, end):
    monkeypatch.setattr(pyfile, "IMPORT_SECONDS", 0.2)
    before = program()
    with pytest.raises(SourceError):
        load(tmp_path, "import torch\n" + SETTINGS + end.replace("while True", "while torch"))
    assert program() == before


def test_what_a_constructor_changes_is_put_back(tmp_path):
    before = program()
    text = NET + "        torch.set_default_dtype(torch.float64)\n        torch.set_grad_enabled(False)\n"
    load(tmp_path, text)
    assert program() == before


# what stands under __main__

RECORD = """
class Config:
    def __init__(self, width=6, **more):
        super().__init__()
        self.width = int(width)
        for name, value in more.items():
            setattr(self, name, value)
"""
SIZED = """
import torch
from torch import nn
from dataclasses import dataclass, field
from typing import NamedTuple
MARK = {mark!r}
def evil(*given):
    open(MARK, "w").close()
    return 6
{record}
class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.e = nn.Embedding(9, config.width)
if __name__ == "__main__":
    config = Config({given})
    net = Net(config)
"""


def sized(tmp_path, record: str, given: str = "width=7") -> LoadedModel:
    return load(tmp_path, SIZED.format(mark=str(tmp_path / "it ran"), record=textwrap.dedent(record), given=given))


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        "@dataclass\nclass Config:\n    width: int = 6\n    more: list = field(default_factory=lambda: [1])\n",
        "class Config(NamedTuple):\n    width: int = 6\n",
        "from types import SimpleNamespace as Config\n",
        """
        class Base:
            def __init__(self): self.a = 1
        class Config(Base):
            def __init__(self, width):
                super().__init__()
                self.width = width
        """,
    ],
)
def test_plain_records_under_main_give_the_sizes(tmp_path, record):
    assert sized(tmp_path, record).module.e.embedding_dim == 7


@pytest.mark.parametrize(
    ("record", "given"),
    [
        ("class Config:\n    def __init__(self, width): evil(); self.width = width\n", "width=7"),
        ("class Config:\n    def __init__(self, width): self.width = evil()\n", "width=7"),
        ("class Config:\n    def __new__(cls, width): evil(); return object.__new__(cls)\n", "width=7"),
        ("class Config:\n    __init__ = evil\n", "width=7"),
        ("class Config:\n    def __init__(self, width): self.width = width\n    __setattr__ = evil\n", "width=7"),
        ("class Config:\n    def __init__(self, width):\n        with open(MARK, 'w'): pass\n", "width=7"),
        ("class B:\n    def __init__(self): evil()\nclass Config(B):\n    width = 7\n", ""),
        ("@dataclass\nclass Config:\n    width: int = field(default_factory=evil)\n", ""),
        ("@dataclass\nclass Config:\n    width: int = field(default_factory=lambda: evil())\n", ""),
        ("@dataclass\nclass Config:\n    width: int = 7\n    def __post_init__(self): evil()\n", ""),
        (
            """
class Config:
    def __init__(self, width): self.width = width
    @property
    def width(self): return 7
    @width.setter
    def width(self, v): evil()
""",
            "width=7",
        ),
    ],
)
def test_nothing_under_main_runs_the_files_own_work(tmp_path, record, given):
    text = SIZED.format(mark=str(tmp_path / "it ran"), record=record, given=given)
    path = tmp_path / "model.py"
    path.write_text(text, encoding="utf-8")
    user = pyfile.UserFile(path)
    with user.importable():
        written = Written(text, user.execute())
    assert "config" not in written.configurations()
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("size", ["9**9**9", "big**big", "[0] * 10**11", "1 << 10**12"])
def test_numbers_without_end_are_not_computed(tmp_path, size):
    text = NET + f"if __name__ == '__main__':\n    big = 9**9\n    rows = {size}\n    small = 2**5\n"
    (tmp_path / "model.py").write_text(text, encoding="utf-8")
    user = pyfile.UserFile(tmp_path / "model.py")
    with user.importable():
        names = Written(text, user.execute()).names()
    assert "rows" not in names
    assert names["small"] == 32


def test_a_file_that_the_model_opens_beside_itself_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "repository" / "src"
    folder.mkdir(parents=True)
    (folder.parent / "sizes.json").write_text('{"width": 24}')
    (folder / "names.txt").write_text("a\nb\n")
    (folder / "model.py").write_text(
        "import json\nfrom torch import nn\n"
        'width = json.load(open("sizes.json"))["width"]\nnames = open("names.txt").read().split()\n'
        "class Net(nn.Module):\n    def __init__(self, vocab_size=30):\n        super().__init__()\n"
        "        self.e, self.n = nn.Embedding(vocab_size, width), len(names)\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConstructError, match="NameError"):
        load_model(folder / "model.py")  # no one folder holds both
    (folder.parent / "names.txt").write_text("a\nb\nc\n")
    loaded = load_model(folder / "model.py")
    assert (loaded.module.e.embedding_dim, loaded.module.n) == (24, 3)
    assert next(f.measured for f in loaded.findings if f.name == "working folder") == str(folder.parent)
    assert {"src/model.py", "sizes.json"} <= loaded.sources.keys()  # a run keeps what its model needs
    assert Path.cwd() == tmp_path


def test_a_large_file_is_read_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "input.txt").write_text("x" * 100)
    (tmp_path / "m" / "model.py").write_text(
        'from torch import nn\ntext = open("input.txt").read()\nvocab_size = len(set(text))\n'
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.e = nn.Embedding(vocab_size, 4)\n"
    )
    monkeypatch.chdir(tmp_path)
    loaded = load_model(tmp_path / "m" / "model.py")
    assert loaded.module.e.num_embeddings == 1
    assert list(loaded.sources) == ["model.py", "input.txt"]
    monkeypatch.chdir(tmp_path / "m")  # found at once; it is kept all the same
    assert list(load_model("model.py").sources) == ["model.py", "input.txt"]
    (tmp_path / "m" / ".env").write_text("TOKEN=secret")
    (tmp_path / "m" / "secret.py").write_text((tmp_path / "m" / "model.py").read_text().replace("input.txt", ".env"))
    assert list(load_model("secret.py").sources) == ["secret.py"]
    monkeypatch.setattr("anyformer.models.files.pyfile._LARGEST_OPENED", 50)
    assert list(load_model("model.py").sources) == ["model.py"]


def test_a_file_that_writes_is_not_run_again_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m" / "logs").mkdir(parents=True)
    (tmp_path / "m" / "logs" / "run.log").write_text("what was learnt")
    (tmp_path / "m" / "model.py").write_text(
        'from torch import nn\nlog = open("logs/run.log", "w")\n'
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.e = nn.Embedding(9, 4)\n"
    )
    monkeypatch.chdir(tmp_path)
    load_model(tmp_path / "m" / "model.py")
    assert (tmp_path / "m" / "logs" / "run.log").read_text() == "what was learnt"


def test_a_data_file_above_is_kept_where_the_copy_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r" / "src").mkdir(parents=True)
    (tmp_path / "r" / "data").mkdir()
    (tmp_path / "r" / "data" / "v.txt").write_text("abc")
    (tmp_path / "r" / "src" / "model.py").write_text(
        'from torch import nn\nv = len(open("../data/v.txt").read())\n'
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.e = nn.Embedding(v, 4)\n"
    )
    monkeypatch.chdir(tmp_path)
    loaded = load_model(tmp_path / "r" / "src" / "model.py")
    assert loaded.module.e.num_embeddings == 3
    assert list(loaded.sources) == ["src/model.py", "data/v.txt"]


BESIDE_THE_CLASS = """
import torch
from torch import nn

class LM(nn.Module):
    def __init__(self, vocab_size, max_len=24):
        super().__init__()
        self.e = nn.Embedding(vocab_size, 8)
        self.pos = nn.Embedding(max_len, 8)
        self.h = nn.Linear(8, vocab_size)
        self.max_len = max_len

    def forward(self, ids):
        return self.h(self.e(ids) + self.pos(torch.arange(ids.shape[1])) READS)

saved = torch.load("weights.pt")
model = LM(saved["vocab_size"])
block_size = model.max_len

def generate(ids):
    return model(ids[:, -block_size:])
"""


@pytest.mark.parametrize("reads", ["", "[:, -block_size:]"])
def test_a_global_is_no_argument_of_another_name_when_built_again(tmp_path, monkeypatch, reads):
    """``block_size``, which only ``generate`` reads, became ``max_len`` of the run's own copy."""
    monkeypatch.chdir(tmp_path)
    loaded = load(tmp_path, BESIDE_THE_CLASS.replace("READS", reads))
    assert loaded.module.pos.weight.shape == (24, 8)
    assert ("block_size" in said(loaded, "sizes")) == bool(reads)
    assert ("block_size" in loaded.provenance.config) == bool(reads)
    again = load(tmp_path, BESIDE_THE_CLASS.replace("READS", reads), config=loaded.provenance.config)
    assert again.module.pos.weight.shape == (24, 8)
    assert again.module.e.weight.shape == loaded.module.e.weight.shape
