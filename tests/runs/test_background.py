"""Saves in the background: what is written is what was handed over, one at a time, and an error is never lost."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from anyformer.core.errors import CheckpointError
from anyformer.runs import background, checkpoints
from anyformer.runs.background import BackgroundCheckpointIO
from anyformer.runs.checkpoints import DirectoryCheckpointIO, verify_checkpoint
from anyformer.runs.tensors import copied, size_of


class Gate:
    """Holds each save before its folder gets its name, until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        self.inside = self.most = 0
        self.threads: list[str] = []


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, put = Gate(), checkpoints._put_in_place

    def held(temporary: Path, target: Path) -> Path | None:
        gate.inside += 1
        gate.most = max(gate.most, gate.inside)
        gate.threads.append(threading.current_thread().name)
        gate.reached.set()
        gate.open.wait(20)
        try:
            return put(temporary, target)
        finally:
            gate.inside -= 1

    monkeypatch.setattr(checkpoints, "_put_in_place", held)
    yield gate
    gate.open.set()


def state(step: int) -> dict[str, Any]:
    weight = torch.arange(12.0).reshape(3, 4) + step
    moments = {"exp_avg": torch.full((3, 4), float(step)), "step": torch.tensor(1.0 * step)}
    return {
        "global_step": step,
        "state_dict": {"model.a": weight, "model.b": weight, "model.c": torch.full((5,), float(step))},
        "optimizer_states": [{"state": {0: moments}}],
        "position": [step, {"epoch": step}],
    }


def at(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:08d}"


@pytest.fixture
def io(tmp_path: Path) -> BackgroundCheckpointIO:
    return BackgroundCheckpointIO(DirectoryCheckpointIO())


def test_what_is_written_is_the_state_at_the_save(io: BackgroundCheckpointIO, tmp_path: Path, gate: Gate) -> None:
    given = state(7)
    released = threading.Event()
    write = checkpoints.write_tensors

    def late(*args: Any, **more: Any) -> Any:
        released.wait(20)
        return write(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "write_tensors", late)
        io.save_checkpoint(given, at(tmp_path, 7))
        assert io.busy
        for tensor in given["state_dict"].values():
            tensor.zero_()
        moments = given["optimizer_states"][0]["state"][0]
        moments["exp_avg"].zero_()
        moments["step"] += 1
        given["position"][0] = 99
        given["position"][1]["epoch"] = 99
        given["state_dict"].clear()
        released.set()
        gate.open.set()
        io.wait()
    assert not io.busy
    saved = load_file(at(tmp_path, 7) / "model.safetensors")
    assert torch.equal(saved["a"], state(7)["state_dict"]["model.a"])
    with safe_open(at(tmp_path, 7) / "model.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == ["a", "c"]
        assert file.metadata()["aliases"] == '{"b": "a"}'  # tied still
    rest = torch.load(at(tmp_path, 7) / "state.pt", weights_only=True)
    assert torch.equal(rest["optimizer_states"][0]["state"][0]["exp_avg"], torch.full((3, 4), 7.0))
    assert rest["optimizer_states"][0]["state"][0]["step"] == 7
    assert rest["position"] == [7, {"epoch": 7}]
    assert gate.threads == ["anyformer-checkpoints"]


def kinds() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0)
    return {
        "whole": base,
        "slice": base[3:9],
        "turned": base.view(4, 6).t(),
        "other type": base.view(torch.int32)[2:5],
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3),
        "half": torch.randn(5).bfloat16(),
        "complex": torch.randn(3, dtype=torch.complex64).conj(),
        "sparse": torch.eye(3).to_sparse(),
        "strided": torch.randn(6, 6)[::2, ::3],
        "expanded": torch.ones(1).expand(1000),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }


def test_a_copy_shares_what_the_original_shares_and_nothing_with_it() -> None:
    given = kinds()
    before = {name: tensor.detach().clone().to_dense() for name, tensor in given.items()}
    copy = copied({"all": given, "numbers": np.arange(3)})
    assert size_of({"all": given}) == 24 * 4 + 8 + 10 + 24 + 9 * 4 + 36 * 4 + 4 + 8
    for name, tensor in copy["all"].items():
        assert tensor.dtype == given[name].dtype, name
        assert tensor.shape == given[name].shape, name
        assert type(tensor) is torch.Tensor, name
        if name != "sparse":
            assert tensor.stride() == given[name].stride(), name
    with torch.no_grad():
        for name in ("whole", "scalar", "half", "complex", "strided", "parameter"):
            given[name].zero_()
    assert all(torch.equal(tensor.to_dense(), before[name]) for name, tensor in copy["all"].items())
    assert copy["all"]["expanded"].untyped_storage().nbytes() == 4
    copy["all"]["whole"].fill_(5)
    assert copy["all"]["slice"].eq(5).all()
    assert copy["all"]["turned"].eq(5).all()
    assert torch.equal(copy["numbers"], torch.arange(3))


def test_one_save_at_a_time_in_their_order(io: BackgroundCheckpointIO, tmp_path: Path, gate: Gate) -> None:
    io.save_checkpoint(state(1), at(tmp_path, 1))
    threading.Timer(0.3, gate.open.set).start()
    begin = time.monotonic()
    io.save_checkpoint(state(2), at(tmp_path, 2))
    assert time.monotonic() - begin > 0.2
    assert verify_checkpoint(at(tmp_path, 1))["step"] == 1
    io.wait()
    assert verify_checkpoint(at(tmp_path, 2))["step"] == 2
    assert gate.most == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "anyformer-checkpoints"]


def test_an_older_one_goes_once_its_successor_is_whole(io: BackgroundCheckpointIO, tmp_path: Path, gate: Gate) -> None:
    gate.open.set()
    io.save_checkpoint(state(1), at(tmp_path, 1))
    io.wait()
    gate.open.clear()
    gate.reached.clear()
    io.save_checkpoint(state(2), at(tmp_path, 2))
    io.remove_checkpoint(at(tmp_path, 1))
    assert gate.reached.wait(20)
    assert at(tmp_path, 1).is_dir()
    gate.open.set()
    io.wait()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000002"]
    io.remove_checkpoint(at(tmp_path, 2))  # nothing is in flight: at once
    assert not at(tmp_path, 2).exists()


def full(monkeypatch: pytest.MonkeyPatch, released: threading.Event | None = None) -> None:
    def refuse(path: Path) -> None:
        if released is not None:
            released.wait(20)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "sync_file", refuse)


def test_an_error_is_raised_once_as_it_would_have_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = DirectoryCheckpointIO()
    io = BackgroundCheckpointIO(plain)
    plain.save_checkpoint(state(1), at(tmp_path, 1))
    said = []
    with monkeypatch.context() as patch:
        full(patch)
        with pytest.raises(CheckpointError) as caught:
            plain.save_checkpoint(state(2), at(tmp_path, 2))
        said.append(str(caught.value).split("free:")[0])
        released = threading.Event()
        full(patch, released)
        for wait in (io.wait, lambda: io.save_checkpoint(state(3), at(tmp_path, 3))):
            released.clear()
            io.save_checkpoint(state(2), at(tmp_path, 2))
            io.remove_checkpoint(at(tmp_path, 1))  # stays: it is the newest that is whole
            released.set()
            with pytest.raises(CheckpointError, match="no space left") as caught:
                wait()
            said.append(str(caught.value).split("free:")[0])
            io.wait()  # not twice
    assert said == said[:1] * 3
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000001"]
    io.save_checkpoint(state(4), at(tmp_path, 4))
    io.wait()
    assert verify_checkpoint(at(tmp_path, 4))["step"] == 4


def test_a_removal_after_a_save_that_failed_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io = BackgroundCheckpointIO(DirectoryCheckpointIO())
    io.save_checkpoint(state(1), at(tmp_path, 1))
    io.wait()
    full(monkeypatch)
    io.save_checkpoint(state(2), at(tmp_path, 2))
    while io.busy:
        time.sleep(0.01)
    io.remove_checkpoint(at(tmp_path, 1))
    with pytest.raises(CheckpointError, match="no space left"):
        io.wait()
    assert at(tmp_path, 1).is_dir()


def test_what_cannot_be_loaded_safely_is_refused_at_once(io: BackgroundCheckpointIO, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a object at callbacks/mine"):
        io.save_checkpoint({**state(1), "callbacks": {"mine": object()}}, at(tmp_path, 1))
    assert not io.busy


def test_what_the_disk_does_not_let_go_of_is_said(io: BackgroundCheckpointIO, tmp_path: Path, gate: Gate) -> None:
    other = tmp_path / "checkpoints" / "step-00000001"
    other.mkdir(parents=True)
    io.save_checkpoint(state(2), at(tmp_path, 2))
    io.remove_checkpoint(other)
    gate.open.set()
    with pytest.warns(UserWarning, match="is not a checkpoint; it is left as it is; training goes on"):
        io.wait()
    assert other.is_dir()


@pytest.mark.parametrize("where", ["write_tensors", "sync_file", "read_back", "torch.save"])
def test_one_that_is_given_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    offered: list[Path] = []
    io = BackgroundCheckpointIO(DirectoryCheckpointIO(on_saved=offered.append))
    io.save_checkpoint(state(1), at(tmp_path, 1))
    io.wait()
    reached, released = threading.Event(), threading.Event()
    place: Any = torch if where == "torch.save" else checkpoints
    name = where.removeprefix("torch.")
    plain: Callable[..., Any] = getattr(place, name)

    def held(*args: Any, **more: Any) -> Any:
        reached.set()
        released.wait(20)
        return plain(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, held)
        io.save_checkpoint(state(2), at(tmp_path, 2))
        io.remove_checkpoint(at(tmp_path, 1))
        assert reached.wait(20)
        threading.Timer(0.1, released.set).start()
        io.abandon()
    assert not io.busy
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    io.wait()
    io.save_checkpoint(state(3), at(tmp_path, 3))
    io.wait()
    assert offered == [at(tmp_path, 1), at(tmp_path, 3)]


def test_without_memory_for_a_copy_the_training_waits(
    io: BackgroundCheckpointIO, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.open.set()
    size = 12 * 4 + 5 * 4 + 12 * 4 + 4  # tied weights once
    for free, threads in ((2 * size - 1, 0), (2 * size, 1), (None, 2)):
        monkeypatch.setattr(background, "available_memory", lambda free=free: free)
        io.save_checkpoint(state(1), at(tmp_path, 1))
        io.wait()
        assert gate.threads.count("anyformer-checkpoints") == threads
    assert verify_checkpoint(at(tmp_path, 1))
    assert [finding.measured for finding in io.findings()] == ["the training waited for 1 checkpoint"]
