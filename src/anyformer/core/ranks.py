"""Which of several processes of one run this one is, as far as the environment says; nothing heavy is imported here."""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Mapping
from typing import Any

LED_BY = "ANYFORMER_LED_BY"
"""Set in the processes that a run starts beside its own: the id of that process."""


def is_led(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether another process has started this one to help it with a run."""
    return LED_BY in environment


def is_under_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in environment and "RANK" in environment


def is_under_slurm(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether srun has started this process as one of several tasks."""
    batch = environment.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    return batch and "SLURM_PROCID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1


def follows(settings: Any = None, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether another process writes and speaks for this one. settings: with ``devices`` and ``num_nodes``, if any."""
    if is_led(environment):
        return True
    if is_under_torchrun(environment):
        return int(environment["RANK"]) > 0
    nodes = int(getattr(settings, "num_nodes", 1))
    if int(getattr(settings, "devices", 1)) * nodes == 1:
        return False  # tasks of SLURM that have nothing to do with each other
    if is_under_slurm(environment):
        return int(environment["SLURM_PROCID"]) > 0
    return nodes > 1 and int(environment.get("NODE_RANK", "0")) > 0


def why_alone() -> str:
    """Why no second process can be started that runs the same program; empty where it can."""
    main = sys.modules.get("__main__")
    if hasattr(builtins, "__IPYTHON__") or hasattr(sys, "ps1"):
        return "a notebook or an interactive session cannot be started a second time"
    if getattr(main, "__file__", None) is None:
        return "a program that is no file cannot be started a second time"
    return ""
