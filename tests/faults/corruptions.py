"""Ways in which a checkpoint on the disk becomes another than the one that was saved."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from anyformer.core.errors import CheckpointError, CorruptCheckpoint
from anyformer.runs.checkpoints import DirectoryCheckpointIO, newest_good, read_weights, verify_checkpoint
from tests.faults.io_cases import path_of, problem_with, state

FILES = ("model.safetensors", "state.pt", "MANIFEST.json")
STEPS = (10, 20, 30)


@dataclass(frozen=True)
class Place:
    """A run with three checkpoints, another run of the same model with as many, and the checkpoint to damage."""

    run: Path
    other: Path
    step: int
    drawn: random.Random

    @property
    def folder(self) -> Path:
        return path_of(self.run, self.step)

    def file(self) -> Path:
        return self.folder / self.drawn.choice(FILES)

    def from_elsewhere(self) -> Path:
        """The checkpoint of another step of this run."""
        return path_of(self.run, self.drawn.choice([step for step in STEPS if step != self.step]))


def _flip(place: Place) -> str:
    file = place.file()
    raw = bytearray(file.read_bytes())
    for position in place.drawn.sample(range(len(raw)), place.drawn.choice([1, 1, 1, 8])):
        raw[position] ^= 1 << place.drawn.randrange(8)
    file.write_bytes(raw)
    return file.name


def _zero_block(place: Place) -> str:
    while True:
        file = place.file()
        raw = bytearray(file.read_bytes())
        size = min(len(raw), place.drawn.choice([16, 64, 512, 4096]))
        start = place.drawn.randrange(len(raw) - size + 1)
        if any(raw[start : start + size]):  # a block that was zero stays what it was
            break
    raw[start : start + size] = bytes(size)
    file.write_bytes(raw)
    return f"{file.name}, {size} bytes from {start}"


def _truncate(place: Place) -> str:
    file = place.file()
    size = place.drawn.randrange(1, file.stat().st_size)
    with file.open("rb+") as stream:
        stream.truncate(size)
    return f"{file.name} to {size} bytes"


def _append(place: Place) -> str:
    file = place.file()
    with file.open("ab") as stream:
        stream.write(place.drawn.choice([b"\0", b"\n", b" ", bytes(512), place.drawn.randbytes(40)]))
    return file.name


def _empty(place: Place) -> str:
    file = place.file()
    file.write_bytes(b"")
    return file.name


def _missing(place: Place) -> str:
    file = place.file()
    file.unlink()
    return file.name


def _no_file_at_all(place: Place) -> str:
    for name in FILES:
        (place.folder / name).unlink()
    return "all three"


def _folder_in_place_of_a_file(place: Place) -> str:
    file = place.file()
    file.unlink()
    file.mkdir()
    return file.name


def _swapped_file(place: Place) -> str:
    file, theirs = place.file(), place.from_elsewhere()
    shutil.copyfile(theirs / file.name, file)
    return f"{file.name} of {theirs.name}"


def _swapped_data(place: Place) -> str:
    theirs = place.from_elsewhere()
    for name in FILES[:2]:  # the manifest is its own, and stale
        shutil.copyfile(theirs / name, place.folder / name)
    return f"both of {theirs.name}"


def _swapped_checkpoint(place: Place) -> str:
    theirs = place.from_elsewhere()
    for name in FILES:
        shutil.copyfile(theirs / name, place.folder / name)
    return f"all of {theirs.name}"


def _files_exchanged(place: Place) -> str:
    one, two = place.folder / FILES[0], place.folder / FILES[1]
    raw = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(raw)
    return "model.safetensors and state.pt"


def _another_models_weights(place: Place) -> str:
    torch.manual_seed(place.drawn.randrange(1000))
    made = {"global_step": place.step, "state_dict": {"model.other": torch.randn(3, 3)}}
    DirectoryCheckpointIO("other").save_checkpoint(made, path_of(place.other, 99))
    shutil.copyfile(path_of(place.other, 99) / FILES[0], place.folder / FILES[0])
    return "model.safetensors"


def _another_runs_checkpoint(place: Place) -> str:
    for name in FILES:
        shutil.copyfile(path_of(place.other, place.step) / name, place.folder / name)
    return "all of the same step of another run"


def _manifest_edited(place: Place) -> str:
    file = place.folder / "MANIFEST.json"
    manifest = json.loads(file.read_text())
    what = place.drawn.choice(["step", "size", "sha256", "files", "format"])
    if what == "step":
        manifest["step"] += 1
    elif what == "format":
        manifest["format"] = 0
    elif what == "files":
        del manifest["files"]["state.pt"]
    else:
        entry = manifest["files"][place.drawn.choice(FILES[:2])]
        entry[what] = entry[what] + 1 if what == "size" else "0" * 64
    file.write_text(json.dumps(manifest, indent=2) + "\n")
    return what


def _not_json(place: Place) -> str:
    content = place.drawn.choice([b"[]", b"null", b"{}", b'{"sha256": 1}', b"\xff\xfe", b"[" * 100_000, b"7"])
    (place.folder / "MANIFEST.json").write_bytes(content)
    return repr(content[:20])


KINDS: dict[str, Callable[[Place], str]] = {
    "flipped bits": _flip,
    "a zeroed block": _zero_block,
    "truncation": _truncate,
    "appended bytes": _append,
    "an empty file": _empty,
    "a missing file": _missing,
    "no file at all": _no_file_at_all,
    "a folder in place of a file": _folder_in_place_of_a_file,
    "a file of another checkpoint": _swapped_file,
    "a stale manifest": _swapped_data,
    "another checkpoint under its name": _swapped_checkpoint,
    "two files exchanged": _files_exchanged,
    "another model's weights": _another_models_weights,
    "another run's checkpoint": _another_runs_checkpoint,
    "an edited manifest": _manifest_edited,
    "a manifest that is none": _not_json,
}
_OFTEN = ("flipped bits", "flipped bits", "flipped bits", "a zeroed block", "truncation", "appended bytes")


def kinds_of(count: int, drawn: random.Random) -> list[str]:
    """Each kind once, then drawn, those that disks make more often."""
    return [*KINDS, *(drawn.choice([*KINDS, *_OFTEN]) for _ in range(count))][:count]


def original(base: Path) -> None:
    """Two runs of one model, three checkpoints each."""
    for name, version in (("run", 0), ("other", 1)):
        (base / name).mkdir(parents=True)
        (base / name / "run.json").write_text(json.dumps({"id": name}))
        for step in STEPS:
            DirectoryCheckpointIO(name).save_checkpoint(state(step, version), path_of(base / name, step))


def problems_of(kind: str, base: Path, drawn: random.Random) -> list[str]:
    """Damage one to all of a run's checkpoints, newest first; what does not hold afterwards."""
    work = base / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(base / "run", work / "run")
    shutil.copytree(base / "other", work / "other")
    run, hurt = work / "run", drawn.choice([(30,), (30,), (30, 20), (20,)])
    if kind in ("a file of another checkpoint", "a stale manifest", "another checkpoint under its name"):
        hurt = hurt[:1]  # what is copied from must be whole
    where = [f"{step}: {KINDS[kind](Place(run, work / 'other', step, drawn))}" for step in hurt]
    found = []
    for step in hurt:
        if kind not in ("another checkpoint under its name", "another run's checkpoint"):  # whole in themselves
            for load in (verify_checkpoint, read_weights, DirectoryCheckpointIO().load_checkpoint):
                try:
                    load(path_of(run, step))
                    found.append(f"not detected by {load.__name__}")
                except CorruptCheckpoint as error:
                    found += [] if f"step-{step:08d}" in str(error) else [f"unnamed: {error}"]
                except Exception as error:  # noqa: BLE001 (any other class is what is looked for)
                    found.append(f"{load.__name__}: {error!r}")
    told: dict[str, str] = {}
    expected = next(step for step in reversed(STEPS) if step not in hurt)
    try:
        newest = newest_good(run, on_bad=lambda path, error: told.update({path.name: str(error)}))
        found += [] if newest == path_of(run, expected) else [f"{newest.name} is taken"]
        if bad := problem_with(newest, expected):
            found.append(bad)
    except CheckpointError as error:
        found.append(f"none is taken: {error!r}")
    aside = {f"step-{step:08d}.damaged" for step in hurt if step > expected}
    if set(told) != aside or not all((run / "checkpoints" / name).is_dir() for name in aside):
        found.append(f"told of {sorted(told)}, expected {sorted(aside)}")
    found += [f"{name}: {text}" for name, text in told.items() if name.removesuffix(".damaged") not in text]
    return [f"{kind} ({', '.join(where)}): {problem}" for problem in found]
