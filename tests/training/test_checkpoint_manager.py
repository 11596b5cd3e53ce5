"""CheckpointManager in a plain ``pl.Trainer``: what it saves, finds, loads, removes and copies elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor, nn

from anyformer import CheckpointManager, DriveBackupCallback, UniversalModelAdapter
from anyformer.core.errors import CheckpointError, ConstructError, CorruptCheckpoint, DataNotFound, SettingsError
from anyformer.core.view import QuietView
from anyformer.runs.checkpoints import verify_checkpoint
from anyformer.training.coordinator import TrainResult
from tests.training.small_models import Small

SCORES = [5.0, 2.0, 4.0, 1.0, 3.0, 6.0]
NAMES = [f"step-{2 * epoch + 2:08d}" for epoch in range(len(SCORES))]


class Net(pl.LightningModule):
    """Two batches an epoch, dropout, and the scores above one after another."""

    def __init__(self, width: int = 3, lr: float = 0.1, score: str = "val_loss") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(width, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.dropout(x))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return (self(batch[0]) - 1).square().mean()

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log(self.hparams["score"], SCORES[min(self.current_epoch, len(SCORES) - 1)])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.hparams["lr"])


def data() -> Any:
    x = torch.arange(24.0).view(8, 3) / 24
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=4, shuffle=True)


def fit(
    callbacks: Any, epochs: int = 6, net: Net | None = None, resume: str | None = None, validate: bool = True
) -> Net:
    torch.manual_seed(3)
    net = net or Net()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(net, data(), data() if validate else None, ckpt_path=resume)
    return net


def manager(folder: Path, **more: Any) -> CheckpointManager:
    return CheckpointManager(folder / "ckpt", view=QuietView(), **more)


def names(paths: list[str]) -> list[str]:
    return [Path(path).name for path in paths]


def flip(folder: Path, name: str = "model.safetensors") -> None:
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)


@pytest.mark.parametrize(
    ("top_k", "mode", "kept", "best"),
    [
        (2, "min", [1, 3, 4, 5], 3),
        (1, "max", [4, 5], 5),
        (2, "max", [0, 4, 5], 5),
        (0, "min", [4, 5], 5),
        (-1, "min", [0, 1, 2, 3, 4, 5], 3),
    ],
)
def test_the_best_and_the_newest_are_kept(tmp_path: Path, top_k: int, mode: Any, kept: list[int], best: int) -> None:
    one = manager(tmp_path, save_top_k=top_k, mode=mode)
    assert one.list_checkpoints() == []
    assert one.get_best_checkpoint_path() is None
    fit([one.get_callback()])
    for two in (one, manager(tmp_path, save_top_k=top_k, mode=mode)):  # in this session, and in another
        assert names(two.list_checkpoints()) == [NAMES[number] for number in reversed(kept)]
        assert two.get_best_checkpoint_path() == str(tmp_path / "ckpt" / NAMES[best])
        if top_k:
            ranked = sorted(range(6), key=lambda number: SCORES[number] * (1 if mode == "min" else -1))
            ranked = ranked if top_k < 0 else ranked[:top_k]
            ranked += [number for number in reversed(kept) if number not in ranked]
            assert names(two.list_checkpoints("metric")) == [NAMES[number] for number in ranked]
    for path in one.list_checkpoints():
        assert set(verify_checkpoint(path)["files"]) == {"model.safetensors", "state.pt"}


def test_a_resumed_trainer_ends_like_one_that_never_stopped(tmp_path: Path) -> None:
    whole = fit([manager(tmp_path / "a").get_callback()], epochs=4)
    first = manager(tmp_path / "b")
    fit([first.get_callback()], epochs=2)
    second = manager(tmp_path / "b")
    (newest, *_) = second.list_checkpoints()
    torch.manual_seed(99)
    resumed = fit([second.get_callback()], epochs=4, net=Net(), resume=newest)
    assert torch.equal(resumed.layer.weight, whole.layer.weight)  # dropout and the order of the data went on
    assert names(second.list_checkpoints()) == names(manager(tmp_path / "a").list_checkpoints())


def test_other_files_of_the_same_trainer_stay_what_they_are(tmp_path: Path) -> None:
    plain = ModelCheckpoint(tmp_path / "plain", save_top_k=1, monitor="val_loss")
    net = fit([manager(tmp_path).get_callback(), plain], epochs=2)
    (file,) = (tmp_path / "plain").iterdir()
    assert file.is_file()
    assert torch.load(file, weights_only=True)["global_step"] == 4
    net.trainer.save_checkpoint(tmp_path / "own.ckpt")
    assert (tmp_path / "own.ckpt").is_file()
    fit([manager(tmp_path).get_callback()], epochs=3, resume=str(tmp_path / "own.ckpt"))  # a plain file, imported


def test_a_trainer_without_evaluation_saves_after_each_epoch(tmp_path: Path) -> None:
    one = manager(tmp_path)
    fit([one.get_callback()], epochs=3, validate=False)
    assert names(one.list_checkpoints()) == [NAMES[2], NAMES[1]]
    assert one.get_best_checkpoint_path() == one.list_checkpoints()[0]


def test_loading_gives_the_best_weights(tmp_path: Path) -> None:
    one = manager(tmp_path)
    fit([one.get_callback()])
    best = load_file(tmp_path / "ckpt" / NAMES[3] / "model.safetensors")
    checkpoint = one.load_checkpoint()
    assert checkpoint["global_step"] == 8
    assert torch.equal(checkpoint["state_dict"]["layer.weight"], best["layer.weight"])
    assert one.load_checkpoint(NAMES[5])["global_step"] == 12
    for two in (one, manager(tmp_path)):
        net = two.load_model_from_checkpoint(Net)
        assert torch.equal(net.layer.weight, best["layer.weight"])
        assert not net.training
    assert net.hparams == {"width": 3, "lr": 0.1, "score": "val_loss"}
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        one.load_checkpoint("step-00000099")
    with pytest.raises(ConstructError, match="do not fit Other"):
        one.load_model_from_checkpoint(Other)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        manager(tmp_path / "empty").load_checkpoint()


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)


def test_damaged_ones_give_way_and_are_set_aside(tmp_path: Path) -> None:
    one = manager(tmp_path)
    fit([one.get_callback()])
    flip(tmp_path / "ckpt" / NAMES[3])  # the best
    assert names([one.get_best_checkpoint_path() or ""]) == [NAMES[1]]
    flip(tmp_path / "ckpt" / NAMES[5], "state.pt")  # the newest
    two = manager(tmp_path)
    assert names([two.get_best_checkpoint_path() or ""]) == [NAMES[1]]
    aside = sorted(path.name for path in (tmp_path / "ckpt").iterdir() if path.name.endswith(".damaged"))
    assert aside == [f"{NAMES[3]}.damaged", f"{NAMES[5]}.damaged"]
    for path in two.list_checkpoints():
        flip(Path(path))
    with pytest.raises(CorruptCheckpoint, match="none of the"):
        two.get_best_checkpoint_path()


@pytest.fixture(scope="module")
def all_six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("six")
    fit([manager(folder, save_top_k=-1).get_callback()])
    return folder / "ckpt"


@pytest.mark.parametrize("keep", [0, 1, 2, 3, 9, -1])
@pytest.mark.parametrize("damaged", [None, 3, 5])
def test_cleaning_up_never_removes_the_newest_good_or_the_best(
    tmp_path: Path, all_six: Path, keep: int, damaged: int | None
) -> None:
    shutil.copytree(all_six, tmp_path / "ckpt")
    if damaged is not None:
        flip(tmp_path / "ckpt" / NAMES[damaged])
    (tmp_path / "ckpt" / "notes").mkdir()
    two = manager(tmp_path)
    removed = two.cleanup_old_checkpoints(keep_top_k=keep)
    good = [number for number in range(6) if number != damaged]
    ranked = sorted(good, key=lambda number: SCORES[number])
    expected = set(range(6)) if keep < 0 else {*ranked[:keep], max(good), ranked[0]}
    assert {path.name for path in (tmp_path / "ckpt").iterdir() if path.name in NAMES} == {NAMES[n] for n in expected}
    assert set(names(removed)) == {NAMES[n] for n in set(good) - expected}
    assert (tmp_path / "ckpt" / "notes").is_dir()


def test_the_info_names_the_best_and_the_newest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = manager(tmp_path)
    fit([one.get_callback()])
    torch.save({}, tmp_path / "ckpt" / "old.ckpt")
    capsys.readouterr()
    manager(tmp_path).print_checkpoint_info()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"4 checkpoints in {tmp_path / 'ckpt'}"
    assert lines[1].startswith(f"  {NAMES[5]}")
    assert lines[1].endswith("no score  (newest)")
    (best,) = [line for line in lines if line.endswith("(best)")]
    assert NAMES[3] in best
    assert "val_loss 1.0000" in best
    assert "and 1 .ckpt file:" in lines[-1]


def test_a_plain_file_becomes_a_checkpoint_with_hashes(tmp_path: Path) -> None:
    plain = ModelCheckpoint(tmp_path / "plain", filename="old")
    net = fit([plain], epochs=2)
    one = manager(tmp_path)
    path = one.import_checkpoint(tmp_path / "plain" / "old.ckpt")
    assert names([path]) == ["step-00000004"]
    verify_checkpoint(path)
    assert torch.equal(one.load_model_from_checkpoint(Net).layer.weight, net.layer.weight)
    file_too = one.load_model_from_checkpoint(Net, tmp_path / "plain" / "old.ckpt")
    assert torch.equal(file_too.layer.weight, net.layer.weight)
    with pytest.raises(CheckpointError, match="is there already"):
        one.import_checkpoint(tmp_path / "plain" / "old.ckpt")
    resumed = fit([one.get_callback()], epochs=3, resume=path)
    assert resumed.trainer.global_step == 6

    class Runs:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"state_dict": {}, "hyper_parameters": {"x": Runs()}}, tmp_path / "evil.ckpt")
    for use in (one.import_checkpoint, one.load_checkpoint):
        with pytest.raises(CheckpointError, match="runs code") as caught:
            use(tmp_path / "evil.ckpt")
        assert "posix.system" in caught.value.detail
    with pytest.raises(CheckpointError, match="runs code"):
        fit([manager(tmp_path).get_callback()], resume=str(tmp_path / "evil.ckpt"))
    assert not (tmp_path / "ran").exists()


def test_a_constructor_named_in_a_checkpoint_is_not_called(tmp_path: Path) -> None:
    """Lightning's own way imports what ``_instantiator`` names (CVE-2026-58659)."""
    one = manager(tmp_path)
    net = Net()
    kept = {"width": 3, "_instantiator": "os.system", "other": 1}
    file = tmp_path / "a.ckpt"
    torch.save({"state_dict": net.state_dict(), "hyper_parameters": kept}, file)
    assert torch.equal(one.load_model_from_checkpoint(Net, file).layer.weight, net.layer.weight)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(CheckpointError, match="Needs cannot be made"):
        one.load_model_from_checkpoint(Needs, file)


class Needs(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()


def test_the_adapter_comes_back_in_this_session_and_in_the_next(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = manager(tmp_path, save_top_k=1)
    ids = torch.randint(0, 40, (8, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    rows = [{name: value[row] for name, value in batch.items()} for row in range(8)]
    loader = torch.utils.data.DataLoader(rows, batch_size=4)  # type: ignore[arg-type]
    adapter = UniversalModelAdapter(Small(), learning_rate=3e-3)
    trainer = pl.Trainer(max_epochs=1, logger=False, callbacks=[one.get_callback()], enable_progress_bar=False)
    trainer.fit(adapter, loader, loader)
    with torch.no_grad():
        expected = adapter.eval()(ids)["logits"]
    back = one.load_model_from_checkpoint(UniversalModelAdapter)
    assert back.learning_rate == 3e-3
    assert back.model is not adapter.model
    again = manager(tmp_path).load_model_from_checkpoint(UniversalModelAdapter, model=Small())
    with torch.no_grad():
        assert torch.equal(back(ids)["logits"], expected)
        assert torch.equal(again(ids)["logits"], expected)
    with pytest.raises(CheckpointError, match="not the code of the model") as caught:
        manager(tmp_path).load_model_from_checkpoint(UniversalModelAdapter)
    assert "model=YourModel()" in caught.value.fix


def test_the_folder_of_a_run_is_one_of_its_folders(fit: Any) -> None:
    result: TrainResult = fit()
    one = CheckpointManager(result.run_path / "checkpoints", view=QuietView())
    best = json.loads((result.run_path / "run.json").read_text())["results"]["best_checkpoint"]
    assert one.get_best_checkpoint_path() == str(result.run_path / best)
    back = one.load_model_from_checkpoint(UniversalModelAdapter, model=Small())
    ids = torch.randint(0, 20, (1, 8))
    with torch.no_grad():
        assert torch.equal(back(ids)["logits"], result.adapter(ids)["logits"])
    assert back.tokenizer is not None


# the copy elsewhere


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "drive" / "MyDrive").mkdir(parents=True)
    monkeypatch.setenv("ANYFORMER_DRIVE", str(tmp_path / "drive"))
    return tmp_path / "drive" / "MyDrive"


@pytest.mark.parametrize("which", ["get_callback", "both", "backup beside a plain trainer"])
def test_checkpoints_are_copied_to_the_drive(tmp_path: Path, drive: Path, which: str) -> None:
    one = manager(tmp_path, save_top_k=1, drive_backup=True, drive_backup_path="MyDrive/mine")
    backup = one.get_backup_callback()
    assert isinstance(backup, DriveBackupCallback)
    callbacks: list[Any] = [one.get_callback()]
    if which == "both":
        callbacks = [backup, *callbacks]
    elif which != "get_callback":
        callbacks = [backup, manager(tmp_path, save_top_k=1).get_callback()]
    fit(callbacks)
    kept = {name: digest for name, digest in hashes(tmp_path / "ckpt").items() if not name.startswith(".")}
    there = hashes(drive / "mine")
    assert {name: there[name] for name in kept} == kept
    assert not (tmp_path / "ckpt" / ".backup").exists()
    # gone here: it comes from there
    shutil.rmtree(tmp_path / "ckpt")
    two = manager(tmp_path, drive_backup=True, drive_backup_path="mine")
    assert two.load_checkpoint()["global_step"] == 12


def test_no_backup_without_being_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert manager(tmp_path).get_backup_callback() is None
    monkeypatch.setenv("ANYFORMER_DRIVE", str(tmp_path / "not mounted"))
    with pytest.raises(DataNotFound, match="not mounted"):
        manager(tmp_path, drive_backup=True)
    with pytest.raises(SettingsError, match="knows no nowhere://"):
        manager(tmp_path, drive_backup=True, drive_backup_path="nowhere://x")


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="mode is 'best'"):
        manager(tmp_path, mode="best")
    with pytest.raises(SettingsError, match="save_top_k is -2"):
        manager(tmp_path, save_top_k=-2)
    with pytest.raises(SettingsError, match="sort_by is 'size'"):
        manager(tmp_path).list_checkpoints("size")  # type: ignore[arg-type]
