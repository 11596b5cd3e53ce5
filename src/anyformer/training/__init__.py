"""The run: adapter, callbacks, coordinator. Lightning's loop is the only trainer in the house.

Also the door for the names that the API reference imports from here; those of higher layers are looked up when asked
for, so that this layer imports none of them.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "CheckpointManager": "anyformer.training.checkpoint_manager",
    "DriveBackupCallback": "anyformer.training.managed",
    "UniversalModelAdapter": "anyformer.training.adapter",
    "TrainingCoordinator": "anyformer.training.reference",
    "ONNXExporter": "anyformer.export.exporters",
    "TorchScriptExporter": "anyformer.export.exporters",
    "TrainResult": "anyformer.training.coordinator",
    "DatasetLoader": "anyformer.data.dataset_loader",
    "train_model": "anyformer.api",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
