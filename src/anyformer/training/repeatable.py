"""Runs whose every figure can be had again on the same machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from anyformer.core.errors import TrainingError

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def repeatable(asked: bool) -> Iterator[None]:
    """Only operations that give the same bits each time, until the block ends; nothing where it is not asked for.

    Raises TrainingError where the model uses one that torch has in no such form.
    """
    if not asked:
        yield
        return
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(_CUBLAS)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # it would choose by timing
    os.environ[_CUBLAS] = ":4096:8"  # https://docs.nvidia.com/cuda/cublas/index.html#results-reproducibility
    try:
        yield
    except RuntimeError as error:
        if "deterministic implementation" not in str(error):
            raise
        raise TrainingError(
            "the model uses an operation that has no deterministic form on this device",
            str(error).split(", but")[0].split(". ")[0],
            "leave --deterministic out, or replace that operation",
        ) from error
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(_CUBLAS, None)
        else:
            os.environ[_CUBLAS] = workspace
