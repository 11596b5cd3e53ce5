"""Where the settings of a resumed run come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from anyformer.core.errors import SettingsError
from anyformer.core.settings import TrainSettings
from anyformer.ui.flags import parse

STORED = TrainSettings(data="corpus.txt", batch_size=4, max_epochs=2)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/a")
    (folder / "checkpoints" / "step-00000040").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "settings.yaml").write_text(yaml.safe_dump(STORED.to_dict()), encoding="utf-8")
    return folder


def train(*argv: str) -> TrainSettings:
    settings = parse("train", "", "MODEL", TrainSettings, argv).settings
    assert isinstance(settings, TrainSettings)
    return settings


@pytest.mark.parametrize("named", ["runs/a", "runs/a/checkpoints/step-00000040", "runs/a/checkpoints"])
def test_a_run_or_a_checkpoint_in_it(run: Path, named: str) -> None:
    for argv in (["--resume", named], [f"--resume={named}"]):
        assert train(*argv, "--max_epochs", "5") == dataclasses.replace(STORED, max_epochs=5, resume=named)


def test_a_run_that_is_not_there(run: Path) -> None:
    with pytest.raises(SettingsError, match="cannot resume runs/b: there is no such folder") as caught:
        train("--resume", "runs/b")
    assert caught.value.fix == "runs in runs: a"
    (run / "settings.yaml").unlink()
    with pytest.raises(SettingsError, match=r"cannot resume runs/a: runs/a has no settings\.yaml"):
        train("--resume", "runs/a")


def test_settings_that_cannot_be_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "settings.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(SettingsError, match=r"the settings file runs/a/settings\.yaml cannot be read"):
        train("--resume", "runs/a")
    with pytest.raises(SettingsError, match="the settings file is not UTF-8"):
        train("--config", "runs/a/settings.yaml")

    def refused(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refused)
        with pytest.raises(SettingsError, match="Permission denied"):
            train("--resume", "runs/a")
