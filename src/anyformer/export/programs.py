"""What torch itself runs without the model's file: TorchScript, and the program of torch.export (.pt2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anyformer.core.errors import ExportError
from anyformer.export.called import Called, Shapes, example_inputs, traceable
from anyformer.export.onnxfile import quiet
from anyformer.export.parity import Runner, Written, first_that_is_equal
from anyformer.export.reasons import reason
from anyformer.models.plan import CallPlan

Mode = Literal["auto", "trace", "script"]


def write_torchscript(
    module: nn.Module, plan: CallPlan, path: Path, *, mode: Mode = "auto", proof: bool = True
) -> Written:
    """Write a TorchScript file: what one call did, or, where that does not hold at other shapes, the code itself.

    Raises ExportError, ParityError. torch has given TorchScript up (deprecated since 2.10) and still carries it.
    """
    ways = {
        "trace": lambda path: _kept(module, plan, path, _traced),
        "script": lambda path: _kept(module, plan, path, _scripted),
    }
    if mode != "auto":
        ways = {mode: ways[mode]}
    return first_that_is_equal(module, plan, path, ways, "TorchScript file", proof=proof)


def _kept(module: nn.Module, plan: CallPlan, path: Path, make: Any) -> tuple[Runner, None]:
    with traceable(module), quiet():
        try:
            made = make(module, plan)
            torch.jit.save(made, str(path))
        except ExportError:
            raise
        except Exception as error:
            raise reason(error) from error
    return torchscript_runner(path), None


def _traced(module: nn.Module, plan: CallPlan) -> Any:
    inputs = example_inputs(plan, Shapes.of(plan).example())
    return torch.jit.freeze(torch.jit.trace(Called(module, plan).eval(), inputs, check_trace=False))  # type: ignore[no-untyped-call]


def _scripted(module: nn.Module, plan: CallPlan) -> Any:
    plain = plan.logits_path == () and plan.layout == "BTV" and plan.kind == "logits" and plan.logits_from == "output"
    simple = plain and not (plan.extras or plan.methods or plan.graph or plan.head or plan.packed or plan.time_first)
    if not simple or plan.alignment != "next" or plan.only_length or plan.only_rows or plan.family == "encoder_decoder":
        raise ExportError("only a module that is called with its ids alone and gives logits alone is compiled as it is")
    return torch.jit.freeze(torch.jit.script(module.eval()))


def torchscript_runner(path: Path) -> Runner:
    """A function that gives the file's logits for the inputs."""
    made: Any = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad():
            return made(*inputs)  # type: ignore[no-any-return]

    return run


def write_program(module: nn.Module, plan: CallPlan, path: Path, *, proof: bool = True) -> Written:
    """Write a .pt2 file: the operations of one call, with free batch and length. Raises ExportError, ParityError."""

    def way(strict: bool) -> Any:
        def write(path: Path) -> tuple[Runner, None]:
            shapes = Shapes.of(plan)
            inputs = example_inputs(plan, shapes.example())
            free: Any = {
                name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) or None for name, axes in shapes.named().items()
            }
            named = dict(zip(("input_ids", "second"), free.values(), strict=False))
            with traceable(module), quiet():
                try:
                    made = torch.export.export(Called(module, plan), inputs, dynamic_shapes=named, strict=strict)
                    torch.export.save(made, path)
                except Exception as error:
                    raise reason(error) from error
            return program_runner(path), None

        return write

    return first_that_is_equal(
        module, plan, path, {"torch.export": way(False), "torch.export, strict": way(True)}, ".pt2 file", proof=proof
    )


def program_runner(path: Path) -> Runner:
    """A function that gives the program's logits for the inputs."""
    made = torch.export.load(path).module()

    def run(inputs: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad():
            return made(*inputs)  # type: ignore[no-any-return]

    return run
