"""Nothing heavy is imported before it is needed: held by the list of modules, since a clock depends on the machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "pytorch_lightning", "transformers", "tokenizers", "datasets", "pyarrow", "pandas", "rich"}

RUN = """
import json, sys
sys.argv = ["anyformer", *{argv!r}]
try:
    {statement}
except SystemExit:
    pass
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""


def imported(statement: str, argv: list[str]) -> set[str]:
    code = RUN.format(argv=argv, statement=statement)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("statement", "argv"),
    [
        ("import anyformer", []),
        ("import anyformer; dir(anyformer); anyformer.TrainSettings", []),
        ("import runpy; runpy.run_module('anyformer', run_name='__main__')", ["--help"]),
        ("import runpy; runpy.run_module('anyformer', run_name='__main__')", ["train", "--help"]),
        ("import runpy; runpy.run_module('anyformer', run_name='__main__')", ["train", "--max_epoch", "3"]),
        ("import runpy; runpy.run_module('anyformer', run_name='__main__')", ["demo", "--print_config"]),
    ],
)
def test_light(statement: str, argv: list[str]) -> None:
    modules = imported(statement, argv)
    assert "anyformer" in modules
    assert not modules & HEAVY
