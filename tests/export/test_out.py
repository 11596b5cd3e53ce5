"""``anyformer export``: formats side by side, folders, what is there already, exporters for notebooks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anyformer
from anyformer import api, cli
from anyformer.core.errors import ExportError, SettingsError
from anyformer.core.settings import ExportSettings
from anyformer.core.view import QuietView
from anyformer.export.exporters import ONNXExporter, TorchScriptExporter
from anyformer.runs.rebuild import load_run
from tests.export.test_formats import Block, V, entry_of

Capture = pytest.CaptureFixture[str]


def test_formats_side_by_side_and_one_that_fails(tmp_path: Path, capsys: Capture) -> None:
    model, folder = str(entry_of("start_pos").path), tmp_path / "out"
    assert cli.main(["export", model, "--to", "onnx,torchscript", "--output_dir", str(folder), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [file["format"] for file in told["files"]] == ["torchscript"]
    assert [path.name for path in folder.iterdir()] == ["model.torchscript"]
    first, second = told["findings"]
    assert (first["name"], first["verdict"], first["measured"]) == ("onnx", "fail", "not written")
    assert "complex" in first["reason"]
    assert (second["name"], second["verdict"]) == ("torchscript", "ok")
    assert "unseen shapes" in second["reason"]


def test_what_is_there_is_kept_until_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, settings = Block(), ExportSettings(to="torchscript", output_dir=str(tmp_path))
    (written,) = api.export(module, settings=settings).files
    old = Path(written["output_path"]).read_bytes()
    with pytest.raises(ExportError, match="is there already") as caught:
        api.export(module, settings=settings)
    assert "--overwrite true" in caught.value.fix
    again = ExportSettings(to="torchscript", output_dir=str(tmp_path), overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(torch.jit, "trace", lambda *_, **__: 1 / 0)
        patch.setattr(torch.jit, "script", lambda *_, **__: 1 / 0)
        done = api.export(module, settings=again)
    assert [finding.verdict for finding in done.findings] == ["fail"]
    assert Path(written["output_path"]).read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["model.torchscript"]
    api.export(Block(length=40), settings=again)
    assert Path(written["output_path"]).read_bytes() != old


def test_a_run_is_exported_with_its_trained_weights(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self, vocab_size=300, d=16):\n        super().__init__()\n"
        "        self.words = nn.Embedding(vocab_size, d)\n        self.mix = nn.GRU(d, d, batch_first=True)\n"
        "        self.out = nn.Linear(d, vocab_size)\n\n"
        "    def forward(self, ids):\n        return self.out(self.mix(self.words(ids))[0])\n"
    )
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog sat on the log. " * 400)
    run = anyformer.train(
        tmp_path / "model.py",
        data=tmp_path / "text.txt",
        max_steps=5,
        max_length=32,
        precision="32",
        output_dir=str(tmp_path / "runs"),
        view=QuietView(),
    )
    done = api.export(run.run_path, settings=ExportSettings(to="torchscript"))
    (file,) = done.files
    assert Path(file["output_path"]) == run.run_path / "export" / "model.torchscript"
    ids = torch.randint(0, 300, (2, 7))
    with torch.no_grad():
        wanted = load_run(run.run_path).module(ids)
        assert torch.allclose(torch.jit.load(file["output_path"])(ids), wanted, atol=1e-5)


class Adapter(nn.Module):
    """What a UniversalModelAdapter is to an exporter."""

    def __init__(self, model: nn.Module, call_plan: Any) -> None:
        super().__init__()
        self.model, self.call_plan = model, call_plan

    def forward(self, ids: Tensor) -> Tensor:
        raise AssertionError("it is the model that is exported")


@pytest.mark.parametrize("exporter", [ONNXExporter(validate=True), TorchScriptExporter()])
def test_exporters_take_an_adapter_and_say_what_they_measured(
    exporter: ONNXExporter | TorchScriptExporter, tmp_path: Path
) -> None:
    module = Block()
    adapter = Adapter(module, anyformer.infer_call_plan(module))
    result = exporter.export(adapter, tmp_path / "model.bin", vocab_size=V, max_seq_len=40)
    assert sorted(result) == [
        *("benchmark", "file_size_mb", "inputs", "mode", "opset", "output_path", "validation"),
    ]
    speed = result["benchmark"]
    assert speed["speedup"] == pytest.approx(speed["pytorch_ms"] / speed["exported_ms"])
    assert result["validation"]["max_error"] < 1e-5
    assert result["file_size_mb"] == pytest.approx((tmp_path / "model.bin").stat().st_size / 1e6)


def test_sizes_that_are_not_the_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="vocab_size is 50,257, the model's logits are 31 wide"):
        ONNXExporter().export(Block(), tmp_path / "model.onnx", vocab_size=50257)
    with pytest.raises(ExportError, match="max_seq_len is 512, the model takes 48"):
        TorchScriptExporter().export(Block(), tmp_path / "model.pt", max_seq_len=512)
    with pytest.raises(ExportError, match="a str is no model"):
        ONNXExporter().export("model.py", tmp_path / "model.onnx")
    with pytest.raises(SettingsError, match="there is no format 'onxx'"):
        ExportSettings(to="onxx")
    assert list(tmp_path.iterdir()) == []
