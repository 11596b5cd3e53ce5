"""core and models in an environment that has torch, numpy and pyyaml and nothing else of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak
ROOT = Path(__file__).parent.parent.parent

PROGRAM = """
import sys
import anyformer
from anyformer import ModelSignatureInspector
from anyformer.models.callplan import call_logits, infer_call_plan
from anyformer.models.objectives import causal_lm_loss
from anyformer.models.source import load_model
import torch

loaded = load_model(sys.argv[1])
torch.save(loaded.module.state_dict(), "weights.pt")
loaded = load_model(sys.argv[1], weights="weights.pt")
assert ModelSignatureInspector(loaded.module).get_parameters() == ["ids"]
plan = infer_call_plan(loaded.module)
assert plan.causal and plan.vocab_size == 300, plan
ids = torch.randint(0, 300, (2, 16))
causal_lm_loss(call_logits(loaded.module, plan, ids), ids).backward()
heavy = {"pytorch_lightning", "transformers", "tokenizers", "datasets", "safetensors"}
heavy |= {"rich", "jsonargparse", "pyarrow"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
print("light core works")
"""


def test_the_light_core_runs_on_torch_numpy_and_pyyaml_alone(tmp_path: Path) -> None:
    from tests.test_readme import MODEL

    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", "torch", "numpy", "pyyaml"], check=True)
    subprocess.run([*pip, "--no-deps", ROOT], check=True)
    listed = subprocess.run([python, "-m", "pip", "list"], check=True, capture_output=True, text=True).stdout.lower()
    assert "lightning" not in listed
    assert "transformers" not in listed
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run([python, "program.py", "model.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "light core works" in done.stdout
