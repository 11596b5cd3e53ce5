"""The exporters that notebooks use: a model in, a dict of what was written and measured out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from anyformer.core.errors import ExportError
from anyformer.export.called import Shapes
from anyformer.export.onnxfile import write_onnx
from anyformer.export.parity import Written, race
from anyformer.export.programs import Mode, write_torchscript
from anyformer.models.plan import CallPlan
from anyformer.models.planned import planned

_MB = 1e6


def called_by(model: Any, call_plan: CallPlan | None = None) -> tuple[nn.Module, CallPlan]:
    """The module itself and its call plan: those of a ``UniversalModelAdapter`` or a ``LoadedModel``, or inferred."""
    inner = model if isinstance(model, nn.Module) else getattr(model, "module", None)
    if not isinstance(inner, nn.Module):
        raise ExportError(f"a {type(model).__name__} is no model", fix="give an nn.Module or a UniversalModelAdapter")
    known, own = getattr(inner, "call_plan", None), getattr(inner, "model", None)
    if isinstance(known, CallPlan) and isinstance(own, nn.Module):
        return own, call_plan or known
    return inner, call_plan or planned(inner)


def fitting(plan: CallPlan, vocab_size: int | None, max_seq_len: int | None) -> None:
    """Raises ExportError where the caller's sizes are not the model's."""
    if vocab_size is not None and vocab_size != plan.vocab_size:
        raise ExportError(
            f"vocab_size is {vocab_size:,}, the model's logits are {plan.vocab_size:,} wide",
            fix=f"vocab_size={plan.vocab_size}, or leave it out",
        )
    longest = plan.max_positions
    if max_seq_len is not None and longest is not None and max_seq_len > longest:
        raise ExportError(
            f"max_seq_len is {max_seq_len:,}, the model takes {longest:,} tokens", fix=f"max_seq_len={longest}"
        )


def described(module: nn.Module, plan: CallPlan, written: Written, *, benchmark: bool) -> dict[str, Any]:
    """What was written, as the API reference has it: output_path, file_size_mb, mode, parity, benchmark."""
    beside = written.path.with_name(written.path.name + ".data")  # large weights of an ONNX file
    size = sum(path.stat().st_size for path in (written.path, beside) if path.exists())
    parity = written.parity
    speed = race(module, plan, written.run) if benchmark else None
    return {
        "output_path": str(written.path),
        "file_size_mb": size / _MB,
        "mode": written.mode,
        "opset": written.opset,
        "inputs": list(Shapes.of(plan).names),
        "validation": None if parity is None else {"max_error": parity.max_error, "shapes": list(parity.shapes)},
        "benchmark": None
        if speed is None
        else {
            "shape": speed.shape,
            "pytorch_ms": 1000 * speed.model,
            "exported_ms": 1000 * speed.artefact,
            "speedup": speed.speedup,
        },
    }


class ONNXExporter:
    """Writes ONNX files, each compared with the model in onnxruntime at shapes it was not made from."""

    def __init__(
        self, opset_version: int | None = None, optimize: bool = True, validate: bool = True, benchmark: bool = True
    ) -> None:
        """opset_version: as torch writes it where None. optimize: fold constants and repeated operations.

        validate: compare with the model; benchmark: time both sides in turn with as many threads.
        """
        self.opset_version = opset_version
        self.optimize = optimize
        self.validate = validate
        self.benchmark = benchmark

    def export(
        self,
        model: Any,
        output_path: str | Path,
        vocab_size: int | None = None,
        max_seq_len: int | None = None,
        dynamic_axes: bool = True,
        *,
        call_plan: CallPlan | None = None,
    ) -> dict[str, Any]:
        """Write ``output_path``: ids (B, T) int64 in, logits (B, T, V) out, batch and length free with dynamic_axes.

        vocab_size, max_seq_len: compared with the model's own where given. call_plan: inferred where not given.
        Returns output_path, file_size_mb, mode, opset, inputs, validation, benchmark (speedup, …). Raises ExportError,
        ParityError, and DependencyError where onnx is not installed.
        """
        module, plan = called_by(model, call_plan)
        fitting(plan, vocab_size, max_seq_len)
        written = write_onnx(
            module,
            plan,
            Path(output_path),
            opset=self.opset_version,
            dynamic=dynamic_axes,
            optimize=self.optimize,
            proof=self.validate,
        )
        return described(module, plan, written, benchmark=self.benchmark)


class TorchScriptExporter:
    """Writes TorchScript files, each compared with the model at shapes it was not made from."""

    def __init__(self, validate: bool = True, benchmark: bool = True) -> None:
        """validate: compare with the model; benchmark: time both sides in turn with as many threads."""
        self.validate = validate
        self.benchmark = benchmark

    def export(
        self,
        model: Any,
        output_path: str | Path,
        vocab_size: int | None = None,
        max_seq_len: int | None = None,
        mode: Mode = "auto",
        *,
        call_plan: CallPlan | None = None,
    ) -> dict[str, Any]:
        """Write ``output_path``. mode: trace, script, or auto: traced, and compiled where that does not hold.

        As ``ONNXExporter.export`` otherwise. Raises ExportError, ParityError.
        """
        module, plan = called_by(model, call_plan)
        fitting(plan, vocab_size, max_seq_len)
        written = write_torchscript(module, plan, Path(output_path), mode=mode, proof=self.validate)
        return described(module, plan, written, benchmark=self.benchmark)
