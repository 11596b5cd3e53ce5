"""Every command and snippet of docs/training-guide.md runs as written, in order, in one folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from anyformer import cli
from anyformer.core.settings import ReproduceSettings, TrainSettings
from tests.test_readme import MODEL, TEXT

PAGE = Path(__file__).parent.parent / "docs" / "training-guide.md"
GUIDE = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\S[^\n]*)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_model.py").write_text(MODEL)
    Path("corpus.txt").write_text(TEXT[:1800])
    for kind, block in BLOCKS:
        if kind == "python":
            exec(compile(block, PAGE.name, "exec"), {})
            continue
        for line in block.splitlines():
            command = shlex.split(line)[1:]
            if kind == "sh parsed":  # what is not here: a drive, a bucket
                command = [*command, "--print_config"]
            assert cli.main(command) == 0, (line, capfd.readouterr().err)
    out = capfd.readouterr().out
    assert "resumed from step 6" in out
    assert "reproduced: 3 steps, loss curve and weights bit for bit" in out
    assert "True ['my_model.py: as it was'" in out


def test_its_flags_and_links_are_true() -> None:
    known = {*TrainSettings.__dataclass_fields__, *ReproduceSettings.__dataclass_fields__, "config", "help"}
    assert {kind for kind, _ in BLOCKS} == {"sh", "sh parsed", "python"}
    assert set(re.findall(r"--(\w+)", GUIDE)) <= known
    for link in re.findall(r"\]\(([^)#]+)\)", GUIDE):
        assert (PAGE.parent / link).exists(), link
