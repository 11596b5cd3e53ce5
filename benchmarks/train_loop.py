"""Our whole training loop against a bare hand-written PyTorch loop, on one module.

4 layers, width 256, T 256, B 8, float32, one thread; the same initial weights and the same batches; the steps
of the two alternate in one process, and each pair's CPU time is compared. What counts as ours is everything between
two pauses: reading the batch, Lightning's loop and hooks, our callbacks, logging, the schedule.

    python benchmarks/train_loop.py [--steps 40] [--vocab_size 8192]
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import tempfile
import time
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.core.settings import TrainSettings
from anyformer.core.view import QuietView
from anyformer.models.callplan import infer_call_plan
from anyformer.models.example_gpt import GPT
from anyformer.runs.directory import RunDirectory
from anyformer.training import UniversalModelAdapter
from anyformer.training.effective import derive
from anyformer.training.fit import build_trainer, quiet_lightning
from anyformer.training.prepare import prepare_text

LAYERS, WIDTH, T, B = 4, 256, 256, 8
WARMUP_STEPS, LEARNING_RATE = 10, 3e-4


class BareLoop:
    """What one writes by hand: AdamW (fused), warm-up, clipping."""

    def __init__(self, module: nn.Module, steps: int) -> None:
        self.module = module.train()
        self.steps = steps
        matrices = [p for p in module.parameters() if p.dim() >= 2]
        others = [p for p in module.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)
        self.step = 0
        self.losses: list[Tensor] = []

    def __call__(self, input_ids: Tensor, targets: Tensor) -> None:
        """One optimizer step on ids and next tokens, both (B, T)."""
        factor = min(1.0, (self.step + 1) / (WARMUP_STEPS + 1))
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * factor
        logits = self.module(input_ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.losses.append(loss.detach())


class Alternate(pl.Callback):
    """Runs one bare step on the same batch after each of ours and notes the CPU time of both."""

    def __init__(self, bare: BareLoop | None) -> None:
        self.bare = bare
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.our_losses: list[Tensor] = []
        self._resumed = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._resumed = time.process_time()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.ours.append(time.process_time() - self._resumed)
        self.our_losses.append(outputs["loss"].detach())
        if self.bare is None:
            return
        begin = time.process_time()
        ids = batch["input_ids"].clone()  # the bare loop reads a batch of its own, too
        targets = torch.cat([ids[:, 1:], batch["next_ids"][:, None]], dim=1)
        self.bare(ids, targets)
        self.theirs.append(time.process_time() - begin)
        self._resumed = time.process_time()


def measure(steps: int, vocab_size: int, *, beside: bool = True) -> Alternate:
    """Train ``steps`` steps with both loops, alternating; with ours alone where not ``beside``."""
    torch.manual_seed(0)
    module = GPT(vocab_size=vocab_size, block_size=T, n_layer=LAYERS, n_head=4, n_embd=WIDTH)
    twin = copy.deepcopy(module) if beside else None
    plan = infer_call_plan(module)
    view = QuietView()
    settings = TrainSettings(
        max_steps=steps,
        batch_size=B,
        learning_rate=LEARNING_RATE,
        warmup_steps=WARMUP_STEPS,
        min_lr_ratio=1.0,  # constant after the warm-up, so that the bare loop needs no cosine
        precision="32",
        eval_every=steps,
    )
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder, quiet_lightning():
        text = prepare_text(settings, plan, module, T, plan.objective, view=view)
        effective, _ = derive(
            settings,
            module,
            plan,
            batches_per_epoch=text.train_batches,
            val_blocks=text.val_blocks,
            max_length=T,
            precision="32",
            device=device,
        )
        text.limit_evaluation(1)
        adapter = UniversalModelAdapter(
            module,
            effective.learning_rate,
            warmup_steps=effective.warmup_steps,
            weight_decay=0.1,
            call_plan=plan,
            min_lr_ratio=settings.min_lr_ratio,
            total_steps=effective.total_steps,
        )
        fit = build_trainer(RunDirectory.create(folder, "bench"), settings, effective, None, view, resume_from=None)
        alternate = Alternate(None if twin is None else BareLoop(twin, steps))
        # the last callback: checkpointing and logging of a step count as ours
        fit.trainer.callbacks.append(alternate)
        fit.trainer.fit(adapter, datamodule=text.datamodule)
    return alternate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--vocab_size", type=int, default=8192)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(arguments.steps, arguments.vocab_size)
    bare = result.bare
    assert bare is not None
    skip = min(5, arguments.steps // 2)  # the first steps fill caches
    pairs = list(zip(result.ours[skip:], result.theirs[skip:], strict=True))
    ratios = sorted(theirs / ours for ours, theirs in pairs)
    difference = max(
        abs(float(ours) - float(theirs)) / float(theirs)
        for ours, theirs in zip(result.our_losses, bare.losses, strict=True)
    )
    machine = platform.processor() or platform.machine()
    print(f"{machine}, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{len(pairs)} pairs of steps after {skip} of warm-up, CPU time, 1 thread")
    print(f"bare loop  {statistics.median(t for _, t in pairs) * 1e3:8.1f} ms per step (median)")
    print(f"anyformer  {statistics.median(o for o, _ in pairs) * 1e3:8.1f} ms per step (median)")
    low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
    print(f"speed relative to the bare loop: {statistics.median(ratios):.3f} (10–90 %: {low:.3f}–{high:.3f})")
    print(f"largest relative difference of the losses: {difference:.1e}")


if __name__ == "__main__":
    main()
