"""Names that more than one layer forms."""

from __future__ import annotations

import re
from pathlib import Path


def default_run_name(model: str, data: str) -> str:
    """Name of a run that was given none: the model's and the data's, without folders and endings.

    "models/my_gpt.py", "corpus.txt" → "my_gpt-corpus"; "example:gpt", "python-stdlib" → "example-gpt-python-stdlib".
    """
    stems = (Path(model.replace(".py:", ":")).name.removesuffix(".py"), Path(data).stem)
    plain = "-".join(re.sub(r"[^\w.]+", "-", stem).strip("-.") for stem in stems).strip("-")
    return plain or "run"
