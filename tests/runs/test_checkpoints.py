"""Checkpoints: a real Trainer's round trip, and every kind of damage found. Hashes are computed here with hashlib."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from anyformer.core.errors import CheckpointError, CorruptCheckpoint
from anyformer.runs import checkpoints, tensors
from anyformer.runs.checkpoints import (
    DirectoryCheckpointIO,
    list_checkpoints,
    newest_good,
    read_weights,
    verify_checkpoint,
)
from anyformer.runs.leftovers import clear_up


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("brain", torch.arange(4, dtype=torch.bfloat16))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.drop(self.embed(ids)))


class Adapter(pl.LightningModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = Tied()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.losses: list[float] = []

    def _loss(self, ids: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.model(ids), ids)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        self.seen += 1
        loss = self._loss(batch[0])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log("val_loss", self._loss(batch[0]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def fit(folder: Path, max_steps: int, resume: Path | None = None) -> Adapter:
    keep = ModelCheckpoint(
        folder / "checkpoints",
        filename="step-{step:08d}",
        auto_insert_metric_name=False,
        monitor="val_loss",
        save_top_k=-1,
        save_on_train_epoch_end=False,  # a checkpoint of an epoch's last step resumes without a held-out loss
    )
    keep.FILE_EXTENSION = ""
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(11).repeat(4)), batch_size=11)
    pl.seed_everything(1, verbose=False)
    adapter = Adapter()
    trainer = pl.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        plugins=[DirectoryCheckpointIO()],
        callbacks=[keep, EarlyStopping("val_loss", patience=50, check_on_train_epoch_end=False)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(adapter, data, data, ckpt_path=resume)
    return adapter


def save(run: Path, step: int, **more: Any) -> Path:
    torch.manual_seed(step)
    state = {f"model.{name}": value for name, value in Tied().state_dict().items()}
    folder = run / "checkpoints" / f"step-{step:08d}"
    DirectoryCheckpointIO().save_checkpoint({"global_step": step, "state_dict": state, **more}, folder)
    return folder


def test_trainer_saves_and_resumes(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 12)
    assert [entry.name for entry in list_checkpoints(tmp_path / "whole")] == [
        "step-00000012",
        "step-00000008",
        "step-00000004",
    ]
    assert sorted(p.name for p in (tmp_path / "whole/checkpoints/step-00000004").iterdir()) == [
        "MANIFEST.json",
        "model.safetensors",
        "state.pt",
    ]
    resumed = fit(tmp_path / "second", 12, resume=tmp_path / "whole/checkpoints/step-00000004")
    assert len(resumed.losses) == 8
    assert resumed.seen == whole.seen == 12  # the adapter's own buffer came back
    # dropout's random numbers are the coordinator's to restore; without them only the trajectory's size agrees
    torch.testing.assert_close(resumed.model.brain, whole.model.brain, rtol=0, atol=0)
    assert resumed.model.head.weight is resumed.model.embed.weight
    assert not list(tmp_path.glob("**/*.tmp"))


def test_resume_without_dropout_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)
    whole = fit(tmp_path / "whole", 8)
    resumed = fit(tmp_path / "second", 8, resume=tmp_path / "whole/checkpoints/step-00000004")
    assert resumed.losses == whole.losses[4:]  # bit for bit: optimizer, schedule and weights came back
    assert torch.equal(resumed.model.embed.weight, whole.model.embed.weight)


def test_the_safetensors_file_is_the_users_module(tmp_path: Path) -> None:
    folder = save(tmp_path, 7)
    torch.manual_seed(7)
    reference = Tied().state_dict()
    stored = load_file(folder / "model.safetensors")
    assert set(stored) == {"embed.weight", "brain"}  # tied: once
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["aliases"]) == {"head.weight": "embed.weight"}
    weights = read_weights(folder)
    assert set(weights) == set(reference)
    assert all(torch.equal(weights[name], reference[name]) for name in reference)
    assert weights["brain"].dtype == torch.bfloat16


def test_manifest_hashes_are_those_of_the_raw_bytes(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    manifest = verify_checkpoint(folder)
    assert manifest["step"] == 3
    for name in ("model.safetensors", "state.pt"):
        raw = (folder / name).read_bytes()
        assert manifest["files"][name] == {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "MANIFEST.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "append", "remove", "empty"])
def test_damage_is_found(tmp_path: Path, name: str, damage: str) -> None:
    file = save(tmp_path, 1) / name
    raw = bytearray(file.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
    changed = {"flip": raw, "truncate": raw[:-1], "append": raw + b"x", "empty": b"", "remove": b""}[damage]
    file.write_bytes(changed)
    if damage == "remove":
        file.unlink()
    with pytest.raises(CorruptCheckpoint, match=name):
        verify_checkpoint(file.parent)
    with pytest.raises(CorruptCheckpoint):
        DirectoryCheckpointIO().load_checkpoint(file.parent)


def test_every_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    file = save(tmp_path, 1200) / "MANIFEST.json"
    raw = file.read_bytes()
    for position in range(0, len(raw), 3):
        for bit in range(8):
            changed = bytearray(raw)
            changed[position] ^= 1 << bit
            file.write_bytes(changed)
            with pytest.raises(CorruptCheckpoint):
                verify_checkpoint(file.parent)


def test_newest_good_sets_the_damaged_aside(tmp_path: Path) -> None:
    folders = [save(tmp_path, step) for step in (100, 200, 1000)]
    (tmp_path / "checkpoints" / ".step-00002000.abc.tmp").mkdir()
    (tmp_path / "checkpoints" / "notes").mkdir()
    (folders[2] / "state.pt").write_bytes(b"damaged")
    reported: list[tuple[str, str]] = []
    assert newest_good(tmp_path, on_bad=lambda path, error: reported.append((path.name, error.what))) == folders[1]
    assert reported == [("step-00001000.damaged", reported[0][1])]
    assert "state.pt has 7 bytes" in reported[0][1]
    assert list_checkpoints(tmp_path) == [folders[1], folders[0]]
    for folder in folders[:2]:
        (folder / "model.safetensors").unlink()
    with pytest.raises(CorruptCheckpoint, match="none of the 2") as caught:
        newest_good(tmp_path)
    assert "step-00000100" in caught.value.detail
    assert "step-00000200" in caught.value.detail
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        newest_good(tmp_path)


@pytest.mark.parametrize("writer", ["save_file", "save", "sync_file", "write_atomically", "_put_in_place"])
def test_a_full_disk_leaves_earlier_checkpoints_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    earlier = save(tmp_path, 10)
    before = {file.name: file.read_bytes() for file in earlier.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    owner = {"save_file": tensors, "save": torch}.get(writer, checkpoints)
    monkeypatch.setattr(owner, writer, full)
    with pytest.raises(CheckpointError, match="no space left") as caught:
        save(tmp_path, 20)
    assert str(tmp_path / "checkpoints") in str(caught.value)
    assert "earlier checkpoints are untouched (newest: step-00000010)" in str(caught.value)
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]
    assert {file.name: file.read_bytes() for file in earlier.iterdir()} == before


def test_an_interrupt_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "sync_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 20)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5, note="first")
    folder = save(tmp_path, 5, note="second")
    assert DirectoryCheckpointIO().load_checkpoint(folder)["note"] == "second"
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_remove_touches_checkpoints_only(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    other = tmp_path / "thesis"
    other.mkdir()
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        DirectoryCheckpointIO().remove_checkpoint(other)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        DirectoryCheckpointIO().save_checkpoint({"state_dict": {}}, other)
    DirectoryCheckpointIO().remove_checkpoint(folder)
    DirectoryCheckpointIO().remove_checkpoint(folder)  # gone already: fine
    assert not folder.exists()
    assert other.is_dir()


def test_a_removal_that_is_cut_short_leaves_nothing_that_looks_like_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path, 5)

    def killed(path: Path, **_: Any) -> None:
        (Path(path) / "model.safetensors").unlink(missing_ok=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            DirectoryCheckpointIO().remove_checkpoint(folder)
    assert list_checkpoints(tmp_path) == []
    clear_up(tmp_path)
    assert not list(folder.parent.iterdir())


class Colour(Enum):
    RED = "red"


@dataclass
class Options:
    size: int


def test_state_becomes_plain_and_runs_no_code(tmp_path: Path) -> None:
    state = {
        "path": tmp_path,
        "enum": Colour.RED,
        "scalar": np.float32(1.5),
        "array": np.arange(3, dtype=np.int64),
        "options": Options(3),
        "mixed": (1, [2.0, {"set": {3}}], None, b"bytes", torch.float16),
    }
    loaded = DirectoryCheckpointIO().load_checkpoint(save(tmp_path, 1, **state))
    assert loaded["path"] == str(tmp_path)
    assert (loaded["enum"], loaded["scalar"], loaded["options"]) == ("red", 1.5, {"size": 3})
    assert loaded["array"].tolist() == [0, 1, 2]
    assert loaded["mixed"] == state["mixed"]
    with pytest.raises(CheckpointError, match="SimpleNamespace at callbacks/mine/0"):
        save(tmp_path, 2, callbacks={"mine": [SimpleNamespace()]})
    assert [entry.name for entry in list_checkpoints(tmp_path)] == ["step-00000001"]


def test_all_kinds_of_tensors_come_back(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    state = {
        "model.transposed": torch.arange(6.0).view(2, 3).t(),
        "model.slice": base[2:5],
        "model.overlapping": base[4:9],
        "model.empty": torch.empty(0),
        "model.empty_too": torch.empty(0, 3),
        "model.scalar": torch.tensor(3),
        "model.complex": torch.tensor([1 + 2j], dtype=torch.complex128),
        "model._extra_state": {"version": 2},
        "own": torch.ones(2),
    }
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.bool, torch.float8_e4m3fn):
        state[f"model.{dtype}"] = torch.ones(3).to(dtype)
    folder = tmp_path / "checkpoints" / "step-00000001"
    DirectoryCheckpointIO().save_checkpoint({"state_dict": state, "global_step": 1}, folder)
    back = DirectoryCheckpointIO().load_checkpoint(folder)["state_dict"]
    assert set(back) == set(state)
    for name, value in state.items():
        if isinstance(value, Tensor):
            assert back[name].dtype == value.dtype
            assert torch.equal(
                back[name].float() if "float8" in name else back[name], value.float() if "float8" in name else value
            )
        else:
            assert back[name] == value
    assert set(read_weights(folder)) == {name.removeprefix("model.") for name in state} - {"own"}


def test_a_module_without_the_prefix(tmp_path: Path) -> None:
    state = Tied().state_dict()
    folder = tmp_path / "checkpoints" / "step-00000001"
    DirectoryCheckpointIO().save_checkpoint({"state_dict": state}, folder)
    assert set(DirectoryCheckpointIO().load_checkpoint(folder)["state_dict"]) == set(state) == set(read_weights(folder))


def test_what_does_not_read_back_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model.safetensors", "state.pt", "MANIFEST.json"):
        plain = checkpoints.read_back

        def lost(path: Path, expected: str, name: str = name, plain: Any = plain) -> None:
            if path.name == name:  # as if the disk had kept something else
                raw = bytearray(path.read_bytes())
                raw[-2] ^= 1
                path.write_bytes(raw)
            plain(path, expected)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "read_back", lost)
            with pytest.raises(CheckpointError, match="step-00000020 could not be written") as caught:
                save(tmp_path, 20)
        assert f"{name} does not read back as it was written" in str(caught.value)
        assert not list((tmp_path / "checkpoints").iterdir())


def test_a_header_that_was_not_asked_for_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tensors.save_file

    def wrong(given: dict[str, Tensor], path: Path, metadata: Any) -> None:
        plain({name: value.flatten() for name, value in given.items()}, path, metadata)

    monkeypatch.setattr(tensors, "save_file", wrong)
    with pytest.raises(CheckpointError, match=r"header of model\.safetensors does not read back"):
        save(tmp_path, 20)


def test_a_whole_checkpoint_of_another_step_or_run_is_not_taken(tmp_path: Path) -> None:
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"id": name}))
        for step in (1, 2, 3):
            torch.manual_seed(step)
            folder = tmp_path / name / "checkpoints" / f"step-{step:08d}"
            DirectoryCheckpointIO(run_id=name).save_checkpoint(
                {"global_step": step, "state_dict": Tied().state_dict()}, folder
            )
    mine = tmp_path / "mine" / "checkpoints"
    shutil.rmtree(mine / "step-00000003")
    shutil.copytree(tmp_path / "other/checkpoints/step-00000003", mine / "step-00000003")
    shutil.rmtree(mine / "step-00000002")
    shutil.copytree(mine / "step-00000001", mine / "step-00000002")
    told: list[str] = []
    found = newest_good(tmp_path / "mine", on_bad=lambda path, error: told.append(f"{path.name}: {error.what}"))
    assert found == mine / "step-00000001"
    assert told == [
        "step-00000003.damaged: the checkpoint step-00000003 is another run's",
        "step-00000002.damaged: the checkpoint step-00000002 is another one: its manifest is of step 1",
    ]


def test_what_a_killed_process_left_is_cleared_up(tmp_path: Path) -> None:
    folder = save(tmp_path, 5).parent
    save(tmp_path, 6).rename(folder / ".step-00000006.abcd_123.old")  # its successor never came
    shutil.copytree(folder / "step-00000005", folder / ".step-00000005.abcd_123.old")
    for name in (".step-00000007.abcd_123.tmp", ".step-00000001.0123abcd.gone", ".mine"):
        (folder / name).mkdir()
        (folder / name / "state.pt").write_bytes(b"")
    (tmp_path / ".run.json.abcd_123.tmp").write_text("{")
    clear_up(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [".mine", "step-00000005", "step-00000006"]
    assert newest_good(tmp_path).name == "step-00000006"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_what_cannot_be_read_now_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path, 5)

    def failing(number: int) -> None:
        def sha256(path: Path) -> str:
            raise OSError(number, "told so")

        monkeypatch.setattr(checkpoints, "sha256", sha256)

    failing(errno.EMFILE)
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        newest_good(tmp_path)
    assert not isinstance(caught.value, CorruptCheckpoint)
    assert folder.is_dir()
    failing(errno.EIO)
    with pytest.raises(CorruptCheckpoint, match="none of the 1"):
        newest_good(tmp_path)
    assert not folder.exists()


def test_a_state_that_would_run_code_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    torch.save({"evil": SimpleNamespace()}, folder / "state.pt")
    raw = (folder / "state.pt").read_bytes()
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest["files"]["state.pt"] = {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
    manifest["sha256"] = checkpoints._digest(manifest)
    (folder / "MANIFEST.json").write_bytes(checkpoints._text(manifest))
    for load in (DirectoryCheckpointIO().load_checkpoint, read_weights):
        with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
            load(folder)
        assert "SimpleNamespace" in str(caught.value)


def test_a_second_ctrl_c_inside_torchs_writer_stays_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stopped(self: Any, data: Any) -> int:
        try:
            raise Stop
        except Stop as error:
            self.error = error
            raise

    monkeypatch.setattr(checkpoints.HashedFile, "write", stopped)
    with pytest.raises(Stop):
        save(tmp_path, 20)
    assert not list((tmp_path / "checkpoints").iterdir())
