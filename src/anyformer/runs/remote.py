"""A folder somewhere else, behind an fsspec URL: what is put there is read again and hashed before it counts."""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from anyformer.core.errors import CheckpointError, CorruptCheckpoint, DependencyError, SettingsError
from anyformer.core.files import sync_folder
from anyformer.core.optional import require
from anyformer.runs.checkpoints import FILES, MANIFEST, checkpoint_number, set_aside, verify_checkpoint

_PIECE = 8 << 20  # bytes read at once
_IN_EXTRA = ("s3fs",)  # what anyformer[remote] brings beside fsspec
_NO_FOLDERS = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"))  # object stores
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)


class RemoteFolder:
    """A folder at ``url``: a path on this machine (a mounted drive), or any URL that fsspec knows.

    Methods raise what the file system raises (OSError, and what its library has of its own). Names are relative.
    Raises SettingsError for a URL that cannot be used, DependencyError where the package for it is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or url
        self._fs, self.path = _file_system(url)
        self._on_disk = "file" in _protocols(self._fs)

    def inside(self, *parts: str) -> RemoteFolder:
        """The folder ``parts`` in this one; nothing is made."""
        folder = object.__new__(RemoteFolder)
        folder.url = "/".join((self.url, *parts))
        folder._fs, folder._on_disk = self._fs, self._on_disk
        folder.path = "/".join((self.path.rstrip("/"), *parts))
        return folder

    def names(self) -> list[str]:
        """What lies directly in the folder, sorted; empty where there is no such folder."""
        self._fs.invalidate_cache()
        try:
            entries = self._fs.ls(self.path, detail=False)
        except FileNotFoundError:
            return []
        own = self.path.rstrip("/").rsplit("/", 1)[-1]
        found = {str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries if str(entry).rstrip("/") != self.path}
        return sorted(found - ({own} if len(entries) == 1 and self._fs.isfile(self.path) else set()))

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None where there is none."""
        self._fs.invalidate_cache()
        try:
            with self._fs.open(self._at(name), "rb") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole, read it again, and compare. Raises CheckpointError where other bytes came back."""
        self._make_parent(name)
        at = self._at(name)
        if self._on_disk:  # a reader never sees half of it
            self._fs.pipe_file(f"{at}.part", content)
            self._sync(f"{at}.part")
            os.replace(f"{at}.part", at)
        else:
            self._fs.pipe_file(at, content)
        if self.read(name) != content:
            raise CheckpointError(f"{self.url}/{name} was written, but other bytes came back")

    def put(self, file: Path, name: str, digest: str) -> None:
        """Copy a file there, read it again and compare its SHA-256 with ``digest``; not copied where it is there."""
        if self.digest(name) == digest:
            return
        self._make_parent(name)
        self._fs.put_file(str(file), self._at(name))
        if self._on_disk:
            self._sync(self._at(name))
        found = self.digest(name)
        if found != digest:
            what = f"{self.url}/{name} was written, but other bytes came back"
            raise CheckpointError(what, f"sha256 is {found}\nit was   {digest}")

    def digest(self, name: str) -> str | None:
        """SHA-256 of a file there, read anew; None where there is none."""
        self._fs.invalidate_cache()
        digest = hashlib.sha256()
        try:
            with self._fs.open(self._at(name), "rb") as stream:
                while piece := stream.read(_PIECE):
                    digest.update(piece)
        except FileNotFoundError:
            return None
        return digest.hexdigest()

    def fetch(self, name: str, file: Path) -> None:
        """Copy a file from there. Raises FileNotFoundError."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._fs.open(self._at(name), "rb") as source, file.open("wb") as target:
            shutil.copyfileobj(source, target, _PIECE)
            target.flush()
            os.fsync(target.fileno())

    def walk(self) -> list[str]:
        """Every file in the folder and the folders in it."""
        self._fs.invalidate_cache()
        try:
            files = self._fs.find(self.path)
        except FileNotFoundError:
            return []
        prefix = self.path.rstrip("/").lstrip("/") + "/"
        return sorted(str(file).lstrip("/").removeprefix(prefix) for file in files)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._at(name))

    def remove_all(self) -> None:
        """Remove the folder with all that is in it, if it is there."""
        self._fs.invalidate_cache()
        with suppress(FileNotFoundError):
            self._fs.rm(self.path, recursive=True)

    def _at(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def _make_parent(self, name: str) -> None:
        if not _NO_FOLDERS.intersection(_protocols(self._fs)):
            self._fs.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)

    def _sync(self, at: str) -> None:
        try:
            with open(at, "rb+") as stream:
                os.fsync(stream.fileno())
            sync_folder(Path(at).parent)
        except OSError as error:
            if error.errno not in _NO_SYNC:  # a mounted drive that knows no fsync
                raise


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL and the path in it."""
    protocol = url.partition("://")[0] if "://" in url else "file"
    if re.search(r"://[^/@]*:[^/@]*@", url):
        what = f"the backup's URL holds a password: {re.sub(r'://[^/]*@', '://…@', url)}"
        raise SettingsError(what, "it would be kept in the run's settings.yaml", "give it in the environment")
    fsspec = require("fsspec", "remote", "a backup")
    if protocol == "file":
        path = Path(url.removeprefix("file://")).expanduser().absolute()
        return fsspec.filesystem("file", skip_instance_cache=True), path.as_posix()
    known = importlib.import_module("fsspec.registry").known_implementations.get(protocol)
    if known is None and protocol not in importlib.import_module("fsspec.registry").registry:
        raise SettingsError(
            f"{url} cannot be a backup: fsspec knows no {protocol}://", fix="a folder, s3://, gs://, hf://"
        )
    if known is not None:
        _require(known["class"].partition(".")[0], protocol)
    try:
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError, TypeError) as error:
        raise SettingsError(f"{url} cannot be a backup", str(error)) from error
    return fs, str(path).rstrip("/")


def _require(package: str, protocol: str) -> None:
    if package in _IN_EXTRA:
        require(package, "remote", f"{protocol}://")
        return
    try:
        require(package, purpose=f"{protocol}://")
    except DependencyError as error:
        raise DependencyError(error.what, fix=f"pip install {package}") from error


def put_checkpoint(remote: RemoteFolder, folder: Path, name: str) -> int:
    """Copy a verified checkpoint to ``remote/name``: its files, each read again, then MANIFEST.json; returns bytes.

    Until the manifest is there, it does not count as a checkpoint. Raises CorruptCheckpoint where the local one is.
    """
    manifest = verify_checkpoint(folder)
    text = (folder / MANIFEST).read_bytes()
    there = remote.inside(name)
    before = there.read(MANIFEST)
    if before == text:
        return 0  # it was read again when it was put there
    if before is not None:  # the same step of an earlier attempt: no manifest while the files are of two
        there.remove(MANIFEST)
    for file, facts in manifest["files"].items():
        there.put(folder / file, file, facts["sha256"])
    there.write(MANIFEST, text)
    return sum(int(facts["size"]) for facts in manifest["files"].values())


def checkpoints_at(remote: RemoteFolder) -> list[str]:
    """Names of the complete checkpoints in a folder, newest first; their bytes are not read."""
    names = [name for name in remote.names() if checkpoint_number(name) is not None]
    names.sort(key=lambda name: checkpoint_number(name) or (0, 0), reverse=True)
    return [name for name in names if MANIFEST in remote.inside(name).names()]


def remove_checkpoint_at(remote: RemoteFolder, name: str) -> None:
    """Remove one: its manifest first, so that what is left of it never counts."""
    there = remote.inside(name)
    there.remove(MANIFEST)
    there.remove_all()


def fetch_checkpoint(remote: RemoteFolder, name: str, into: Path) -> Path:
    """Copy a checkpoint from ``remote/name`` to ``into/name``, verified before it gets that name.

    Raises CorruptCheckpoint where its bytes are not those that were saved; nothing is left then.
    """
    into.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=into))
    try:
        for file in (*FILES, MANIFEST):
            try:
                remote.inside(name).fetch(file, temporary / file)
            except FileNotFoundError as error:
                raise CorruptCheckpoint(f"the checkpoint {name} in {remote.url} is damaged: no {file}") from error
        try:
            verify_checkpoint(temporary)
        except CorruptCheckpoint as error:
            what = error.what.replace(temporary.name, f"{name} in {remote.url}")
            raise CorruptCheckpoint(what, error.detail) from error
        temporary.chmod(0o755)
        target = into / name
        if target.exists():
            set_aside(target)
        temporary.rename(target)
        sync_folder(into)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target
