"""Values that cannot be used are refused with the setting's name and the value in the message."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import yaml

from anyformer.core.errors import SettingsError
from anyformer.core.settings import DemoSettings, EvaluateSettings, GenerateSettings, RepairSettings, TrainSettings

ALL = [TrainSettings, DemoSettings, EvaluateSettings, GenerateSettings, RepairSettings]


@pytest.mark.parametrize("kind", ALL)
def test_defaults_are_valid_and_frozen(kind: type) -> None:
    settings = kind()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, dataclasses.fields(kind)[0].name, None)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        *((TrainSettings, {name: 0}) for name in ("batch_size", "max_epochs", "max_steps", "vocab_size", "save_top_k")),
        (TrainSettings, {"learning_rate": -1e-3}),
        (TrainSettings, {"val_split": 1.0}),
        (TrainSettings, {"val_split": -0.1}),
        (TrainSettings, {"beta2": 1.0}),
        (TrainSettings, {"label_smoothing": 1.5}),
        (TrainSettings, {"min_lr_ratio": 1.1}),
        (TrainSettings, {"warmup_steps": -1}),
        (TrainSettings, {"gradient_clip_val": -0.5}),
        (TrainSettings, {"max_length": 1}),
        (TrainSettings, {"name": "a/b"}),
        (TrainSettings, {"name": ".hidden"}),
        (TrainSettings, {"wandb": "yes"}),
        (DemoSettings, {"max_steps": 0}),
        (EvaluateSettings, {"batch_size": 0}),
        (GenerateSettings, {"max_tokens": 0}),
        (GenerateSettings, {"temperature": -0.1}),
        (GenerateSettings, {"top_k": 0}),
        (GenerateSettings, {"top_p": 0.0}),
        (GenerateSettings, {"top_p": 1.01}),
        (GenerateSettings, {"num_samples": -2}),
    ],
)
def test_a_refused_value_is_named(kind: type, values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as caught:
        kind(**values)
    ((name, value),) = values.items()
    assert name in caught.value.what
    assert str(value) in caught.value.what


def test_nothing_held_out_is_refused_unless_a_file_is() -> None:
    with pytest.raises(SettingsError, match="val_data"):
        TrainSettings(val_split=0.0)
    assert TrainSettings(val_split=0.0, val_data="held_out.txt").val_split == 0.0


@pytest.mark.parametrize(
    "values", [{"gradient_clip_val": 0.0}, {"warmup_steps": 0}, {"min_lr_ratio": 1.0}, {"seed": 0}]
)
def test_values_at_the_edge_are_taken(values: dict[str, Any]) -> None:
    assert TrainSettings(**values).changed() == values


def test_yaml_round_trip() -> None:
    settings = TrainSettings(data="corpus.txt", precision="32", learning_rate=1e-3, name="novel")
    assert TrainSettings(**yaml.safe_load(yaml.safe_dump(settings.to_dict()))) == settings
    assert settings.changed() == {"data": "corpus.txt", "precision": "32", "learning_rate": 1e-3, "name": "novel"}


def test_a_path_is_taken_where_a_folder_or_file_is_named(tmp_path):
    chosen = TrainSettings(output_dir=tmp_path, val_data=tmp_path / "val.txt", backup=tmp_path)
    assert (chosen.output_dir, chosen.val_data, chosen.backup) == (str(tmp_path), f"{tmp_path}/val.txt", str(tmp_path))
    with pytest.raises(SettingsError, match="batch_size is PosixPath"):
        TrainSettings(batch_size=tmp_path)
