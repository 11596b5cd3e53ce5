"""What finding a call plan costs, in a process of its own: seconds, and memory above what loading the model took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.soak

TESTS = Path(__file__).parent.parent
MEASURE = """
import json, resource, sys, time
from anyformer.models.callplan import infer_call_plan
from anyformer.models.source import load_model
module = load_model(sys.argv[1]).module
before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
plan = infer_call_plan(module)
seconds, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "mebibytes": (after - before) / 1024, "causal": plan.causal,
                  "parameters": sum(p.numel() for p in module.parameters()), "longest": plan.max_positions}))
"""


@pytest.mark.parametrize(
    ("file", "seconds", "parameters"),
    [
        ("zoo/builder_two_blocks.py", 5, 0),
        ("zoo/seq2seq_masks.py", 5, 0),
        ("models/builder_exports/twelve_blocks.py", 60, 124_000_000),
    ],
)
def test_a_plan_takes_seconds_and_little_memory(file: str, seconds: float, parameters: int) -> None:
    command = [sys.executable, "-c", MEASURE, str(TESTS / file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["causal"]
    assert measured["parameters"] >= parameters
    assert measured["longest"]
    assert measured["seconds"] <= seconds, measured
    assert measured["mebibytes"] <= 300, measured
