"""Models that cannot be trained: each ends in one message that names the cause and, where there is one, the line."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from anyformer import api
from anyformer.core.errors import (
    AnyformerError,
    CallError,
    ConstructError,
    DependencyError,
    SettingsError,
    SourceError,
    TrainingError,
)
from anyformer.core.view import QuietView
from anyformer.models.files import pyfile

FOLDER = Path(__file__).parent.parent / "broken"
WORDS = "the cat sat on a mat and ran far away from one big dog " * 120


@dataclass(frozen=True)
class Broken:
    """A file that is broken in one way."""

    name: str
    error: type[AnyformerError] | tuple[type[AnyformerError], ...]
    says: tuple[str, ...]
    """Regular expressions that the message matches, whatever the case."""
    line: str = ""
    """Text of the line that is to blame: the message holds ``name.py:NUMBER`` of it."""
    class_name: str = ""
    vocab_size: int | None = None
    """What the user asks for; otherwise the model's."""


EARLY = (SourceError, ConstructError)
"""What fails while the file is loaded, or in the model that needs what was left out then."""
# fmt: off
BROKEN = (
    Broken("syntax_error", SourceError, ("is not Python", "never closed"), "self.head = nn.Linear(16, 60"),
    Broken("smart_quotes", SourceError, ("quotes", "plain"), "kind = “decoder”"),
    Broken("bad_indent", SourceError, ("indent",), "  self.head = nn.Linear(16, 60)"),
    Broken("unclosed_string", SourceError, ("unterminated",), '"""A model.'),
    Broken("binary", SourceError, ("not a text file",)),
    Broken("empty", ConstructError, ("empty|no torch.nn.Module|no class",)),
    Broken("only_functions", ConstructError, ("no torch.nn.Module", "attention")),
    Broken("misspelt_class", ConstructError, ("TransfomerModel", "TransformerModel"), class_name="TransfomerModel"),
    Broken("two_models", ConstructError, ("SmallModel", "LargeModel")),
    Broken("missing_package", DependencyError, ("rotary_of_somebody", "pip install"), "from rotary_of_somebody"),
    Broken("missing_nn", SourceError, ("NameError", r"'nn'"), "class Model(nn.Module)"),
    Broken("missing_sibling", SourceError, ("my_layers",), "from .my_layers import Block"),
    Broken("exits", EARLY, ("ends the program|exit", "torchrun"), "sys.exit("),
    Broken("asks", EARLY, ("input|asks",), "size = int(input("),
    Broken("endless_import", EARLY, ("seconds|vocabulary",), "vocabulary"),
    Broken("no_super", ConstructError, (r"super\(\)|__init__\(\)",), "self.emb ="),
    Broken("heads_do_not_divide", ConstructError, ("divisible",), "self.attn ="),
    Broken("raises_in_init", ConstructError, ("n_layers must be even, got 3",), "raise ValueError"),
    Broken("unknown_object", ConstructError, ("tokenizer",)),
    Broken("huge", ConstructError, ("GiB|GB|TB|TiB", "mix", "1,000,1")),
    Broken("cuda_in_init", ConstructError, ("cuda",), "self.emb ="),
    Broken("cuda_in_forward", CallError, ("cuda",), "positions ="),
    Broken("undefined_name", CallError, ("NameError", "scale"), "return self.head(x * scale)"),
    Broken("undefined_attribute", CallError, ("layer_norm",), "x = self.layer_norm(x)"),
    Broken("infinite", CallError, ("infinite logits",)),
    Broken("leaves_in_forward", CallError, ("ends the program",), "os._exit(0)"),
    Broken("one_token_at_a_time", CallError, ("one token at a time",), "assert T == 1"),
    Broken("second_tensor", CallError, ("adjacency",)),
    Broken("returns_none", CallError, ("None",)),
    Broken("no_forward", CallError, ("forward",)),
    Broken("no_head", CallError, ("hidden states", r"nn\.Linear\(16, 60\)")),
    Broken("takes_vectors", CallError, ("holds no embedding", "takes vectors"), "self.transformer(src, tgt)"),
    Broken("no_parameters", CallError, ("has no parameters", "in __init__"), "nn.Linear(7, 60)(x)"),
    Broken("widths_do_not_fit", CallError, ("24", "16"), "return self.head(x)"),
    Broken("argmax", CallError, ("int64", "no logits|gave logits")),
    Broken("returns_numpy", CallError, ("numpy|ndarray",)),
    Broken("ignores_ids", CallError, ("do not depend on ids",)),
    Broken("embedding_of_floats", CallError, ("float", "indices"), "return self.head(self.emb(scaled))"),
    Broken("recursion", CallError, ("recursion",), "return self.step(ids)"),
    Broken("builds_itself", ConstructError, ("without end",), "self.inner = Block(d)"),
    Broken("no_rows", CallError, ("emb of Model has no rows", "vocab_size: 0")),
    Broken("nan_weights", CallError, ("NaN", r"\bscale\b")),
    Broken("nan_mask_row", CallError, ("NaN", "mask")),
    Broken("softmax_over_batch", CallError, ("row|batch",)),
    Broken("vocabulary_beyond_embedding", SettingsError, (r"\b90\b", r"\b120\b"), vocab_size=120),
    Broken("layers_in_a_list", CallError, ("blocks", "ModuleList")),
    Broken("overwrites_ids", CallError, ("ids", "in place|overwrites|changes its input|modif")),
    Broken("no_grad", CallError, ("gradient",)),
    Broken("detached", CallError, ("gradient", "detach")),
    Broken("frozen", CallError, ("requires",)),
    Broken("inplace_autograd", (CallError, TrainingError), ("in-?place",), "gate"),
    Broken("fails_in_training", CallError, ("drop_rate", "training mode"), "p=self.drop_rate"),
    Broken("sees_the_future", CallError, ("token", "future|later|earlier")),
)
# fmt: on


def numbers(name: str, text: str) -> list[int]:
    """Lines of the file that hold the text."""
    path = next(p for p in FOLDER.glob(f"{name}.*") if p.suffix in (".py", ".txt"))
    lines = path.read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(lines, 1) if text in line]


def test_every_file_is_tried_and_there_are_enough() -> None:
    files = sorted(path.stem for path in FOLDER.iterdir() if path.suffix in (".py", ".txt"))
    assert files == sorted(broken.name for broken in BROKEN)
    assert len(files) >= 28


@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: b.name)
def test_it_ends_in_one_message_and_nothing_is_trained(
    broken: Broken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pyfile, "IMPORT_SECONDS", 0.5, raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    source = next(p for p in FOLDER.glob(f"{broken.name}.*") if p.suffix in (".py", ".txt"))
    path = tmp_path / f"{broken.name}.py"
    shutil.copy(source, path)
    Path("corpus.txt").write_text(WORDS)
    model = f"{path}:{broken.class_name}" if broken.class_name else str(path)
    with pytest.raises(AnyformerError) as caught:
        api.train(
            model,
            "corpus.txt",
            max_steps=2,
            batch_size=4,
            max_length=16,
            vocab_size=broken.vocab_size,
            precision="32",
            use_gpu=False,
            output_dir="out",
            view=QuietView(),
        )
    message = str(caught.value)
    assert isinstance(caught.value, broken.error), message
    for words in broken.says:
        assert re.search(words, message, re.IGNORECASE), f"{words} is not in:\n{message}"
    assert "Traceback" not in message
    assert "Traceback" not in capfd.readouterr().err
    if broken.line:
        places = [f"{broken.name}.py:{n}" for n in numbers(broken.name, broken.line)]
        assert any(re.search(rf"{re.escape(place)}\b", message) for place in places), f"{places} is not in:\n{message}"
    for record in Path("out").rglob("run.json"):
        assert json.loads(record.read_text())["state"] != "finished"
    assert not list(Path("out").rglob("model.safetensors"))
