"""ONNX: through torch.export, or by tracing where that cannot follow the model; kept where it computes the same."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.errors import ExportError
from anyformer.core.optional import require, require_there
from anyformer.export.called import Called, Shapes, example_inputs, traceable
from anyformer.export.parity import Runner, Written, first_that_is_equal
from anyformer.export.reasons import reason
from anyformer.models.plan import CallPlan

OPSET = 18
"""What torch's exporter writes of itself (torch.onnx documentation, 2.13); others are converted to."""


def write_onnx(
    module: nn.Module,
    plan: CallPlan,
    path: Path,
    *,
    opset: int | None = None,
    dynamic: bool = True,
    optimize: bool = True,
    proof: bool = True,
) -> Written:
    """Write ``path`` and compare it with the model in onnxruntime.

    opset: as exported where not given. dynamic: batch and lengths may differ from call to call.
    Raises ExportError where no way leads there, with the reason of each; ParityError where none computes the same.
    """
    require("onnxscript", "export", "writing ONNX")
    require_there("onnxruntime", "export", "comparing the ONNX file with the model")

    def export(path: Path) -> tuple[Runner, int]:
        made = _by_export(module, plan, path, opset, dynamic, optimize)
        return onnx_runner(path, plan), made

    def trace(path: Path) -> tuple[Runner, int]:
        made = _by_trace(module, plan, path, opset, dynamic)
        return onnx_runner(path, plan), made

    ways = {"torch.export": export, "trace": trace}
    return first_that_is_equal(module, plan, path, ways, "ONNX file", proof=proof, free=dynamic)


def _by_export(module: nn.Module, plan: CallPlan, path: Path, opset: int | None, dynamic: bool, optimize: bool) -> int:
    shapes = Shapes.of(plan)
    inputs = example_inputs(plan, shapes.example())
    free: Any = tuple(shapes.named()[name] for name in shapes.names) if dynamic else None
    with traceable(module), quiet():
        try:
            made = torch.onnx.export(
                Called(module, plan),
                inputs,
                dynamo=True,
                input_names=list(shapes.names),
                output_names=["logits"],
                dynamic_shapes=free,
                opset_version=opset or OPSET,
                verbose=False,
                optimize=optimize,
            )
        except Exception as error:
            raise reason(error) from error
        assert made is not None
        made.save(path)
    return _checked(path, opset)


def _by_trace(module: nn.Module, plan: CallPlan, path: Path, opset: int | None, dynamic: bool) -> int:
    shapes = Shapes.of(plan)
    inputs = example_inputs(plan, shapes.example())
    free = {axis for axes in shapes.named().values() for axis in axes.values()}
    out = {i: axis for i, axis in enumerate(shapes.axes) if axis in free}
    with traceable(module), quiet():
        try:
            torch.onnx.export(
                Called(module, plan),
                inputs,
                str(path),
                dynamo=False,
                input_names=list(shapes.names),
                output_names=["logits"],
                dynamic_axes={**shapes.named(), "logits": out} if dynamic else None,
                opset_version=opset or OPSET,
            )
        except Exception as error:
            raise reason(error) from error
    return _checked(path, opset)


def _checked(path: Path, opset: int | None) -> int:
    """The opset of the file, which onnx's own checker finds well formed. Raises ExportError."""
    onnx = require("onnx", "export", "checking the ONNX file")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError("onnx finds the file malformed", str(error).strip().splitlines()[0][:300]) from error
    model = onnx.load(str(path), load_external_data=False)
    found = next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset is not None and found != opset:
        raise ExportError(
            f"opset {opset} cannot be had: the file has opset {found}",
            "an operator of the model has no form in it",
            f"--opset {found}, or leave it out",
        )
    return found


def onnx_runner(path: Path, plan: CallPlan, threads: int | None = None) -> Runner:
    """A function that gives the file's logits for the inputs, computed by onnxruntime with as many threads as torch."""
    runtime = require("onnxruntime", "export", "running an ONNX file")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is raised, and told
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError("onnxruntime does not load the file", str(error).strip().splitlines()[0][:300]) from error
    names = [given.name for given in session.get_inputs()]
    wanted = Shapes.of(plan).names

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        # an input that plays no part may be gone from the file
        given = {name: tensor.numpy() for name, tensor in zip(wanted, inputs, strict=True) if name in names}
        return torch.from_numpy(session.run(None, given)[0])

    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporters tell of each step on all three channels, and of a failure with the whole graph, some from C++."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number in (1, 2):
                os.dup2(nowhere.fileno(), number)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        logging.disable(before)
