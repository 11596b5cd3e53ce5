"""Other programs' checkpoint files: tensors come in, code never runs, and what it would have run is named."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from anyformer.core.errors import CheckpointError
from anyformer.runs.foreign import foreign_calls, read_ckpt


class Runs:
    """A pickle of it leaves a file behind when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.command = f"touch {file}"

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


class Net(pl.LightningModule):
    def __init__(self, width: int = 3, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(width, 2)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.hparams["lr"])


@pytest.fixture
def plain_ckpt(tmp_path: Path) -> Path:
    """As a plain Trainer writes it."""
    torch.manual_seed(1)
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 3)), batch_size=4)
    trainer.fit(Net(lr=0.25), data)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    return tmp_path / "plain.ckpt"


def test_a_file_of_lightning_comes_in_whole(plain_ckpt: Path) -> None:
    loaded = read_ckpt(plain_ckpt)
    reference = torch.load(plain_ckpt, weights_only=True)
    assert loaded["hyper_parameters"] == {"width": 3, "lr": 0.25}
    assert loaded["global_step"] == 2
    assert set(loaded) == set(reference)
    assert all(torch.equal(loaded["state_dict"][name], value) for name, value in reference["state_dict"].items())
    moments = loaded["optimizer_states"][0]["state"][0]
    assert torch.equal(moments["exp_avg"], reference["optimizer_states"][0]["state"][0]["exp_avg"])
    assert foreign_calls(plain_ckpt) == []


@pytest.mark.parametrize("form", ["zip", "before 1.6", "protocol 4", "bare pickle", "pathlib of 3.13"])
def test_a_pickle_that_runs_code_is_refused_by_name(tmp_path: Path, form: str) -> None:
    ran, file = tmp_path / "ran", tmp_path / "evil.ckpt"
    content = {"state_dict": {"w": torch.ones(3)}, "hyper_parameters": {"x": Runs(ran)}}
    if form == "bare pickle":
        file.write_bytes(pickle.dumps({"hyper_parameters": Runs(ran)}))
    elif form == "pathlib of 3.13":
        content["hyper_parameters"] = {"folder": argparse.Namespace(path="x")}
        torch.save(content, file)
    else:
        keywords = {"before 1.6": {"_use_new_zipfile_serialization": False}, "protocol 4": {"pickle_protocol": 4}}
        torch.save(content, file, **keywords.get(form, {}))
    with pytest.raises(CheckpointError, match="it is a pickle that runs code") as caught:
        read_ckpt(file)
    expected = "argparse.Namespace" if form.startswith("pathlib") else f"posix.system('touch {ran}')"
    assert expected in caught.value.detail
    assert "state_dict" in caught.value.fix
    assert not ran.exists()


def test_a_name_that_only_looks_like_torch_is_named(tmp_path: Path) -> None:
    class Loads:
        def __reduce__(self) -> Any:
            return torch.load, ("other.pt",)

    torch.save({"a": Loads(), "dtype": torch.bfloat16, "size": torch.Size([2])}, tmp_path / "evil.ckpt")
    assert foreign_calls(tmp_path / "evil.ckpt") == ["torch.serialization.load('other.pt')"]


def test_what_is_named_before_a_cut_is_still_named(tmp_path: Path) -> None:
    file = tmp_path / "cut.ckpt"
    whole = pickle.dumps({"a": Runs(tmp_path / "ran"), "b": list(range(5000))})
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="runs code") as caught:
        read_ckpt(file)
    assert "posix.system" in caught.value.detail


@pytest.mark.parametrize("damage", ["empty", "text", "half", "a list"])
def test_what_is_no_checkpoint_is_said(tmp_path: Path, damage: str, plain_ckpt: Path) -> None:
    file = tmp_path / "bad.ckpt"
    whole = plain_ckpt.read_bytes()
    file.write_bytes({"empty": b"", "text": b"hello", "half": whole[: len(whole) // 2]}.get(damage, b""))
    if damage == "a list":
        torch.save([torch.ones(2)], file)
    with pytest.raises(CheckpointError, match=r"bad\.ckpt (is not a readable checkpoint|holds a list)"):
        read_ckpt(file)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_ckpt(tmp_path / "absent.ckpt")
