"""What a run says of its data, and whose tokenizer it takes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from anyformer import api
from anyformer.core.view import PlainView, QuietView
from anyformer.models.example_gpt import GPT
from anyformer.runs.rebuild import load_run
from anyformer.tokenization import CharacterLevelTokenizer
from anyformer.training.coordinator import TrainResult
from tests.training.family_models import MeanClassifier, labelled


def test_the_quality_of_examples_is_recorded_and_asked_about(fit: Callable[..., TrainResult]) -> None:
    rows = [{**row, "text": f"{row['text']} {number}"} for number, row in enumerate(labelled())]
    result = fit(MeanClassifier(), dataset=[*rows, *rows[: len(rows) // 3]], max_steps=1, max_length=48)
    (quality,) = [finding for finding in result.findings if finding.name == "data quality"]
    assert quality.verdict == "warn"
    assert quality.measured == "mixed: 25 % of 320 examples have a fault"
    empty = [{"text": "", "label": 1}] * 3 * len(rows)
    result = fit(MeanClassifier(), dataset=[*rows, *empty], max_steps=1, max_length=48)
    assert "data quality asked" in [finding.name for finding in result.findings]


def test_a_hugging_face_folder_brings_its_own_tokenizer(tmp_path: Path) -> None:
    own = CharacterLevelTokenizer(300)
    sizes = {"vocab_size": 300, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path / "model")
    own.save_pretrained(tmp_path / "model")
    result = api.train(
        f"hf:{tmp_path / 'model'}",
        ["a text of several words, and more of them. " * 4 + str(n) for n in range(40)],
        max_steps=1,
        batch_size=2,
        output_dir=str(tmp_path / "runs"),
        view=QuietView(),
    )
    (chosen,) = [finding for finding in result.findings if finding.name == "tokenizer"]
    assert chosen.measured.startswith("the model's own, 300 entries from")
    saved = transformers.AutoTokenizer.from_pretrained(result.run_path / "tokenizer")
    assert saved.get_vocab() == own.get_vocab()


def test_a_vocabulary_that_the_text_cannot_fill_is_shown(tmp_path: Path) -> None:
    shown = io.StringIO()
    result = api.train(
        GPT(vocab_size=3000, block_size=16, n_layer=1, n_head=2, n_embd=16),
        [f"a text of several words, number {n}. " * 3 for n in range(40)],
        max_steps=1,
        batch_size=2,
        max_length=16,
        output_dir=str(tmp_path / "runs"),
        view=PlainView(shown),
    )
    said = shown.getvalue()
    chosen = next(f for f in result.findings if f.name == "tokenizer")
    assert f"· {chosen.reason}" in said
    assert "tokenizer size: asked 3,000, the text gave" in said
    assert f"unused ids: ids {len(result.tokenizer)}–2,999 of the model's 3,000" in said


def test_a_run_opens_the_data_files_that_were_kept_with_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "project" / "hp.json").write_text('{"scale": 3.0}')
    (tmp_path / "elsewhere" / "hp.json").write_text('{"scale": 50.0}')
    (tmp_path / "project" / "model.py").write_text(
        "import json\nimport torch\nfrom torch import nn\n"
        'scale = json.load(open("hp.json"))["scale"]\n'
        "class Net(nn.Module):\n    def __init__(self, vocab_size=300):\n        super().__init__()\n"
        "        self.e, self.head = nn.Embedding(vocab_size, 8), nn.Linear(8, vocab_size)\n"
        "    def forward(self, x):\n        h = self.e(x)\n        steps = torch.arange(1, x.shape[1] + 1)[:, None]\n"
        "        return self.head(scale * h.cumsum(1) / steps)\n"
    )
    monkeypatch.chdir(tmp_path / "project")  # nothing fails there
    text = [f"a text of several words, number {n}. " * 3 for n in range(40)]
    result = api.train("model.py", text, max_steps=1, batch_size=2, max_length=16, view=QuietView())
    assert [f for f in result.findings if f.name == "rebuild" and f.verdict != "ok"] == []
    path = result.run_path.resolve()
    monkeypatch.chdir(tmp_path / "elsewhere")
    module = load_run(path).module
    assert type(module).forward.__globals__["scale"] == 3.0
    assert Path.cwd() == tmp_path / "elsewhere"
