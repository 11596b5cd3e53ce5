"""Our whole training loop, and other trainers, against a bare hand-written PyTorch loop, on one module.

4 layers, width 256, T 256, B 8, float32, one thread; --tiny: 2 layers, width 64, T 32, B 2. The same initial weights
and the same batches; the steps of the two alternate in one process, and each pair's CPU time is compared. What counts
as ours is everything between two pauses: reading the batch, Lightning's loop and hooks, our callbacks, logging, the
schedule. Other trainers get their batches for nothing.

    python benchmarks/train_loop.py [--steps 40] [--vocab_size 8192] [--tiny] [--contender anyformer|hugging_face|…]
"""

from __future__ import annotations

import argparse
import copy
import importlib
import platform
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.contenders.common import BareLoop, Pace  # noqa: E402

CONTENDERS = ("anyformer", "hugging_face", "plain_lightning", "litgpt")


@dataclass(frozen=True)
class Size:
    """A GPT and its batches. B batch, T time."""

    layers: int
    heads: int
    width: int
    T: int
    B: int


SMALL, TINY = Size(4, 4, 256, 256, 8), Size(2, 2, 64, 32, 2)


@dataclass(frozen=True)
class Measured:
    """CPU seconds of each step of the contender and of the bare loop beside it, and both losses."""

    ours: list[float]
    theirs: list[float]
    our_losses: list[Tensor]
    bare: BareLoop | None


def measure(
    steps: int, vocab_size: int, *, beside: bool = True, size: Size = SMALL, contender: str = "anyformer"
) -> Measured:
    """Train ``steps`` steps with a contender and the bare loop, alternating; with ours alone where not ``beside``."""
    from anyformer.models.example_gpt import GPT  # needs torch alone

    torch.manual_seed(0)
    module = GPT(vocab_size=vocab_size, block_size=size.T, n_layer=size.layers, n_head=size.heads, n_embd=size.width)
    bare = BareLoop(copy.deepcopy(module)) if beside else None
    with tempfile.TemporaryDirectory() as folder:
        if contender == "anyformer":
            from benchmarks.contenders.ours import train

            data = str(ROOT / "src") if size == TINY else "python-stdlib"
            return Measured(*train(module, bare, steps, size.T, size.B, Path(folder), data), bare)
        assert bare is not None
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(vocab_size, (steps + 3, size.B, size.T + 1), generator=generator)
        pace = Pace([(one[:, :-1].contiguous(), one[:, 1:].contiguous()) for one in ids], bare)
        other: Any = importlib.import_module(f"benchmarks.contenders.{contender}")
        losses = other.train(module, pace, steps, Path(folder))
        # before the first batch it only starts; the last interval closed is that of the last step at most
        ours = pace.ours[1 : steps + 1]
        return Measured(ours, pace.theirs[: len(ours)], losses[: len(bare.losses)], bare)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--contender", choices=CONTENDERS, default="anyformer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = TINY if arguments.tiny else SMALL
    result = measure(arguments.steps, arguments.vocab_size, size=size, contender=arguments.contender)
    bare = result.bare
    assert bare is not None
    skip = min(5, arguments.steps // 2)  # the first steps fill caches
    pairs = list(zip(result.ours[skip:], result.theirs[skip:], strict=False))
    ratios = sorted(theirs / ours for ours, theirs in pairs)
    over = sorted(ours - theirs for ours, theirs in pairs)
    difference = max(
        abs(float(ours) - float(theirs)) / float(theirs)
        for ours, theirs in zip(result.our_losses, bare.losses, strict=False)
    )
    machine = platform.processor() or platform.machine()
    print(f"{machine}, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{len(pairs)} pairs of steps after {skip} of warm-up, CPU time, 1 thread")
    width = len(arguments.contender)
    print(f"{'bare loop':<{width}}  {statistics.median(t for _, t in pairs) * 1e3:8.2f} ms per step (median)")
    print(f"{arguments.contender:<9}  {statistics.median(o for o, _ in pairs) * 1e3:8.2f} ms per step (median)")
    mean = sum(over) / len(over)
    print(f"over the bare loop: {statistics.median(over) * 1e3:.2f} ms per step (median), {mean * 1e3:.2f} (mean)")
    low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
    print(f"speed relative to the bare loop: {statistics.median(ratios):.3f} (10–90 %: {low:.3f}–{high:.3f})")
    print(f"largest relative difference of the losses: {difference:.1e}")


if __name__ == "__main__":
    main()
