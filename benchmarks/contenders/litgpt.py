"""litgpt's pretraining loop (Lightning Fabric); wants the package ``lightning``, so it has an environment of its own.

    python3 -m venv /tmp/litgpt && /tmp/litgpt/bin/pip install torch==2.13.0
    /tmp/litgpt/bin/pip install -r benchmarks/contenders/litgpt-requirements.txt

then ``PYTHONPATH=src /tmp/litgpt/bin/python benchmarks/train_loop.py --contender litgpt``, 10 steps or more.

It is ``litgpt.pretrain.fit`` unchanged, on our module in the place of litgpt's own GPT; ``litgpt.pretrain.main``, which
would also compile the module, is not used: the bare loop does not compile either. B batch, T time, V vocabulary.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import lightning as L
import torch
from litgpt import Config
from litgpt.args import EvalArgs, TrainArgs
from litgpt.pretrain import fit
from litgpt.utils import choose_logger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.contenders.common import LEARNING_RATE, WARMUP_STEPS, Pace, make_optimizer

LOG_EVERY = 10


class Keeping(L.Fabric):
    """Fabric that keeps the losses: the loop computes them itself and passes them to nobody else each step."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.losses: list[Tensor] = []

    def backward(self, tensor: Tensor, *args: Any, **kwargs: Any) -> None:
        """The gradients of the loss, which is kept."""
        self.losses.append(tensor.detach())
        super().backward(tensor, *args, **kwargs)


def joined(batch: dict[str, Tensor]) -> Tensor:
    """Ids and targets, (B, T) both, as the one tensor (B, T+1) that litgpt's loop takes apart again."""
    return torch.cat([batch["input_ids"], batch["targets"][:, -1:]], dim=1)


def as_litgpt(module: nn.Module, V: int, T: int) -> nn.Module:
    """The module with what the loop asks of it: its length, and a config of a GPT as large, for the FLOPs it logs."""
    model: Any = module
    model.max_seq_length = T
    model.config = Config(
        block_size=T,
        vocab_size=V,
        padded_vocab_size=V,
        n_layer=len(model.blocks),
        n_head=model.blocks[0].attn.n_head,
        n_embd=model.tokens.embedding_dim,
    )
    return module


def train(module: nn.Module, pace: Pace, steps: int, folder: Path) -> list[Tensor]:
    """Train ``steps`` steps on the batches of ``pace``; returns the losses.

    Raises ValueError if ``steps`` is below the warm-up's: litgpt would shorten the warm-up.
    """
    if steps < WARMUP_STEPS:
        raise ValueError(f"litgpt warms up in no more than the steps it trains: at least {WARMUP_STEPS}, not {steps}")
    first, next_ids = pace.batches[0]
    B, T = first.shape
    logger = choose_logger("csv", folder, name="bench", log_interval=LOG_EVERY)
    fabric = Keeping(accelerator="cpu", devices=1, precision="32-true", loggers=[logger])
    fabric.launch()
    model = fabric.setup(as_litgpt(module, module.get_parameter("tokens.weight").shape[0], T))
    optimizer = fabric.setup_optimizers(make_optimizer(module))
    # an item is a batch
    batches = fabric.setup_dataloaders(DataLoader(pace, batch_size=None, collate_fn=joined))
    # litgpt's rate after n updates is n / warm-up of the full one: its first update would do nothing. Counted from one
    # (as if resumed after it), and with the full rate as the lowest, its rates are those of `warm_up`.
    state = {"model": model, "optimizer": optimizer, "train_dataloader": batches, "iter_num": 1, "step_count": 0}
    with contextlib.redirect_stdout(io.StringIO()):  # its lines would stand among the figures
        fit(
            fabric=fabric,
            devices=1,
            state=state,
            train_dataloader=batches,
            # before the first step it evaluates, unasked, on whatever this gives: a single block
            val_dataloader=[joined({"input_ids": first[:1], "targets": next_ids[:1]})],
            out_dir=folder,
            tokenizer_dir=None,
            train=TrainArgs(
                save_interval=None,
                log_interval=LOG_EVERY,
                global_batch_size=B,
                micro_batch_size=B,
                lr_warmup_steps=WARMUP_STEPS + 1,
                max_tokens=(steps + 1) * B * T,
                max_norm=1.0,
                min_lr=LEARNING_RATE,
            ),
            eval=EvalArgs(interval=steps + 1, final_validation=False),
        )
    return fabric.losses
