"""Point it at any PyTorch transformer: it tells you whether the model is right, trains it on real text, and ships it.

Every public name is imported on first use, so that ``import anyformer`` needs neither torch nor anything else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "2.1.0"

_HOMES = {
    "anyformer.api": ("check", "evaluate", "generate", "load_model", "repair", "reproduce", "train"),
    "anyformer.training": (
        *("CheckpointManager", "DriveBackupCallback", "TrainingCoordinator", "UniversalModelAdapter", "train_model"),
    ),
    "anyformer.data": ("AdaptiveTokenizerDataModule", "DatasetLoader"),
    "anyformer.tokenization": (
        *("AdaptiveTokenizer", "BPETrainerConfig", "CharacterLevelTokenizer", "FastBPETrainer", "TokenizerValidator"),
    ),
    "anyformer.models.callplan": ("CallPlan", "infer_call_plan"),
    "anyformer.models.graph": ("ComputationalGraphExecutor",),
    "anyformer.models.signature": ("ModelSignatureInspector",),
    "anyformer.models.source": ("LoadedModel",),
    "anyformer.core.findings": ("Finding",),
    "anyformer.core.settings": (
        *("CheckSettings", "DemoSettings", "EvaluateSettings", "ExportSettings", "GenerateSettings", "TrainSettings"),
    ),
    "anyformer.core.errors": (
        *("AnyformerError", "CallError", "CheckpointError", "ConstructError", "CorruptCheckpoint", "DataError"),
        *("DataNotFound", "DependencyError", "ExportError", "Interrupted", "ParityError", "SettingsError"),
        *("SourceError", "TokenizerError", "TrainingError", "TrustError"),
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AdaptiveTokenizer",
    "AdaptiveTokenizerDataModule",
    "AnyformerError",
    "BPETrainerConfig",
    "CallError",
    "CallPlan",
    "CharacterLevelTokenizer",
    "CheckSettings",
    "CheckpointError",
    "CheckpointManager",
    "ComputationalGraphExecutor",
    "ConstructError",
    "CorruptCheckpoint",
    "DataError",
    "DataNotFound",
    "DatasetLoader",
    "DemoSettings",
    "DependencyError",
    "DriveBackupCallback",
    "EvaluateSettings",
    "ExportError",
    "ExportSettings",
    "FastBPETrainer",
    "Finding",
    "GenerateSettings",
    "Interrupted",
    "LoadedModel",
    "ModelSignatureInspector",
    "ParityError",
    "SettingsError",
    "SourceError",
    "TokenizerError",
    "TokenizerValidator",
    "TrainSettings",
    "TrainingCoordinator",
    "TrainingError",
    "TrustError",
    "UniversalModelAdapter",
    "__version__",
    "check",
    "evaluate",
    "generate",
    "infer_call_plan",
    "load_model",
    "repair",
    "reproduce",
    "train",
    "train_model",
]

if TYPE_CHECKING:
    from anyformer.api import check, evaluate, generate, load_model, repair, reproduce, train
    from anyformer.core.errors import (
        AnyformerError,
        CallError,
        CheckpointError,
        ConstructError,
        CorruptCheckpoint,
        DataError,
        DataNotFound,
        DependencyError,
        ExportError,
        Interrupted,
        ParityError,
        SettingsError,
        SourceError,
        TokenizerError,
        TrainingError,
        TrustError,
    )
    from anyformer.core.findings import Finding
    from anyformer.core.settings import (
        CheckSettings,
        DemoSettings,
        EvaluateSettings,
        ExportSettings,
        GenerateSettings,
        TrainSettings,
    )
    from anyformer.data import AdaptiveTokenizerDataModule, DatasetLoader
    from anyformer.models.callplan import CallPlan, infer_call_plan
    from anyformer.models.graph import ComputationalGraphExecutor
    from anyformer.models.signature import ModelSignatureInspector
    from anyformer.models.source import LoadedModel
    from anyformer.tokenization import (
        AdaptiveTokenizer,
        BPETrainerConfig,
        CharacterLevelTokenizer,
        FastBPETrainer,
        TokenizerValidator,
    )
    from anyformer.training import (
        CheckpointManager,
        DriveBackupCallback,
        TrainingCoordinator,
        UniversalModelAdapter,
        train_model,
    )


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'anyformer' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value  # the next use is a plain lookup
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
