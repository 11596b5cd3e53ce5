"""Scripts that build their model at module level and define no class of it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from anyformer.core.errors import AnyformerError
from anyformer.models.source import LoadedModel, load_model

SCRIPT = """
    import torch
    from torch import nn

    {before}
    class Data(torch.utils.data.Dataset):
        pass

    text = open("nowhere.txt").read()
    vocab_size = len(set(text))
    width = 8
    sizes = {{"layers": 1}}
    sizes["layers"] += 1
    sizes.update(bias=False)
    parts = [nn.Embedding(vocab_size, width)]
    for _ in range(sizes["layers"]):
        parts.append(nn.Linear(width, width, bias=sizes["bias"]))
    parts.append(nn.Linear(width, vocab_size))
    model = nn.Sequential(*parts)
    {after}
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(3):
        model.train()
        loss = loss_fn(model(None), None)
        loss.backward()
        optimizer.step()
"""


def load(folder: Path, before: str = "", after: str = "", name: str = "", **options) -> LoadedModel:
    text = SCRIPT.format(before=before.replace("\n", "\n    "), after=after.replace("\n", "\n    "))
    (folder / "train.py").write_text(textwrap.dedent(text))
    return load_model(f"{folder / 'train.py'}{name}", fallback={"vocab_size": 40}, **options)


def layers(loaded: LoadedModel) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in loaded.module.parameters()]


PLAIN = [(40, 8), (8, 8), (8, 8), (40, 8), (40,)]


def test_the_variable_is_the_model_and_every_statement_counts_once(tmp_path: Path) -> None:
    loaded = load(tmp_path, seed=3)
    assert layers(loaded) == PLAIN
    assert loaded.provenance.class_name == "model"
    again = load(tmp_path, name=":model", seed=3, config=loaded.provenance.config)
    assert all(torch.equal(a, b) for a, b in zip(loaded.module.parameters(), again.module.parameters(), strict=True))


@pytest.mark.parametrize(
    "after",
    ["model.cuda()", "model = model.to('cuda')", "model = torch.compile(model)", "model = nn.DataParallel(model)"],
)
def test_devices_and_wrappers_are_left_out(tmp_path: Path, after: str) -> None:
    loaded = load(tmp_path, after=after)
    assert isinstance(loaded.module, nn.Sequential)
    assert layers(loaded) == PLAIN
    told = next(f.reason for f in loaded.findings if f.name == "class")
    assert ("nn.DataParallel" in told) == ("DataParallel" in after)


def test_later_changes_of_the_model_count(tmp_path: Path) -> None:
    after = "model[1] = nn.Linear(width, width)\nmodel.apply(lambda m: m is model[0] and m.weight.data.fill_(0.5))"
    loaded = load(tmp_path, after=after)
    assert layers(loaded)[1:3] == [(8, 8), (8,)]
    assert bool((loaded.module[0].weight == 0.5).all())


def test_a_model_around_another_is_the_one(tmp_path: Path) -> None:
    assert layers(load(tmp_path, after="model = nn.Sequential(model, nn.Linear(40, 3))"))[-2:] == [(3, 40), (3,)]
    loaded = load(tmp_path, after="head = nn.Linear(40, 3)\nmodel2 = nn.Sequential(model, head)")
    assert loaded.provenance.class_name == "model2"


def test_what_would_do_work_is_refused_rather_than_left_out(tmp_path: Path) -> None:
    after = "for batch in range(3):\n    model[1] = nn.Linear(width, width)\n    optimizer.step()"
    with pytest.raises(AnyformerError, match=r"defines no torch\.nn\.Module"):
        load(tmp_path, after=after)


def test_a_class_of_the_files_own_comes_first(tmp_path: Path) -> None:
    before = "class Net(nn.Embedding):\n    def __init__(self):\n        super().__init__(9, 2)\n"
    assert layers(load(tmp_path, before=before)) == [(9, 2)]
    assert layers(load(tmp_path, before=before, name=":model")) == PLAIN
