"""Versions and machine facts for a run's manifest. No environment variables, user names or tokens."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "pytorch-lightning", "transformers", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Version of anyformer, of Python and of the packages that shape a result; a missing package is left out."""
    found = {"anyformer": own_version(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def own_version() -> str:
    """Version of this package."""
    from anyformer import __version__

    return __version__


def machine() -> dict[str, Any]:
    """Platform, processor, logical cores, torch's threads, memory in GB (10⁹ bytes) and the GPU's name, or "cpu"."""
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    if device == "cpu" and torch.backends.mps.is_available():
        device = "mps"
    memory = _memory_bytes()
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": None if memory is None else round(memory / 1e9, 1),
        "device": device,
    }


def differences(recorded: dict[str, Any]) -> list[str]:
    """What decides a result's last digits and is another here than a run's manifest records, in words.

    The versions, the processor, torch's threads, the GPU of a run that used one; what a manifest lacks is not compared.
    """
    on_gpu = (recorded.get("effective") or {}).get("device", "cpu") != "cpu"
    names = ("processor", "threads", *(("device",) if on_gpu else ()))
    facts, now = recorded.get("machine") or {}, machine()
    then = {**(recorded.get("versions") or {}), **{name: facts.get(name) for name in names}}
    here = {**versions(), **now}
    return [
        f"{name}: {here.get(name, 'none')} instead of {value}"
        for name, value in then.items()
        if value is not None and here.get(name) != value
    ]


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    # platform.processor() is empty on most Linux systems; the model's name is in /proc/cpuinfo
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        match = None
    if match:
        return " ".join(match.group(1).split())
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
