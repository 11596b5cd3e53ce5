"""The examples of classification and sequence-to-sequence as the settings name them, and how they may be batched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.errors import DataError
from anyformer.core.findings import Finding
from anyformer.core.settings import TrainSettings
from anyformer.data.examples import Columns, Examples, Kind, open_examples, split_examples, target_beside
from anyformer.data.hub import parse_reference
from anyformer.data.pairs import PaddedExamples
from anyformer.data.tables import is_table
from anyformer.models.calls.probing import difference, tolerance
from anyformer.models.inputs import hides_padding
from anyformer.models.objectives import batch_logits
from anyformer.models.plan import CallPlan
from anyformer.models.probes import untouched


def columns_of(settings: TrainSettings) -> Columns:
    """The columns that the settings name."""
    return Columns(
        text=settings.text_column,
        label=settings.label_column,
        source=settings.source_column,
        target=settings.target_column,
        target_data=settings.target_data,
    )


def held_out_columns(columns: Columns, val_data: str) -> Columns:
    """The same for other data: the second file is the one beside it; a table has both columns."""
    if columns.target_data is None:
        return columns
    table = parse_reference(val_data) is not None or is_table(Path(val_data))
    return replace(columns, target_data=None if table else target_beside(val_data, columns.target_data))


def sides_of(data: Any, settings: TrainSettings, kind: Kind) -> tuple[Examples, Examples, list[Finding]]:
    """(examples to train on, held-out examples, findings). Raises DataError, DataNotFound."""
    columns = columns_of(settings)
    examples = open_examples(data, kind, columns)
    held_out = None
    if settings.val_data is not None:
        held_out = open_examples(settings.val_data, kind, held_out_columns(columns, settings.val_data))
    train, val, notes = split_examples(examples, settings.val_split, held_out)
    return train, val, [*examples.findings, *notes]


def reads_padding(module: nn.Module, plan: CallPlan, examples: PaddedExamples) -> tuple[bool, Finding]:
    """Whether padding beside a text changes what the model gives for it, measured on a short text beside a long one."""
    if plan.only_length is not None:
        measured = f"every text, to the {plan.only_length:,} tokens that the model runs at alone"
        if hides_padding(plan):
            return False, Finding("padding", "ok", measured, reason="hidden by its mask")
        return False, Finding("padding", "warn", measured, "hidden", "it takes no mask: the model reads the padding")
    lengths = examples.first.lengths
    short, long = int(lengths.argmin()), int(lengths.argmax())
    if lengths[short] == lengths[long]:
        return False, Finding("padding", "n/a", "none", reason="all texts are of one length")
    together = examples.__getitems__([short, long]).tensors
    alone = examples.__getitems__([short]).tensors
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    with untouched(module), torch.no_grad():
        module.eval()
        try:
            beside = _first_row(module, plan, together, device)
            by_itself = _first_row(module, plan, alone, device)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            why = f"it fails on a padded batch ({type(error).__name__}): batches hold {_of_one_length(plan)}"
            return True, Finding("padding", "note", "not tried", reason=why)
    if not bool(torch.isfinite(torch.cat([by_itself, beside])).all()):
        return True, Finding("padding", "note", "not measured", reason="logits that are no finite numbers")
    moved = float(difference(by_itself[None], beside[None, : len(by_itself)]).max())
    if moved <= tolerance(by_itself[None]):
        return False, Finding("padding", "ok", "a text gives the same with padding beside it", reason="measured")
    why = f"it is not told, or does not heed, which tokens are padding: batches hold {_of_one_length(plan)}"
    return True, Finding("padding", "note", f"the model reads it (by {moved:.2g})", reason=why)


def _of_one_length(plan: CallPlan) -> str:
    if plan.family == "encoder_decoder":  # of those to write, the padding comes after all that counts
        return "texts to read of one length; those to write are padded behind their end"
    return "texts of one length, without any"


def _first_row(module: nn.Module, plan: CallPlan, batch: dict[str, Tensor], device: torch.device) -> Tensor:
    """Logits of the first row: (S, V) where tokens are written, (1, C) of a classifier."""
    given = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
    logits = batch_logits(module, plan, given)[0]
    if plan.family == "classifier":
        return logits[None]
    return logits[: int(batch["target_mask"][0].sum())] if "target_mask" in batch else logits


def require_same_classes(examples: Examples, classes: tuple[str, ...]) -> None:
    """DataError for a class that the run does not know."""
    unknown = sorted({*examples.second} - {*classes})
    if unknown:
        raise DataError(
            f"{examples.name} has a class that the run does not know: {unknown[0]!r}",
            f"it was trained on {', '.join(classes)}",
            "data with these classes, or another --label_column",
        )
