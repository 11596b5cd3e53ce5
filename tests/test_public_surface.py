"""The public names, pinned: adding or removing one is a decision, not an accident."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import anyformer

PUBLIC = [
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


def test_the_list_is_pinned() -> None:
    assert sorted(anyformer.__all__) == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(anyformer))


@pytest.mark.parametrize("name", PUBLIC)
def test_each_name_resolves(name: str) -> None:
    value = getattr(anyformer, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__name__ == name
        assert value.__module__.startswith("anyformer.")


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(inspect.getfile(anyformer)).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    typed = {
        (statement.module, alias.name)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert typed == {(module, name) for name, module in anyformer._HOME_OF.items()}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        anyformer.no_such_name  # noqa: B018
