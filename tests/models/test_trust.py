"""Nothing of a gist runs before a yes; what is shown, what is remembered, what the review sees."""

from __future__ import annotations

import io
import json
import shutil
import stat
import sys
from pathlib import Path

import pytest

from anyformer import api, cli
from anyformer.core.errors import ConstructError, SettingsError, SourceError, TrustError
from anyformer.core.view import PlainView, QuietView
from anyformer.models import example_gpt
from anyformer.models.network.review import NOT_A_BOUNDARY, review
from anyformer.models.source import Provenance, load_model
from anyformer.models.trust import TrustRequest, content_sha256, safe
from anyformer.runs.directory import RunDirectory
from anyformer.runs.rebuild import stored_model
from tests.gist_server import CONFIG, ID, MODEL, GistServer

GIST = f"gist:{ID}"


@pytest.fixture
def server(monkeypatch, tmp_path):
    with GistServer() as running:
        monkeypatch.setenv("ANYFORMER_GIST_API", running.url)
        monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("GITHUB_TOKEN", raising=False)
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        yield running


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "it ran"


def marking(marker: Path, model: str = MODEL) -> str:
    return f"open({str(marker)!r}, 'w').close()\n{model}"


class Asked:
    """An ``approve`` that keeps what it was asked."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.requests: list[TrustRequest] = []

    def __call__(self, request: TrustRequest) -> object:
        self.requests.append(request)
        return self.answer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch, answers: str, colour: str = "") -> Terminal:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(answers))
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", colour)
    return screen


# nothing runs before yes


@pytest.mark.parametrize("answer", [False, None, "yes", 1])
def test_any_answer_but_true_is_no(server, marker, answer):
    server.put({"model.py": marking(marker)})
    with pytest.raises(TrustError, match="was not run: the answer was no"):
        load_model(GIST, approve=Asked(answer), view=QuietView())
    assert not marker.exists()


@pytest.mark.parametrize("typed", ["n\n", "\n", "", "no\n", "what\nn\n", "s\nn\n", "Yes please\n\n"])
def test_a_terminal_that_does_not_say_yes(server, marker, monkeypatch, typed):
    server.put({"model.py": marking(marker)})
    screen = terminal(monkeypatch, typed)
    with pytest.raises(TrustError, match="the answer was no"):
        load_model(GIST, view=QuietView())
    assert not marker.exists()
    assert "Run this code? [y]es / [s]how all / [N]o" in screen.getvalue()


@pytest.mark.parametrize("typed", ["y\n", "YES\n", "s\ny\n"])
def test_yes_at_the_terminal_runs_it(server, marker, monkeypatch, typed):
    server.put({"model.py": marking(marker)})
    terminal(monkeypatch, typed)
    load_model(GIST, view=QuietView())
    assert marker.exists()


def test_where_nobody_can_be_asked(server, marker, capsys):
    server.put({"model.py": "import os\n" + marking(marker)})
    with pytest.raises(TrustError) as caught:
        load_model(GIST)
    said = str(caught.value)
    assert not marker.exists()
    assert caught.value.exit_code == 2
    for part in ("no terminal to ask at", "review: 4 remarks: model.py:1 imports os", "--trust", "--show_source"):
        assert part in said
    assert "      1 │ import os" in capsys.readouterr().err


def test_a_sibling_is_code_too(server, marker):
    server.put({"model.py": "import layers\n" + MODEL, "layers.py": marking(marker, "")})
    asked = Asked(False)
    with pytest.raises(TrustError):
        load_model(GIST, approve=asked, view=QuietView())
    assert not marker.exists()
    (request,) = asked.requests
    assert list(request.code) == ["model.py", "layers.py"]
    assert any(remark.file == "layers.py" and "open" in remark.words for remark in request.remarks)


@pytest.mark.parametrize("trust", ["true", "false", 1, None])
def test_trust_is_a_bool(server, marker, trust):
    server.put({"model.py": marking(marker)})
    with pytest.raises(SettingsError):
        load_model(GIST, trust=trust, view=QuietView())
    assert not marker.exists()


SWITCHES = '{"trust": true, "trust_remote_code": true, "approve": true, "vocab_size": 270}'


@pytest.mark.parametrize("name", ["config.json", "anyformer.yaml", "settings.yaml"])
def test_files_of_the_gist_cannot_turn_trust_on(server, marker, name):
    server.put({"model.py": marking(marker), name: SWITCHES})  # JSON is YAML as well
    with pytest.raises(TrustError):
        load_model(GIST, view=QuietView())
    assert not marker.exists()


def test_values_for_the_constructor_cannot_turn_trust_on(server, marker):
    server.put({"model.py": marking(marker)})
    with pytest.raises(TrustError):
        load_model(GIST, config={"trust": True, "trust_remote_code": True}, view=QuietView())
    assert not marker.exists()


def test_a_settings_file_cannot_turn_trust_on(server, marker, tmp_path, capsys):
    server.put({"model.py": marking(marker)})
    settings = tmp_path / "settings.yaml"
    settings.write_text("trust: true\nmax_steps: 1\n")
    assert cli.main(["train", GIST, "--config", str(settings)]) == 2
    assert "a file cannot approve code" in capsys.readouterr().err
    assert not marker.exists()


def test_repair_asks_and_shows_before_it_runs_a_gist(server, marker, capsys):
    server.put({"model.py": marking(marker)})
    asked = Asked(False)
    with pytest.raises(TrustError):
        api.repair(GIST, approve=asked)
    assert len(asked.requests) == 1
    assert not marker.exists()
    capsys.readouterr()
    api.repair(GIST, trust=True)
    err = capsys.readouterr().err
    assert marker.exists()
    assert f"open({str(marker)!r}, 'w').close()" in err
    assert "  sha256        " in err


@pytest.mark.parametrize("command", ["inspect", "repair"])
def test_quiet_does_not_hide_what_trust_runs(server, marker, capsys, command):
    revision = server.put({"model.py": "import os\n" + marking(marker)})
    assert cli.main([command, GIST, "--quiet", "--trust"]) == 0
    err = capsys.readouterr().err
    assert marker.exists()
    for part in ("by octocat", f"revision      {revision}", "  sha256        ", "      1 │ import os", "imports os"):
        assert part in err
    assert cli.main([command, GIST, "--quiet", "--trust"]) == 0  # approved, these very bytes
    assert "import os" not in capsys.readouterr().err


# what is shown


def request_of(**files: str) -> TrustRequest:
    """A request for the given gist files, made without running anything."""
    with GistServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYFORMER_GIST_API", server.url)
        server.put({name.replace("_py", ".py"): text for name, text in files.items()})
        asked = Asked(False)
        with pytest.raises(TrustError):
            load_model(GIST, approve=asked, view=QuietView())
    return asked.requests[0]


def test_the_first_twenty_lines_and_the_way_to_the_rest():
    request = request_of(model_py="".join(f"a{n} = {n}\n" for n in range(1, 31)))
    lines = request.lines()
    numbered = [line for line in lines if " │ " in line]
    assert numbered[0] == "      1 │ a1 = 1"
    assert numbered[-1] == "     20 │ a20 = 20"
    assert len(numbered) == 20
    assert any("10 more" in line and "--show_source" in line for line in lines)
    assert sum(" │ " in line for line in request.lines(whole=True)) == 30
    text = "\n".join(lines)
    assert request.sha256 in text
    assert "by octocat" in text
    assert request.gist.revision in text
    assert f"  {NOT_A_BOUNDARY}" in lines
    assert "review: nothing stood out" in text


def test_every_line_is_shown_to_its_end() -> None:
    hidden = "x = 1" + " " * 400 + "; hidden_behind = 2"
    request = request_of(**{"model.py": hidden})
    assert "hidden_behind" not in "\n".join(request.lines())
    assert "hidden_behind" in "\n".join(request.lines(whole=True))


def test_what_would_steer_a_terminal_is_shown_as_text(server, capsys):
    evil = "x = 1  # \x1b[2J\x1b]0;title\x07 \u202e \u200b \x9b31m\n"

    def edit(record):
        record["description"] = "nice \x1b[8m hidden\nline"
        record["owner"]["login"] = "octo\u202ecat"

    server.put({"model.py": evil, "config.json": CONFIG}, edit=edit)
    with pytest.raises(TrustError) as caught:
        load_model(GIST, view=PlainView())
    shown = capsys.readouterr().err + str(caught.value)
    assert not set(shown) & set("\x1b\x07\x9b\u202e\u200b")
    assert "\\x1b[2J" in shown
    assert "\\u202e" in shown
    assert "\\u200b" in shown


def test_the_whole_is_shown_on_request_and_in_colour(server, monkeypatch):
    server.put({"model.py": "".join(f"value_{n} = {n}\n" for n in range(40)) + MODEL, "config.json": CONFIG})
    screen = terminal(monkeypatch, "s\nn\n")
    with pytest.raises(TrustError):
        load_model(GIST, view=QuietView())
    before, question, after = screen.getvalue().partition("Run this code?")
    assert question
    assert "value_19" in before
    assert "value_20" not in before
    assert "value_39" in after
    assert "\x1b[" in before, "highlighted"
    screen = terminal(monkeypatch, "n\n", colour="1")
    with pytest.raises(TrustError):
        load_model(GIST, view=QuietView())
    assert "\x1b" not in screen.getvalue()


def test_escapes_in_the_source_do_not_pass_for_highlighting(server, monkeypatch):
    server.put({"model.py": "x = 1  # \x1b[2J gone\n", "config.json": CONFIG})
    screen = terminal(monkeypatch, "n\n")
    with pytest.raises(TrustError):
        load_model(GIST, view=QuietView())
    assert "\x1b[2J" not in screen.getvalue()


def test_safe_keeps_plain_text():
    assert safe("größer π → 你好\t!") == "größer π → 你好\t!"


# remembered


def test_an_approval_is_remembered_for_these_bytes(server, tmp_path):
    server.put()
    load_model(GIST, trust=True, view=QuietView())
    asked = Asked(False)
    loaded = load_model(GIST, approve=asked, view=QuietView())
    assert asked.requests == []
    (finding,) = [f for f in loaded.findings if f.name == "trust"]
    assert "approved on" in finding.measured
    server.put({"model.py": MODEL, "config.json": '{"vocab_size": 280, "width": 8}'})
    assert load_model(GIST, approve=asked, view=QuietView()).module.head.out_features == 280, "config.json is data"
    assert asked.requests == []


@pytest.mark.parametrize(
    "files",
    [
        {"model.py": MODEL.replace("tanh", "relu")},
        {"model.py": MODEL, "extra.py": ""},
        {"model.py": MODEL + " "},
    ],
)
def test_changed_code_is_asked_about_again(server, files):
    server.put()
    load_model(GIST, trust=True, view=QuietView())
    server.put({**files, "config.json": CONFIG})
    asked = Asked(False)
    with pytest.raises(TrustError, match="changed since it was approved"):
        load_model(GIST, approve=asked, view=QuietView())
    assert asked.requests[0].previous is not None


def test_the_difference_to_the_approved_version_is_shown(server):
    server.put()
    load_model(GIST, trust=True, view=QuietView())
    server.put({"model.py": MODEL.replace("tanh", "relu"), "config.json": CONFIG, "more.py": "x = 1\n"})
    asked = Asked(False)
    with pytest.raises(TrustError):
        load_model(GIST, approve=asked, view=QuietView())
    difference = asked.requests[0].difference
    assert "+        return self.head(torch.relu(self.mix(x.cumsum(1) / steps)))" in difference
    assert "-        return self.head(torch.tanh(self.mix(x.cumsum(1) / steps)))" in difference
    assert "+x = 1" in difference
    shown = "\n".join(asked.requests[0].lines())
    assert "changed since it was approved on" in shown
    assert "torch.relu" in shown.partition("changed since")[2]


def test_a_first_version_has_no_difference():
    assert request_of(model_py=MODEL).difference == []


def test_approvals_are_private_files(server, tmp_path):
    server.put()
    load_model(GIST, trust=True, view=QuietView())
    (file,) = (tmp_path / "cache" / "gists" / "approvals").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stem == content_sha256({"model.py": MODEL.encode()})


def test_an_approval_is_about_what_its_name_says(server, tmp_path, marker):
    server.put()
    load_model(GIST, trust=True, view=QuietView())
    folder = tmp_path / "cache" / "gists" / "approvals"
    (file,) = folder.iterdir()
    evil = marking(marker)
    server.put({"model.py": evil})
    shutil.copy(file, folder / f"{content_sha256({'model.py': evil.encode()})}.json")
    with pytest.raises(TrustError):
        load_model(GIST, view=QuietView())
    assert not marker.exists()
    file.write_text("{")
    server.put()
    with pytest.raises(TrustError):
        load_model(GIST, view=QuietView())


def test_the_hash_covers_names_and_contents():
    assert content_sha256({"a.py": b"1", "b.py": b"2"}) == content_sha256({"b.py": b"2", "a.py": b"1"})
    others = [{"a.py": b"1"}, {"a.py": b"2", "b.py": b"1"}, {"a.py": b"1", "c.py": b"2"}, {"a.py": b"12", "b.py": b""}]
    assert len({content_sha256(files) for files in [{"a.py": b"1", "b.py": b"2"}, *others]}) == 5


# loading


def test_what_is_recorded_of_a_gist(server):
    revision = server.put()
    loaded = load_model(f"https://gist.github.com/octocat/{ID}", trust=True, view=QuietView())
    record = json.loads(json.dumps(loaded.provenance.to_dict()))
    assert record["kind"] == "gist"
    assert record["location"] == f"{GIST}@{revision}"
    assert record["revision"] == revision
    assert record["owner"] == "octocat"
    assert list(record["files"]) == ["model.py", "config.json"]
    assert Provenance.from_dict(record) == loaded.provenance
    assert loaded.module.head.out_features == 270, "config.json beside it"


def test_records_of_older_runs_have_no_owner():
    record = {"kind": "file", "location": "m.py", "class_name": "A", "files": {}, "config": None}
    assert Provenance.from_dict(record).revision is None


def test_a_run_is_rebuilt_without_network_and_question(server, tmp_path):
    server.put({"model.py": "import layers\n" + MODEL, "layers.py": "SIZE = 3\n", "config.json": CONFIG})
    loaded = load_model(GIST, trust=True, view=QuietView())
    run = RunDirectory.create(tmp_path / "runs", "a")
    run.store_sources(loaded)
    run.update(model=loaded.provenance.to_dict(), seed=3)
    server.stop()
    shutil.rmtree(tmp_path / "cache")
    again = stored_model(RunDirectory.open(run.path), Provenance.from_dict(run.manifest["model"])).module
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in loaded.module.named_parameters()
    }


@pytest.mark.parametrize("name", ["TinyGPT", "Tiny%20GPT", "Other"])
def test_the_links_name_is_a_hint(server, name):
    other = MODEL.replace("TinyGPT", "OtherModel")
    server.put({"model.py": MODEL + other, "config.json": CONFIG})
    loaded = load_model(f"#gist_id={ID}&name={name}", trust=True, view=QuietView())
    assert loaded.provenance.class_name == ("OtherModel" if name == "Other" else "TinyGPT")


def test_a_title_that_names_no_class_is_only_a_title(server):
    server.put()
    loaded = load_model(f"#gist_id={ID}&name=Nightly%20run", trust=True, view=QuietView())
    assert loaded.provenance.class_name == "TinyGPT"
    assert any(f.name == "name" and f.measured == "Nightly run" for f in loaded.findings)


def test_errors_speak_of_the_gist_and_not_of_the_cache(server, tmp_path):
    revision = server.put({"model.py": MODEL + MODEL.replace("TinyGPT", "Second")})
    with pytest.raises(ConstructError) as caught:
        load_model(f"{GIST}:Third", trust=True, view=QuietView())
    assert str(tmp_path) not in str(caught.value)
    assert f"{GIST}@{revision}:model.py:Second" in str(caught.value)
    second = load_model(f"{GIST}@{revision}:model.py:Second", view=QuietView())
    assert type(second.module).__name__ == "Second"
    assert second.provenance.location == f"{GIST}@{revision}:Second"


def test_a_github_page_that_is_no_gist():
    with pytest.raises(SourceError, match="not a gist"):
        load_model("https://github.com/karpathy/nanoGPT/blob/master/model.py")


def test_inspect_shows_trusts_and_remembers(server, marker, capsys):
    server.put({"model.py": marking(marker), "layers.py": "x = 1\n", "config.json": CONFIG})
    assert cli.main(["inspect", GIST]) == 2
    assert cli.main(["inspect", GIST, "--show_source"]) == 0
    shown = capsys.readouterr().out
    assert "return self.head" in shown
    assert "x = 1" in shown
    assert not marker.exists()
    assert cli.main(["inspect", GIST, "--trust"]) == 0
    assert marker.exists()
    assert cli.main(["inspect", GIST]) == 0


def test_show_source_is_for_gists(tmp_path, capsys):
    (tmp_path / "model.py").write_text(MODEL)
    assert cli.main(["inspect", str(tmp_path / "model.py"), "--show_source"]) == 2
    assert "is not a gist" in capsys.readouterr().err


# the review


@pytest.mark.parametrize("source", [MODEL, Path(example_gpt.__file__).read_text(encoding="utf-8")])
def test_ordinary_models_give_no_remark(source):
    assert review({"model.py": source.encode()}) == ()


CLEAN = '''\
"""GPT, with β₁ and naïve words — “quotes”."""
from __future__ import annotations
import math, inspect
from collections import namedtuple
from dataclasses import dataclass, field
from functools import partial
import numpy as np, torch, torch.nn.functional as F
from einops import rearrange
from layers import Block
logger = __import_free = None
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Norm = partial(torch.nn.LayerNorm, eps=1e-5)
torch.manual_seed(0)
try:
    import flash_attn
except ImportError:
    flash_attn = None
@dataclass
class Config:
    sizes: list = field(default_factory=lambda: [len([1])])
DEFAULT = Config()
class Net(torch.nn.Module):
    def first(self, input, config=Config()): return input
    @property
    def name(self): return self.__class__.__name__
    @torch.no_grad()
    def forward(self, x, α=1):
        self.eval(); y = torch.compile(x); torch.load("w.pt", weights_only=True)
        self.__dict__.update(depth=1)
        for name in ("q", "k"):
            getattr(self, name); getattr(self, f"layer_{name}")
        size = getattr(config, "n_embd", 8)
        hidden = getattr(F, self.activation)(torch.zeros(2**3, 10 * 64))
        torch.nn.Embedding.from_pretrained(hidden)
        return getattr(x, "shape"), math.sqrt(2), sorted([3], key=lambda n: -n), list(map(int, "12")), size
Point = namedtuple("Point", "x y")
ORDER = sorted([2, 1], key=lambda n: -n)
if __name__ == "__main__":
    train(); print(Net())
'''


def test_what_models_usually_do_gives_no_remark():
    assert review({"model.py": CLEAN.encode(), "layers.py": b"class Block: pass\n"}) == ()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import os", "imports os: reads or writes files"),
        ("import os.path as p", "imports os.path"),
        ("from subprocess import run", "starts programs"),
        ("import socket", "reaches the network"),
        ("import ctypes", "machine code"),
        ("import pickle", "pickle can run any code"),
        ("def f():\n    import urllib.request", "reaches the network"),
        ("import requests, shutil", "imports shutil"),
        ("from pathlib import Path", "imports pathlib"),
        ("import importlib", "runs or builds code"),
        ("import mysterious", "not among the packages"),
        ("from torch import hub", "torch.hub: downloads code"),
        ("import torch.hub", "imports torch.hub: downloads code"),
        ("from torch.utils.cpp_extension import load_inline", "compiles machine code"),
        ("def f(): torch.hub.load('a/b', 'c')", "torch.hub: downloads code and runs it"),
        ("def f(): torch.utils.cpp_extension.load('a')", "compiles machine code"),
        ("def f(): torch.os.system('ls')", "reaches the module os"),
        ("def f(): return np._sys", "reaches the module sys"),
        ("from typing import sys", "reaches the module sys"),
        ("def f(): exec('x')", "exec: runs text as code"),
        ("run = eval", "eval: runs text as code"),
        ("def f(): compile('x', '', 'exec')", "compile: makes code of text"),
        ("def f(): __import__('os')", "__import__: imports a module"),
        ("def f(): open('x')", "open: reads or writes files"),
        ("def f(x): return getattr(x, '__globals__')", "names __globals__"),
        ("def f(x, n): return getattr(x, '__' + n)", "put together while it runs"),
        ("def f(x): return x.__class__.__bases__[0].__subclasses__()", "__subclasses__: reaches behind"),
        ("def f(): return __builtins__", "__builtins__: reaches behind"),
        ("def f(g): return g.__globals__['x']", "__globals__: reaches behind"),
        ("class A:\n    def __reduce__(self): return f, ()", "defines __reduce__"),
        ("def f(): torch.load('x', weights_only=False)", "weights_only is not True"),
        ("def f(w): torch.load('x', weights_only=w)", "weights_only is not True"),
        ("def f(): np.load('x', allow_pickle=True)", "allow_pickle is on"),
        ("def f(): A.from_pretrained('x', trust_remote_code=True)", "trust_remote_code is on"),
        ("def f(p): p.write_text('x')", ".write_text: reads or writes files"),
        ("x = 'a\u202eb'", "bidirectional control characters (U+202E)"),
        ("# \u2066 hidden", "bidirectional control characters (U+2066)"),
        ("x = 'a\u200bb'", "invisible characters (U+200B)"),
        ("р" + "ath = 1", "letters that look like others (U+0440)"),
        ("ｅxec('1')", "exec: runs text as code"),
        ("x = '" + "QUJD" * 100 + "'", "encoded characters"),
        ("x = b'" + "a" * 300 + "'", "a block of 300 bytes"),
        ("x = 1" + " " * 600 + "# far", "a line of 610 characters"),
        ("x = 1;" + " " * 80 + "y = 2", "far to the right"),
        ("# -*- coding: utf-7 -*-", "declares the encoding utf-7"),
        ("work()", "work(…) is called while the file is loaded"),
        ("x = work()", "work(…) is called while the file is loaded"),
        ("for i in x: pass", "a loop runs while the file is loaded"),
        ("while True: pass", "a loop runs"),
        ("with x: pass", "with runs while"),
        ("if x:\n    work()", "work(…) is called"),
        ("if __name__ != '__main__':\n    work()", "work(…) is called"),
        ("if __name__ == '__main__' or True:\n    work()", "work(…) is called"),
        ("try:\n    work()\nexcept E:\n    pass", "work(…) is called"),
        ("if __name__ == '__main__':\n    pass\nelse:\n    work()", "work(…) is called"),
        ("@work\ndef f(): pass", "the decorator work runs"),
        ("@partial(work())\ndef f(): pass", "work(…) is called"),
        ("def f(a=work()): pass", "as a default value"),
        ("def f(a: work()): pass", "as an annotation"),
        ("@dataclass\nclass A:\n    def __post_init__(self): pass\nx = A()", "A(…) is called while"),
        ("@dataclass\nclass A(B):\n    x: int = 1\nx = A()", "A(…) is called while"),
        ("class A:\n    x: int = 1\nx = A()", "A(…) is called while"),
        ("def f(): return input()", "input: waits for the keyboard"),
        ("class A:\n    x = work()", "while the class A is defined"),
        ("class A(work()): pass", "work(…) is called"),
        ("class A(metaclass=M): pass", "a metaclass of its own"),
        ("torch.cuda.is_available = f", "changes torch.cuda.is_available"),
        ("[work() for i in x]", "work(…) is called"),
        ("f'{work()}'", "work(…) is called"),
        ("def f(): getattr(getattr(torch.serialization, 'os'), 'system')('id')", ".system: starts programs"),
        ("def f(): return getattr(torch.serialization, 'os')", "torch.serialization.os: reaches the module os"),
        ("def f(): return getattr(torch, 'jit').x, getattr(torch.jit, 'load')", "torch.jit.load: runs a program"),
        ("def f(x): return setattr(x, '__code__', 1)", "__code__: reaches behind"),
        ("def f(): return vars(torch.serialization)", "vars: reaches the names behind"),
        ("def f(x): return x.__dict__['os']", "__dict__: reaches behind"),
        ("def f(self): return self.__dict__['os']", "__dict__: reaches behind"),
        ("def f(x): return getattr(x, '__dict__')", "__dict__: reaches behind"),
        ("import operator\ndef f(x): return operator.attrgetter('a.system')(x)", ".system: starts programs"),
        ("from operator import attrgetter as a", ".attrgetter: reaches attributes by names"),
        ("import operator\ndef f(x): return operator.methodcaller(x)", ".methodcaller: reaches attributes"),
        ("import functools\ndef f(x): functools.reduce(getattr, ['a'], x)", "getattr is handed on"),
        ("def f(x): functools.reduce(getattr, ['os'], x)", "names the module os"),
        ("def f(x, n): return getattr(x, n)\ndef g(): f(torch.serialization, 'os')", "names the module os"),
        ("look = getattr", "getattr is handed on"),
        ("def f(x):\n    n = 'o' + 's'\n    return getattr(x, n)", "getattr with a name that is put together"),
        ("def f(x):\n    n = ''.join('os')\n    return getattr(x, n)", "getattr with a name that is put together"),
        ("def f(self, n): return getattr(self, f'{n}_x')", "getattr with a name that is put together"),
        ("def f(): logging.FileHandler('x')", ".FileHandler: writes files"),
        ("def f(): logging.basicConfig(filename='x')", "logging.basicConfig with a file"),
        ("import logging.config", "logging.config: makes objects from names"),
        ("def f(): logging.config.dictConfig({})", ".dictConfig: makes objects"),
        ("def f(m): torch.jit.save(m, 'x')", "torch.jit.save: writes files"),
        ("from torch import jit as j\ndef f(): j.load('x')", "torch.jit.load: runs a program"),
        ("def f():\n    j = torch.jit\n    j.load('x')", "torch.jit.load: runs a program"),
        ("def f(): torch.export.load('x')", "torch.export.load: runs a program"),
        ("def f(): np.savetxt('x', [1])", ".savetxt: writes files"),
        ("import numpy as n\ndef f(): n.save('x', [1])", "numpy.save: writes files"),
        ("def f(): np.genfromtxt('http://x')", ".genfromtxt: reads files, or fetches"),
        ("def f(): np.loadtxt('x')", ".loadtxt: reads files, or fetches"),
        ("def f(): np.load('x')", "numpy.load: reads files"),
        ("def f(a): a.dump('x')", ".dump: writes files"),
        ("def f(a): a.tofile('x')", ".tofile: writes files"),
        ("def f(): tiktoken.load.read_file('x')", "tiktoken.load: reaches the network"),
        ("def f(x): return '{0.__init__.__globals__}'.format(x)", "names __globals__"),
        ("def f(): typing.get_type_hints(A)", ".get_type_hints: runs text as code"),
        ("def f(): type('X', (object,), {})", "type with several arguments"),
        ("x = {'__del__': 1}", "names __del__"),
        ("def f(): timm.create_model('x', pretrained=True)", "pretrained is on"),
        ("def __getattr__(name): pass", "defines __getattr__: runs when a name of the file"),
        ("__getattr__ = print", "defines __getattr__: runs when a name of the file"),
        ("class A:\n    def __class_getitem__(cls, k): pass", "defines __class_getitem__"),
        ("class A:\n    __class_getitem__ = f", "defines __class_getitem__"),
        ("f = lambda x=work(): x", "work(…) is called while the file is loaded, as a default value"),
        ("x = list(map(work, [1]))", "work(…) is called while the file is loaded, through map"),
        ("x = sorted([1], key=work)", "work(…) is called while the file is loaded, through sorted"),
        ("x = max([1], key=lambda n: work(n))", "work(…) is called"),
        ("property = f\nclass A:\n    @property\n    def x(self): pass", "the decorator property runs"),
        ("def get(): pass\nx = get()", "get(…) is called"),
        ("from layers import dict\nx = dict()", "dict(…) is called"),
        ("from torch import nuke as int\nx = int()", "int(…) is called"),
        ("class A:\n    def cast(): pass\nA.cast()", "A.cast(…) is called"),
        ("@dataclass\nclass A:\n    x: list = field(default_factory=work)\ny = A()", "A(…) is called"),
        ("@dataclass\nclass A:\n    x: list = field(default_factory=lambda: work())\ny = A()", "A(…) is called"),
        ("x = 9**9**9", "computes a number of thousands of digits"),
        ("x = 1 << 10**9", "computes a number of thousands of digits"),
        ("x = [0] * 10**11", "makes a list of 1e+11 items"),
        ("x = 10**11 * 'a'", "makes a list of 1e+11 items"),
        ("x = list(range(10**12))", "counts to more than"),
        ("if __name__ == '__main__':\n    x = 9**9**9", "computes a number of thousands of digits"),
        ("def f(:", "is not Python, so the file cannot be reviewed"),
        ("x = 1\0", "cannot be reviewed"),
        ("x = " + "-" * 20000 + "1", "cannot be reviewed"),
    ],
)
def test_what_the_review_sees(source, says):
    remarks = review({"model.py": source.encode()})
    assert any(says in remark.words for remark in remarks), remarks


def test_the_zoo_gives_no_remark():
    files = [p for p in (Path(__file__).parents[1] / "zoo").glob("*.py") if not p.name.startswith("_")]
    spoken = {p.name: found for p in files if (found := review({p.name: p.read_bytes()}))}
    assert len(files) >= 45
    assert len(spoken) <= 0.05 * len(files), spoken


def test_a_remark_names_file_line_and_text():
    (remark,) = review({"model.py": b"import torch\n\n\n    \nimport socket  # why\n"})
    assert (remark.file, remark.line, remark.code) == ("model.py", 5, "import socket  # why")


def test_every_file_is_reviewed_and_names_that_hide_others():
    remarks = review({"model.py": b"import layers\n", "layers.py": b"import os\n", "math.py": b"", "torch.py": b""})
    assert [(r.file, r.words.split(":")[0]) for r in remarks if r.file == "layers.py"] == [("layers.py", "imports os")]
    assert {r.file for r in remarks if "may be imported in its place" in r.words} == {"math.py", "torch.py"}


def test_lines_are_counted_as_python_counts_them():
    remarks = review({"model.py": b"x = 1\x0c\r\n# a\rimport os\n"})
    assert [(r.line, r.code) for r in remarks if "imports os" in r.words] == [(3, "import os")]
