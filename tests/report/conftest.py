"""A run's folder as training would leave it: decaying curves, three moments of samples, a manifest of the schema."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anyformer.core.settings import TrainSettings
from anyformer.runs.directory import RunDirectory
from anyformer.runs.table import COLUMNS

COMMAND = "anyformer train example:gpt --data python-stdlib --max_steps 2000 --learning_rate 0.0012 --name demo"

FINDINGS = [
    ("tokens", "ok", "input_ids (B, T) int64", "one argument that takes ids", "the only one that accepts integers"),
    ("causality", "ok", "∂logits[t]/∂token[>t] = 0 at 12 positions", "no change before position t", ""),
    ("positions", "note", "runs up to 256, raises beyond", "", "sequences are cut to 256 tokens"),
    ("precision", "note", "fp32; bf16 was 2.0 × slower here", "", "measured on this device: 3 steps each"),
    ("vocabulary", "ok", "4,096 entries for 4,096 embedding rows", "no id beyond the embedding", ""),
    ("short documents", "warn", "37 of 1,523 documents are shorter than one block", "", "packed together with others"),
]


def manifest(**changes: Any) -> dict[str, Any]:
    settings = TrainSettings(max_steps=2000, learning_rate=1.2e-3, name="demo", batch_size=16)
    record = {
        "command": COMMAND,
        "seed": 42,
        "model": {
            "kind": "example",
            "location": "example:gpt",
            "class_name": "GPT",
            "files": {"example_gpt.py": "3f2a9c0d" * 8},
            "config": {"vocab_size": 4096, "block_size": 256},
            "parameters": 1_912_320,
            "example": True,
        },
        "data": {
            "name": "python-stdlib",
            "description": "1,604 files, 23 MB",
            "fingerprint": "b7e151628aed2a6abf7158809cf4f3c7",
            "train": {"documents": 1523, "bytes": 21_804_112, "tokens": 6_744_901},
            "val": {"documents": 81, "bytes": 1_211_950, "tokens": 371_202},
        },
        "tokenizer": {"kind": "bpe", "size": 4096, "seconds": 1.13},
        "call_plan": {
            "token_arg": "input_ids",
            "mask_arg": None,
            "targets_arg": None,
            "needs_targets": False,
            "logits_path": [],
            "vocab_size": 4096,
            "embedding_rows": 4096,
            "max_positions": 256,
            "family": "decoder",
            "causal": True,
            "findings": [],
        },
        "findings": [
            dict(zip(("name", "verdict", "measured", "expected", "reason"), finding, strict=True))
            for finding in FINDINGS
        ],
        "settings": settings.to_dict(),
        "effective": {
            "learning_rate": 0.0012,
            "warmup_steps": 100,
            "total_steps": 2000,
            "max_length": 256,
            "precision": "32",
            "eval_every": 200,
            "device": "cpu",
        },
        "state": "finished",
        "created": "2026-03-14T09:26:53+00:00",
        "finished": "2026-03-14T09:29:31+00:00",
        "seconds": 158.2,
        "results": {
            "val_loss": 3.0812,
            "perplexity": 21.785,
            "bits_per_byte": 1.3093,
            "unigram_entropy": 6.0187,
            "bigram_entropy": 3.5533,
            "beats_bigram": True,
            "tokens_per_second": 11_312.4,
            "steps": 2000,
            "train_seconds": 149.8,
            "best_checkpoint": "checkpoints/step-00002000",
        },
        "error": None,
    }
    return {**record, **changes}


def curves(steps: int = 2000, every: int = 10) -> list[dict[str, float]]:
    """Rows of metrics: a power law towards 3.0 with the noise of small batches, warm-up and cosine, steady speed."""
    noise = random.Random(0)
    rows: list[dict[str, float]] = []
    for step in range(every, steps + 1, every):
        clean = 2.553 + 5.7 * (1 + step / 25) ** -0.55
        share = (step - 100) / max(1, steps - 100)
        rate = 1.2e-3 * (step / 100 if step <= 100 else 0.1 + 0.45 * (1 + math.cos(math.pi * share)))
        row = {
            "step": step,
            "epoch": 0,
            "seconds": step * 0.074,
            "train_loss": clean + noise.gauss(0, 0.05),
            "learning_rate": rate,
            "grad_norm": 0.4 + 2 / (1 + step / 50),
            "tokens_per_second": 11_300 + noise.gauss(0, 160) - (1500 if step == every else 0),
        }
        if step % 200 == 0:
            row["val_loss"] = clean + 0.02
            row["val_perplexity"] = math.exp(clean + 0.02)
        rows.append(row)
    return rows


SAMPLES = {
    "def read_lines(": [
        "def read_lines(��erre ##_ assign(((\n\n\n  self tim*****oct self Nz in\nif of==== the retur",
        'def read_lines(self, name):\n    """Return the the name of the object."""\n    return self.name\n',
        'def read_lines(self, name):\n    """The lines."""\n    with open(name) as f:\n        return f.readlines()\n',
    ],
    "class <script>alert(1)</script>": [
        "class <script>alert(1)</script>" + "x1 9_ _9" * 12,
        "class <script>alert(1)</script>(object):\n    pass\n",
        "class <script>alert(1)</script>(Base):\n    def __init__(self):\n        super().__init__()\n",
    ],
    "import ": [
        "import aver\n(in\n\n))) 00 self",
        "import sys\nimport os\nimport sys\n",
        "import os\nimport sys\n\nfrom typing import Any\n",
    ],
}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Builds a run's folder; rows and samples may be replaced, and any field of the manifest."""

    def make(*, rows: list[dict[str, float]] | None = None, samples: bool = True, **changes: Any) -> Path:
        run = RunDirectory.create(tmp_path / "runs", "demo")
        run.update(**manifest(**changes))
        run.write_settings(run.manifest["settings"])
        (run.checkpoints / "step-00002000").mkdir()
        rows = curves() if rows is None else rows
        lines = [",".join(COLUMNS)] + [",".join(repr(row[c]) if c in row else "" for c in COLUMNS) for row in rows]
        (run.path / "metrics" / "metrics.csv").write_text("\n".join(lines) + "\n")
        if samples:
            for index, step in enumerate((0, 1000, 2000)):
                for prompt, texts in SAMPLES.items():
                    run.append_sample(step, prompt, texts[index])
        return run.path

    return make
