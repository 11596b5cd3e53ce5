"""A model that takes ``args`` whose flags stand in the program beside it."""

from __future__ import annotations

import json
import textwrap
import types
from pathlib import Path

import pytest

from anyformer.models.building.flags import flags_beside
from anyformer.models.source import load_model

MODEL = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self, args):
            super().__init__()
            self.e = nn.Embedding(args.num_items, args.bert_width)
            self.c = nn.ModuleList(nn.Conv1d(1, 2, k) for k in args.kernel_sizes)
            self.depth = args.bert_depth
"""
PROGRAM = """
    import argparse, missing_package
    parser = argparse.ArgumentParser()
    parser.add_argument("--num_items", type=int, default=70)
    parser.add_argument("-bert-width", type=int, default=6)
    parser.add_argument("--kernel-sizes", default="2,3")
    parser.add_argument("--bert_depth", default=3)
    parser.add_argument("--lr", default=1e-3)
    train(parser.parse_args())
"""


@pytest.mark.parametrize(("model", "program"), [("model.py", "main.py"), ("models/net.py", "options.py")])
def test_their_defaults_are_the_sizes(tmp_path: Path, model: str, program: str) -> None:
    for name, text in ((model, MODEL), (program, PROGRAM), ("models/__init__.py", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    loaded = load_model(tmp_path / model)
    assert loaded.module.e.weight.shape == (70, 6)
    assert [c.kernel_size[0] for c in loaded.module.c] == [2, 3]
    told = {f.name: f.measured for f in loaded.findings}
    assert program in told["construction"]
    assert "bert_width=6" in told["flags"]
    assert "lr" not in told["flags"]
    # the record alone builds the same, without the program
    (tmp_path / program).unlink()
    config = json.loads(json.dumps(loaded.provenance.config))
    again = load_model(tmp_path / model, config=config).module
    assert str(again) == str(loaded.module)
    assert again.depth == loaded.module.depth == 3


def test_what_is_given_wins_and_a_program_of_other_flags_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(textwrap.dedent(MODEL))
    (tmp_path / "main.py").write_text(textwrap.dedent(PROGRAM))
    assert load_model(tmp_path / "model.py", config={"bert_width": 9}).module.e.weight.shape == (70, 9)
    other = "import argparse\np = argparse.ArgumentParser()\np.add_argument('--lr', default=1)\n"
    (tmp_path / "main.py").write_text(other)
    loaded = load_model(tmp_path / "model.py", config={"bert_width": 9, "bert_depth": 1, "num_items": 40})
    assert "main.py" not in str(loaded.findings)
    assert loaded.module.e.weight.shape == (40, 9)


def test_folders_above_are_read_from_inside_a_package_only(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "main.py").write_text(textwrap.dedent(PROGRAM))
    module = types.ModuleType("net")
    module.__file__ = str(tmp_path / "models" / "net.py")
    assert flags_beside(module) == {}
    (tmp_path / "models" / "__init__.py").touch()
    assert flags_beside(module)["main.py"]["num_items"] == 70
