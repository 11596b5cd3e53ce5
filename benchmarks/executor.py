"""The graph executor against direct calls: builder exports beside the same models corrected by hand, same weights.

For each export of tests/models/builder_exports that has a twin: nodes, the time to derive its dataflow, and the largest
differences of logits and of parameter gradients over three batches, in eval and in training mode (dropout is 0 in all).
Prints a markdown table.

    python benchmarks/executor.py
"""

from __future__ import annotations

import os
import platform
import sys
import time
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from anyformer.models.graph import derive_graph, run_graph  # noqa: E402
from anyformer.models.source import load_model  # noqa: E402
from tests.models.builder_twins import TWINS  # noqa: E402

SIZES = ((1, 1), (3, 7), (2, 16))


def main() -> None:
    """Print the table."""
    print("# The graph executor against direct calls\n")
    print("`python benchmarks/executor.py`. Float32. Largest difference over three batches and both modes.\n")
    print(f"{os.cpu_count()} CPUs, Python {platform.python_version()}, torch {torch.__version__}.\n")
    print("| export | nodes | derived in | logits differ by | gradients differ by |")
    print("|---|---|---|---|---|")
    for name in TWINS:
        torch.manual_seed(3)
        folder = ROOT / "tests" / "models" / "builder_exports"
        module = load_model(folder / name if (folder / name).is_dir() else folder / f"{name}.py").module
        twin = TWINS[name]()
        twin.load_state_dict(module.state_dict())
        begin = time.perf_counter()
        graph = derive_graph(module)
        seconds = time.perf_counter() - begin
        logits, gradients = 0.0, 0.0
        for training in (False, True):
            module.train(training)
            twin.train(training)
            for seed, (B, T) in enumerate(SIZES):
                ids = torch.randint(0, 29, (B, T), generator=torch.Generator().manual_seed(seed))
                ours, theirs = run_graph(module, graph, ids), twin(ids)
                logits = max(logits, float((ours - theirs).detach().abs().max()))
                gradients = max(gradients, _gradients(module, twin, ours, theirs, ids))
        print(f"| {name} | {len(graph.steps)} | {1e3 * seconds:.0f} ms | {logits:.1e} | {gradients:.1e} |")


def _gradients(
    module: nn.Module, twin: nn.Module, ours: torch.Tensor, theirs: torch.Tensor, ids: torch.Tensor
) -> float:
    """Largest difference between the two models' parameter gradients of the same loss."""
    for model, output in ((module, ours), (twin, theirs)):
        model.zero_grad()
        nn.functional.cross_entropy(output.flatten(0, 1), ids.flatten()).backward()
    expected = {name: parameter.grad for name, parameter in twin.named_parameters()}
    differences = []
    for name, parameter in module.named_parameters():
        other = expected[name]
        if parameter.grad is None or other is None:
            raise RuntimeError(f"{name} got no gradient")
        differences.append(float((parameter.grad - other).abs().max()))
    return max(differences)


if __name__ == "__main__":
    main()
