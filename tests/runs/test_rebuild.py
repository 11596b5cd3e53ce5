"""From a run's folder back to the module, after the original was edited or is gone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from anyformer.core.errors import CheckpointError, ConstructError, SourceError
from anyformer.models.callplan import CallPlan
from anyformer.models.source import load_model
from anyformer.runs.checkpoints import DirectoryCheckpointIO
from anyformer.runs.directory import RunDirectory
from anyformer.runs.rebuild import load_run
from anyformer.tokenization import CharacterLevelTokenizer

MODEL = """
from torch import nn
from parts import Head

class Tiny(nn.Module):
    def __init__(self, vocab_size=300, width=4):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.drop = nn.Dropout(0.5)
        self.head = Head(width, vocab_size)
        self.head.weight = self.embed.weight

    def forward(self, input_ids):
        return self.head(self.drop(self.embed(input_ids)))
"""
PARTS = (
    "from torch import nn\n\nclass Head(nn.Linear):\n    def __init__(self, a, b):\n        super().__init__(a, b)\n"
)
PLAN = CallPlan("input_ids", None, None, False, (), 50, 50, None, "decoder", True, ())


def train(tmp_path: Path, model: str | Path | nn.Module, config: dict[str, int] | None = None) -> RunDirectory:
    """A run with two checkpoints, as training leaves it; the weights of step n are those after torch.manual_seed(n)."""
    loaded = load_model(model, config=config)
    run = RunDirectory.create(tmp_path / "runs", "tiny")
    run.store_sources(loaded)
    CharacterLevelTokenizer(50, texts=["abc def"]).save_pretrained(str(run.tokenizer))
    for step in (10, 20):
        torch.manual_seed(step)
        for parameter in loaded.module.parameters():
            nn.init.normal_(parameter)
        state = {f"model.{name}": value for name, value in loaded.module.state_dict().items()}
        folder = run.checkpoints / f"step-{step:08d}"
        DirectoryCheckpointIO().save_checkpoint({"global_step": step, "state_dict": state}, folder)
    run.update(
        model={**loaded.provenance.to_dict(), "parameters": 0, "example": False},
        call_plan=PLAN.to_dict(),
        results={"best_checkpoint": "checkpoints/step-00000010"},
    )
    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "model.py").write_text(MODEL)
    (folder / "parts.py").write_text(PARTS)
    return folder / "model.py"


def weights_of(step: int, rows: int = 50) -> torch.Tensor:
    torch.manual_seed(step)
    return torch.empty(rows, 4).normal_()


def test_best_and_newest_after_the_original_is_gone(tmp_path: Path, source: Path) -> None:
    run = train(tmp_path, source, {"vocab_size": 50})
    for file in source.parent.glob("*.py"):
        file.unlink()
    best, newest = load_run(run.path), load_run(run.path, "newest")
    assert torch.equal(best.module.embed.weight, weights_of(10))
    assert torch.equal(newest.module.embed.weight, weights_of(20))
    assert best.checkpoint.name == "step-00000010"
    assert best.module.head.weight is best.module.embed.weight
    assert not best.module.training
    assert best.plan == PLAN
    assert best.tokenizer.decode(best.tokenizer.encode("abc")) == "abc"
    assert best.provenance.class_name == "Tiny"


def test_a_best_checkpoint_that_is_gone_gives_the_newest(tmp_path: Path, source: Path) -> None:
    run = train(tmp_path, source, {"vocab_size": 50})
    DirectoryCheckpointIO().remove_checkpoint(run.checkpoints / "step-00000010")
    assert load_run(run.path).checkpoint.name == "step-00000020"
    DirectoryCheckpointIO().remove_checkpoint(run.checkpoints / "step-00000020")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_run(run.path)


@pytest.mark.parametrize("name", ["model.py", "parts.py"])
def test_an_edited_copy_is_refused(tmp_path: Path, source: Path, name: str) -> None:
    run = train(tmp_path, source, {"vocab_size": 50})
    with (run.path / "model" / name).open("a") as stream:
        stream.write("# a harmless comment\n")
    with pytest.raises(SourceError, match=rf"{name} was edited"):
        load_run(run.path)
    (run.path / "model" / name).unlink()
    with pytest.raises(SourceError, match=rf"{name} is missing"):
        load_run(run.path)


def test_a_moved_run_loads(tmp_path: Path, source: Path) -> None:
    run = train(tmp_path, source, {"vocab_size": 50})
    moved = run.path.rename(tmp_path / "elsewhere")
    assert torch.equal(load_run(moved).module.embed.weight, weights_of(10))


def test_a_python_object_must_be_passed_again(tmp_path: Path) -> None:
    run = train(tmp_path, nn.Sequential(nn.Embedding(50, 4)))
    with pytest.raises(SourceError, match="Python object") as caught:
        load_run(run.path)
    assert "module=" in str(caught.value)
    loaded = load_run(run.path, module=nn.Sequential(nn.Embedding(50, 4)))
    assert torch.equal(loaded.module[0].weight, weights_of(10))
    with pytest.raises(ConstructError, match="do not fit"):
        load_run(run.path, module=nn.Sequential(nn.Embedding(51, 4)))


def test_an_example(tmp_path: Path) -> None:
    config = {"vocab_size": 50, "block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 4}
    run = train(tmp_path, "example:gpt", config)
    assert load_run(run.path).module(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 50)


def test_an_import_path(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "mypackage_for_rebuild"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(PARTS)
    (package / "model.py").write_text(MODEL.replace("from parts", "from .parts"))
    monkeypatch.syspath_prepend(str(tmp_path))
    run = train(tmp_path, "mypackage_for_rebuild.model:Tiny", {"vocab_size": 50})
    assert torch.equal(load_run(run.path).module.embed.weight, weights_of(10))


def test_no_run_and_a_run_without_a_model(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "early")
    with pytest.raises(SourceError, match="records no model and no call_plan"):
        load_run(run.path)
    with pytest.raises(SourceError, match="is not a run") as caught:
        load_run(tmp_path / "typo")
    assert "early" in str(caught.value)
