"""``pytorch_lightning.Trainer`` as one writes it: a module of three methods, a CSV logger, no checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.contenders.common import Pace, WithLoss, make_optimizer, make_schedule


class Plain(pl.LightningModule):
    """A forward, a loss, an optimizer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.model = WithLoss(module)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, logged."""
        loss = self.model(**batch)["loss"]
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW and warm-up, stepped per step."""
        optimizer = make_optimizer(self.model)
        return [optimizer], [{"scheduler": make_schedule(optimizer), "interval": "step"}]


def train(module: nn.Module, pace: Pace, steps: int, folder: Path) -> list[Tensor]:
    """Train ``steps`` steps on the batches of ``pace``; returns the losses."""
    plain = Plain(module)
    pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        gradient_clip_val=1.0,
        logger=CSVLogger(folder),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(plain, DataLoader(pace, batch_size=None))
    return plain.model.losses
