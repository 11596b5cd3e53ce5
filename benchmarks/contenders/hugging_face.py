"""``transformers.Trainer``; needs accelerate beside transformers: ``pip install -c constraints.txt -e .[bench]``."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from benchmarks.contenders.common import Pace, WithLoss, make_optimizer, make_schedule


def train(module: nn.Module, pace: Pace, steps: int, folder: Path) -> list[Tensor]:
    """Train ``steps`` steps on the batches of ``pace``; returns the losses."""
    model = WithLoss(module)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,  # an item is a batch
        max_grad_norm=1.0,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    optimizer = make_optimizer(module)
    Trainer(
        model=model,
        args=arguments,
        train_dataset=pace,
        data_collator=lambda items: items[0],
        optimizers=(optimizer, make_schedule(optimizer)),
    ).train()
    return model.losses
