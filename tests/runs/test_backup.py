"""Checkpoints copied elsewhere: by a thread, past every kind of fault, read again, pruned, and fetched back."""

from __future__ import annotations

import errno
import hashlib
import importlib
import itertools
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from anyformer.core.errors import CheckpointError, CorruptCheckpoint, DependencyError, SettingsError
from anyformer.core.findings import Finding
from anyformer.core.view import QuietView
from anyformer.runs.backup import Backup
from anyformer.runs.checkpoints import DirectoryCheckpointIO, list_checkpoints, verify_checkpoint
from anyformer.runs.remote import RemoteFolder, checkpoints_at, fetch_checkpoint, put_checkpoint, remove_checkpoint_at

FILES = {"model.safetensors", "state.pt", "MANIFEST.json"}


class Faulty(MemoryFileSystem):
    """A file system in memory whose calls fail or lie as ``fault(operation, path)`` says, and are counted."""

    protocol = "faulty"
    store: dict[str, Any] = {}  # noqa: RUF012 - as fsspec's own
    pseudo_dirs = [""]  # noqa: RUF012
    fault: Callable[[str, str], Any] = staticmethod(lambda operation, path: None)
    calls = 0

    def _hit(self, operation: str, path: str) -> Any:
        type(self).calls += 1
        return type(self).fault(operation, path)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self._hit("ls", path)
        return super().ls(path, detail=detail, **kwargs)

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
        change = self._hit("put", rpath)
        content = Path(lpath).read_bytes()
        super().pipe_file(rpath, change(content) if change else content)

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        change = self._hit("pipe", path)
        super().pipe_file(path, change(value) if change else value)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "rb":
            self._hit("read", path)
        return super()._open(path, mode, **kwargs)

    def rm_file(self, path: str) -> None:
        self._hit("rm", path)
        return super().rm_file(path)


@pytest.fixture
def faulty() -> Iterator[type[Faulty]]:
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    Faulty.store.clear()
    Faulty.pseudo_dirs[:] = [""]
    Faulty.calls = 0
    yield Faulty
    Faulty.fault = staticmethod(lambda operation, path: None)


class Noting(QuietView):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.found: list[Finding] = []

    def line(self, text: str = "") -> None:
        self.said.append(text)

    def finding(self, finding: Finding) -> None:
        self.found.append(finding)


def save(run: Path, step: int) -> Path:
    torch.manual_seed(step)
    folder = run / "checkpoints" / f"step-{step:08d}"
    state = {"model.w": torch.randn(50), "own": torch.ones(2)}
    DirectoryCheckpointIO().save_checkpoint({"global_step": step, "state_dict": state}, folder)
    return folder


def backup(run: Path, url: str, view: Any = None, **more: Any) -> Backup:
    place = RemoteFolder(url)
    return Backup(
        url,
        run / "checkpoints",
        run / ".backup",
        view or Noting(),
        place=lambda: place,
        **{"first_delay": 0.01, **more},
    )


def contents(remote: RemoteFolder) -> dict[str, bytes]:
    return {name: remote.read(name) or b"" for name in remote.walk()}


def local(run: Path, *steps: int) -> dict[str, bytes]:
    folders = [run / "checkpoints" / f"step-{step:08d}" for step in steps]
    return {f"{folder.name}/{file.name}": file.read_bytes() for folder in folders for file in folder.iterdir()}


@pytest.fixture(params=["folder", "file://", "memory://", "faulty://"])
def url(request: pytest.FixtureRequest, tmp_path: Path, faulty: Any) -> str:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    place = {"folder": str(tmp_path / "else" / "where"), "file://": f"file://{tmp_path}/elsewhere"}
    return place.get(request.param, f"{request.param}bucket/runs")


def test_each_checkpoint_arrives_byte_by_byte_and_comes_back(tmp_path: Path, url: str) -> None:
    one = backup(tmp_path, url)
    for step in (10, 20):
        one.offer(save(tmp_path, step))
    (said,) = one.close(10)
    assert (said.name, said.verdict, said.measured) == ("backup", "ok", f"2 checkpoints in {url}")
    remote = RemoteFolder(url)
    assert contents(remote) == local(tmp_path, 10, 20)
    assert checkpoints_at(remote) == ["step-00000020", "step-00000010"]
    fetched = fetch_checkpoint(remote, "step-00000020", tmp_path / "back")
    assert {file.name: file.read_bytes() for file in fetched.iterdir()} == {
        name.partition("/")[2]: content for name, content in local(tmp_path, 20).items()
    }
    assert not (tmp_path / ".backup").exists()
    remove_checkpoint_at(remote, "step-00000020")
    assert checkpoints_at(remote) == ["step-00000010"]
    assert RemoteFolder(url).inside("nothing").names() == []


def test_what_is_there_is_not_copied_again(tmp_path: Path, faulty: type[Faulty]) -> None:
    folder = save(tmp_path, 10)
    remote = RemoteFolder("faulty://bucket")
    assert put_checkpoint(remote, folder, folder.name) > 0
    puts: list[str] = []
    faulty.fault = staticmethod(lambda operation, path: puts.append(path) if operation in ("put", "pipe") else None)
    assert put_checkpoint(remote, folder, folder.name) == 0
    assert puts == []
    save(tmp_path, 10)  # the same step with other bytes in it
    torch.manual_seed(99)
    DirectoryCheckpointIO().save_checkpoint({"global_step": 10, "state_dict": {"model.w": torch.ones(3)}}, folder)
    assert put_checkpoint(remote, folder, folder.name) > 0
    assert contents(remote) == local(tmp_path, 10)


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


FAULTS: dict[str, Any] = {
    "refused": PermissionError(errno.EACCES, "no"),
    "full": OSError(errno.ENOSPC, "No space left on device"),
    "gone": ConnectionError("connection reset"),
    "odd": ZeroDivisionError("a bug in somebody's library"),
    "flipped": flipped,
    "short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
}


def one_time(kind: str, at: int) -> Callable[[str, str], Any]:
    """The fault at the ``at``-th call; lies only where something is written."""
    count = itertools.count(1)
    fault = FAULTS[kind]

    def hit(operation: str, path: str) -> Any:
        if next(count) != at:
            return None
        if isinstance(fault, Exception):
            raise fault
        return fault if operation in ("put", "pipe") else None

    return hit


def calls_of_a_copy(tmp_path: Path, faulty: type[Faulty]) -> int:
    put_checkpoint(RemoteFolder("faulty://counted"), save(tmp_path / "counted", 1), "step-00000001")
    count = faulty.calls
    faulty.store.clear()
    return count


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_at_any_call_delays_the_copy_and_no_more(tmp_path: Path, faulty: type[Faulty], kind: str) -> None:
    number = calls_of_a_copy(tmp_path, faulty)
    assert number >= 8
    for at in range(1, number + 1):
        faulty.store.clear()
        folder = tmp_path / str(at)
        faulty.fault = staticmethod(one_time(kind, at))
        view = Noting()
        one = backup(folder, f"faulty://bucket/{at}", view)
        one.offer(save(folder, 10))
        (said,) = one.close(10)
        one.stop()
        assert said.verdict == "ok", (kind, at, said)
        assert contents(RemoteFolder(f"faulty://bucket/{at}")) == local(folder, 10), (kind, at)
        assert len(view.found) <= 1


def test_a_copy_that_was_cut_short_never_counts(tmp_path: Path, faulty: type[Faulty]) -> None:
    """From the first call on that fails, all fail: as if the process, or the network, had died there."""
    number = calls_of_a_copy(tmp_path, faulty)
    for at in range(1, number + 1):
        faulty.store.clear()
        count = itertools.count(1)

        def dead(operation: str, path: str, at: int = at, count: Any = count) -> None:
            if next(count) >= at:
                raise ConnectionError("dead")

        faulty.fault = staticmethod(dead)
        remote = RemoteFolder("faulty://bucket")
        with pytest.raises(ConnectionError):
            put_checkpoint(remote, save(tmp_path, 10), "step-00000010")
        faulty.fault = staticmethod(lambda operation, path: None)
        for name in checkpoints_at(remote):  # only where nothing but the last look at it was missing
            verify_checkpoint(fetch_checkpoint(remote, name, tmp_path / f"back{at}"))


def test_a_failing_backup_warns_once_waits_longer_each_time_and_says_so_at_the_end(
    tmp_path: Path, faulty: type[Faulty]
) -> None:
    times: list[float] = []

    def down(operation: str, path: str) -> None:
        times.append(time.monotonic())
        raise ConnectionError("no route to host")

    faulty.fault = staticmethod(down)
    view = Noting()
    one = backup(tmp_path, "faulty://bucket", view, first_delay=0.05)
    began = time.monotonic()
    one.offer(save(tmp_path, 10))
    assert time.monotonic() - began < 0.5
    time.sleep(0.8)
    (warned,) = view.found
    assert (warned.verdict, warned.measured) == ("warn", "ConnectionError: no route to host")
    assert "the training goes on" in warned.reason
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 2 <= len(gaps) <= 5
    assert all(later > 1.3 * earlier for earlier, later in itertools.pairwise(gaps))
    (said,) = one.close(0.1)
    assert (said.verdict, said.measured) == ("warn", "not copied: step-00000010")
    assert "no route to host" in said.reason
    assert any("waiting for the backup of 1 checkpoint to faulty://bucket, at most 0:00" in line for line in view.said)
    assert len(view.found) == 1
    faulty.fault = staticmethod(lambda operation, path: None)
    (said,) = one.close(20)  # it kept trying
    assert said.verdict == "ok"
    assert "failed attempts in between" in said.reason


def test_a_place_that_hangs_holds_nobody_up(tmp_path: Path, faulty: type[Faulty]) -> None:
    let_go = threading.Event()
    faulty.fault = staticmethod(lambda operation, path: let_go.wait(20) and None)
    one = backup(tmp_path, "faulty://bucket")
    began = time.monotonic()
    for step in range(1, 6):
        one.offer(save(tmp_path, step))
    (said,) = one.close(0.3)
    assert time.monotonic() - began < 3
    assert said.verdict == "warn"
    assert all(f"step-{step:08d}" in said.measured for step in (1, 5))  # the one under way, too
    let_go.set()
    assert one.close(10)[0].verdict == "ok"


def test_what_the_run_drops_is_copied_first_where_it_was_the_newest_and_then_dropped_there(
    tmp_path: Path, faulty: type[Faulty]
) -> None:
    """A slow place: each newest checkpoint is gone here before its turn; hard links keep it until then."""
    go = threading.Semaphore(0)
    faulty.fault = staticmethod(lambda operation, path: go.acquire(timeout=20) and None if operation == "put" else None)
    one = backup(tmp_path, "faulty://bucket")
    io = DirectoryCheckpointIO()
    for step in range(1, 6):
        one.offer(save(tmp_path, step))
        if step > 1:
            io.remove_checkpoint(tmp_path / "checkpoints" / f"step-{step - 1:08d}")
        time.sleep(0.02)
    kept = {path.name.partition(".")[0] for path in (tmp_path / ".backup").iterdir()}
    assert "step-00000005" in kept
    assert len(kept) <= 3  # the one under way, the newest, and the one that was here until a moment ago
    go.release(100)
    assert one.close(10)[0].verdict == "ok"
    assert checkpoints_at(RemoteFolder("faulty://bucket"))[0] == "step-00000005"
    verify_checkpoint(fetch_checkpoint(RemoteFolder("faulty://bucket"), "step-00000005", tmp_path / "back"))


def test_old_ones_are_pruned_there_too_but_never_all(tmp_path: Path, url: str) -> None:
    one = backup(tmp_path, url)
    for step in range(1, 7):
        one.offer(save(tmp_path, step))
        for folder in list_checkpoints(tmp_path)[1:]:
            if folder.name != "step-00000002":  # the best
                DirectoryCheckpointIO().remove_checkpoint(folder)
        one.close(10)
    names = ["step-00000006", "step-00000005", "step-00000002"]
    assert checkpoints_at(RemoteFolder(url)) == names
    shutil.rmtree(tmp_path / "checkpoints")  # an accident here must not be repeated there
    one.offer(save(tmp_path / "other", 7))
    one.close(10)
    assert checkpoints_at(RemoteFolder(url)) == ["step-00000007", *names]


def test_others_checkpoints_in_the_same_place_are_left_alone(tmp_path: Path, url: str) -> None:
    remote = RemoteFolder(url)
    for step in (1, 2, 3):
        put_checkpoint(remote, save(tmp_path / "other", step), f"step-{step:08d}")
    one = backup(tmp_path, url, prune_all=False)
    one.offer(save(tmp_path, 9))
    one.close(10)
    assert checkpoints_at(remote) == [f"step-{step:08d}" for step in (9, 3, 2, 1)]
    two = backup(tmp_path, url, prune_all=False, drop_beyond=2)  # a run that went back to step 2
    two.offer(tmp_path / "checkpoints" / "step-00000009")
    two.close(10)
    assert checkpoints_at(remote) == [f"step-{step:08d}" for step in (9, 2, 1)]


@pytest.mark.parametrize("name", sorted(FILES))
def test_damage_there_is_found_when_it_is_fetched(tmp_path: Path, url: str, name: str) -> None:
    remote = RemoteFolder(url)
    put_checkpoint(remote, save(tmp_path, 5), "step-00000005")
    raw = remote.inside("step-00000005").read(name) or b""
    for damage in (flipped(raw), raw[:-1], None):
        remote.inside("step-00000005").remove(name)
        if damage is not None:
            remote.inside("step-00000005").write(name, damage)
        with pytest.raises(CorruptCheckpoint, match=name):
            fetch_checkpoint(remote, "step-00000005", tmp_path / "back")
        assert not list((tmp_path / "back").iterdir())


def test_a_checkpoint_that_is_damaged_here_is_not_copied(tmp_path: Path, url: str) -> None:
    folder = save(tmp_path, 5)
    (folder / "state.pt").write_bytes(b"damaged")
    view = Noting()
    one = backup(tmp_path, url, view)
    one.offer(folder)
    one.close(5)
    assert checkpoints_at(RemoteFolder(url)) == []
    assert "state.pt has 7 bytes" in view.found[0].measured


def test_no_links_no_loss(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr("os.link", refuse)
    one = backup(tmp_path, url)
    one.offer(save(tmp_path, 5))
    assert one.close(10)[0].verdict == "ok"
    assert contents(RemoteFolder(url)) == local(tmp_path, 5)


def test_the_trainings_random_numbers_are_left_alone(tmp_path: Path, faulty: type[Faulty]) -> None:
    import random

    faulty.fault = staticmethod(one_time("gone", 1))
    folder = save(tmp_path, 5)
    before = random.getstate(), torch.get_rng_state().tolist()
    one = backup(tmp_path, "faulty://bucket")
    one.offer(folder)
    assert one.close(10)[0].verdict == "ok"
    assert (random.getstate(), torch.get_rng_state().tolist()) == before


def test_a_place_that_cannot_be_one_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="knows no nowhere://"):
        RemoteFolder("nowhere://bucket")
    with pytest.raises(SettingsError, match="holds a password") as caught:
        RemoteFolder("ftp://me:secret@host/folder")
    assert "secret" not in str(caught.value)
    real = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name.partition(".")[0] in ("s3fs", "gcsfs"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(DependencyError, match="s3fs is not installed; s3:// needs it") as missing:
        RemoteFolder("s3://bucket/runs")
    assert missing.value.fix == "pip install 'anyformer[remote]'"
    with pytest.raises(DependencyError, match="gcsfs is not installed") as missing:
        RemoteFolder("gs://bucket")
    assert missing.value.fix == "pip install gcsfs"


def test_the_bytes_that_come_back_decide(tmp_path: Path, faulty: type[Faulty]) -> None:
    faulty.fault = staticmethod(lambda operation, path: flipped if operation == "put" else None)
    file = tmp_path / "file"
    file.write_bytes(b"content")
    with pytest.raises(CheckpointError, match="other bytes came back"):
        RemoteFolder("faulty://bucket").put(file, "a/b", hashlib.sha256(b"content").hexdigest())
