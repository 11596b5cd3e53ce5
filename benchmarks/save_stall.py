"""How long saving keeps a training waiting: in the background, as a run does, and without memory for a copy.

A GPT of 42 M weights (a checkpoint of 0.5 GB: weights and AdamW's two moments) is trained by the run's own trainer,
with a checkpoint every 30 s, each way in a process of its own. Of the background's saves two things cost time: what the
training thread waits for (the copy, and a save before that is still in flight), which the run measures itself, and
that steps take longer while the other thread writes, for which such steps are compared with the median of the others.
What the end of the run waits for is counted apart.

    python benchmarks/save_stall.py [--seconds 150] [--every 30s] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from anyformer.core.settings import TrainSettings
from anyformer.core.view import QuietView
from anyformer.models.callplan import infer_call_plan
from anyformer.models.example_gpt import GPT
from anyformer.runs import background
from anyformer.runs.directory import RunDirectory
from anyformer.training import UniversalModelAdapter
from anyformer.training.fit import build_trainer, quiet_lightning
from anyformer.training.saving import RunCheckpoint

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.contenders.ours import prepared

T, B = 64, 2
INTERVAL = 600
"""Seconds between checkpoints by default."""
WARM = 5
"""Steps before anything counts."""


class Watch(pl.Callback):
    """Notes how long each step takes, and whether a save was in flight; ends the run after ``seconds``."""

    def __init__(self, checkpoint: RunCheckpoint, seconds: float) -> None:
        self._checkpoint, self._seconds = checkpoint, seconds
        self.beside: list[float] = []
        self.alone: list[float] = []
        self.saves: list[tuple[float, float]] = []
        """Of each save in the middle of the run: what the training waited, and how long it took altogether."""
        self.stalled = self.wall = 0.0
        self._begun = self._mark = self._from = 0.0
        self._busy = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._mark = time.monotonic()
        self._busy = trainer.strategy.checkpoint_io.busy  # type: ignore[attr-defined]
        if trainer.global_step == WARM:
            self._from, self._begun = self._checkpoint.stalled, self._mark

    def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        if trainer.global_step < WARM:
            return
        busy = self._busy or trainer.strategy.checkpoint_io.busy  # type: ignore[attr-defined]
        (self.beside if busy else self.alone).append(time.monotonic() - self._mark)  # without the hooks after a step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._begun:
            return
        waited = self._checkpoint.stalled - self._from
        if waited > self.stalled + 1e-3:
            self.saves.append((waited - self.stalled, self._checkpoint.save_seconds))
        self.stalled = waited
        self.wall = time.monotonic() - self._begun
        trainer.should_stop = self.wall > self._seconds


def measure(waiting: bool, seconds: float, every: str) -> dict[str, Any]:
    """Train with a checkpoint at each interval; waiting: as if there were no memory for a copy."""
    if waiting:
        background.available_memory = lambda: 0  # type: ignore[assignment]
    torch.manual_seed(0)
    module = GPT(vocab_size=8192, block_size=T, n_layer=12, n_head=8, n_embd=512)
    plan = infer_call_plan(module)
    view = QuietView()
    settings = TrainSettings(max_steps=10**6, batch_size=B, precision="32", eval_every=10**6, save_every=every)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, quiet_lightning():
        text, effective = prepared(settings, plan, module, T, view)
        adapter = UniversalModelAdapter(module, effective.learning_rate, call_plan=plan, total_steps=10**6)
        fit = build_trainer(RunDirectory.create(folder, "bench"), settings, effective, None, view, resume_from=None)
        watch = Watch(fit.checkpoint, seconds)
        fit.trainer.callbacks.append(watch)
        fit.trainer.fit(adapter, datamodule=text.datamodule)
        size = sum(file.stat().st_size for file in Path(fit.checkpoint.save_now(fit.trainer)).iterdir())
    usual = statistics.median(watch.alone or watch.beside)
    return {
        "weights": sum(p.numel() for p in module.parameters()),
        "size": size,
        "step": usual,
        "steps": len(watch.alone) + len(watch.beside),
        "beside": len(watch.beside),
        "slower": sum(watch.beside) - usual * len(watch.beside),
        "saves": watch.saves,
        "stalled": watch.stalled,
        "wall": watch.wall,
        "end": fit.checkpoint.stalled - watch._from - watch.stalled,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def show(name: str, told: dict[str, Any]) -> None:
    """The figures of one way."""
    saves = len(told["saves"])
    if not saves:
        sys.exit("no save in that time")
    cost = told["stalled"] + max(0.0, told["slower"])
    print(f"\n{name}: {saves} saves in {told['wall']:.0f} s, {told['steps']} steps of {told['step'] * 1e3:.0f} ms")
    print(f"  the training waits per save        {told['stalled'] / saves:8.2f} s   each: "
          + ", ".join(f"{waited:.2f}" for waited, _ in told["saves"]))  # fmt: skip
    print(f"  {told['beside']:3} steps beside a save are slower {told['slower'] / saves:8.2f} s per save")
    print(f"  of the wall time                   {100 * cost / told['wall']:8.2f} %")
    print(f"  at the default interval of {INTERVAL} s   {100 * cost / saves / INTERVAL:8.3f} %")
    print(f"  the end of the run waits           {told['end']:8.2f} s; peak memory {told['peak']:.1f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--every", default="30s")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=["waiting", "background"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.way:
        print(json.dumps(measure(arguments.way == "waiting", arguments.seconds, arguments.every)))
        return
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    for way in ("waiting", "background"):
        command = [sys.executable, __file__, "--way", way, "--seconds", str(arguments.seconds)]
        command += ["--every", arguments.every, "--threads", str(arguments.threads)]
        told = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )
        if way == "waiting":
            size = f"{told['weights'] / 1e6:.1f} M weights, checkpoints of {told['size'] / 1e9:.2f} GB"
            print(f"{size}, {arguments.threads} thread(s), one every {arguments.every}")
        show(way, told)


if __name__ == "__main__":
    main()
