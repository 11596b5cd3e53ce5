"""A model in several formats, each file proven or not written; one that fails does not stop the others."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from anyformer.core.errors import AnyformerError, ExportError
from anyformer.core.findings import Finding
from anyformer.core.protocols import View
from anyformer.export.exporters import described
from anyformer.export.onnxfile import write_onnx
from anyformer.export.parity import Written
from anyformer.export.programs import write_program, write_torchscript
from anyformer.models.plan import CallPlan

Writer = Callable[[nn.Module, CallPlan, Path, int | None], Written]
_WRITERS: dict[str, tuple[str, Writer]] = {
    "onnx": ("model.onnx", lambda module, plan, path, opset: write_onnx(module, plan, path, opset=opset)),
    "torchscript": ("model.torchscript", lambda module, plan, path, opset: write_torchscript(module, plan, path)),
    "torch_export": ("model.pt2", lambda module, plan, path, opset: write_program(module, plan, path)),
}


@dataclass(frozen=True)
class Exports:
    """What was written, what was not, and why."""

    folder: Path
    files: tuple[dict[str, Any], ...]
    """As the API reference has them: format, output_path, file_size_mb, mode, validation, benchmark …"""
    findings: tuple[Finding, ...]
    """One for each format."""


def export_to(
    module: nn.Module,
    plan: CallPlan,
    formats: tuple[str, ...],
    folder: Path,
    *,
    opset: int | None,
    overwrite: bool,
    view: View,
) -> Exports:
    """Write ``module`` to ``folder`` in each format. Raises ExportError where a file is there already."""
    there = [folder / _WRITERS[name][0] for name in formats if (folder / _WRITERS[name][0]).exists()]
    if there and not overwrite:
        raise ExportError(f"{there[0]} is there already", fix="--overwrite true, or --output_dir FOLDER")
    folder.mkdir(parents=True, exist_ok=True)
    files, findings = [], []
    for name in formats:
        view.status(f"exporting: {name}")
        file, write = _WRITERS[name]
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as new:  # what is there stays until then
            try:
                written = write(module, plan, Path(new) / file, opset)
                record = {"format": name, **described(module, plan, written, benchmark=True)}
            except AnyformerError as error:
                why = [line.strip() for line in (error.detail + "\n" + error.fix).splitlines() if line.strip()]
                finding = Finding(name, "fail", "not written", "", "; ".join([error.what, *why]))
            else:
                for path in Path(new).iterdir():  # large weights of an ONNX file lie beside it
                    path.replace(folder / path.name)
                record["output_path"] = str(folder / file)
                files.append(record)
                finding = _told(name, record)
        findings.append(finding)
        view.finding(finding)
    return Exports(folder, tuple(files), tuple(findings))


def _told(name: str, record: dict[str, Any]) -> Finding:
    proof, speed = record["validation"], record["benchmark"]
    made = f"{record['file_size_mb']:,.1f} MB, by {record['mode']}" + (
        f", opset {record['opset']}" if record["opset"] else ""
    )
    at = " × ".join(map(str, speed["shape"]))
    equal = f"logits within {proof['max_error']:.0e} of the model's at {len(proof['shapes'])} unseen shapes"
    times = f"{speed['speedup']:.2f} × its speed here ({at}: {speed['exported_ms']:.1f} ms)"
    return Finding(name, "ok", made, "", f"{equal}; {times}")
