"""Names that more than one layer forms, and the folders of runs by name. No run is opened here: nothing heavy."""

from __future__ import annotations

import re
from pathlib import Path

from anyformer.core.gistref import parse_gist

MANIFEST = "run.json"
_SHOWN = 8  # names in one line of an error


def default_run_name(model: str, data: str) -> str:
    """Name of a run that was given none: the model's and the data's, without folders and endings.

    "models/my_gpt.py", "corpus.txt" → "my_gpt-corpus"; "example:gpt", "python-stdlib" → "example-gpt-python-stdlib";
    "gist:0123456789ab", "corpus.txt" → "gist-01234567-corpus".
    """
    gist = parse_gist(model)
    if gist is not None:
        model = gist.name or gist.class_name or f"gist-{gist.id[:8]}"
    stems = (Path(model.replace(".py:", ":")).name.removesuffix(".py"), Path(data).stem)
    plain = "-".join(re.sub(r"[^\w.]+", "-", stem).strip("-.") for stem in stems).strip("-")
    return plain or "run"


def run_folder(path: str | Path) -> Path:
    """The folder of the run that a path names: that folder, the one of its checkpoints, or a checkpoint in it.

    "runs/a", "runs/a/checkpoints", "runs/a/checkpoints/step-00000040" → "runs/a". Looks only whether a run.json is
    there: runs may lie in a folder that is called checkpoints.
    """
    folder = Path(path).expanduser()
    if (folder / MANIFEST).is_file():
        return folder
    if folder.name == "checkpoints":
        return folder.parent
    return folder.parent.parent if folder.parent.name == "checkpoints" else folder


def list_runs(parent: str | Path) -> list[str]:
    """Names of the runs in a folder, newest first by when they were last written."""
    try:
        files = [(file.stat().st_mtime, file.parent.name) for file in Path(parent).glob(f"*/{MANIFEST}")]
    except OSError:
        return []
    return [name for _, name in sorted(files, reverse=True)]


def free_folder(parent: Path, name: str) -> Path:
    """``parent/name``, or name-2, name-3 … where that exists; makes nothing."""
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def runs_beside(folder: Path) -> str:
    """The way out where ``folder`` is no run: the runs beside it, else those in it, else how one is made."""
    for place in (folder.parent, folder):
        runs = list_runs(place)
        if runs:
            more = f" and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else ""
            return f"runs in {place}: {', '.join(runs[:_SHOWN])}{more}"
    return f"{folder.parent} holds no run; anyformer train MODEL --data FILE makes one"
