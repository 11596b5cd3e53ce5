"""The Lightning module around a user's model: one forward, one loss, one optimizer.

Legend: B batch, T time (source), S time (target), V vocabulary, C classes.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn

from anyformer.core.errors import SettingsError
from anyformer.core.settings import ObjectiveSetting, OptimizerName, ScheduleName
from anyformer.core.view import PlainView
from anyformer.data.module import AdaptiveTokenizerDataModule
from anyformer.evaluation.generation import generate
from anyformer.models.callplan import CallPlan
from anyformer.models.calls.documents import separate_documents
from anyformer.models.masking import Masking, fixed_masked_batch, is_masked_already, masked_batch
from anyformer.models.objectives import batch_logits, objective_loss, target_count
from anyformer.models.planned import planned, require_proven
from anyformer.tokenization.choose import check_fit
from anyformer.training.badsteps import BadSteps
from anyformer.training.losspath import LossPath
from anyformer.training.microbatch import Batch, MicroBatched
from anyformer.training.nonfinite import loss_error
from anyformer.training.objective import (
    asked,
    choose_masking,
    proofs_on_batch,
    require_labels,
    require_trainable,
    require_unshifted,
    start_and_end,
)
from anyformer.training.optim import RateSchedule, make_optimizer, planned_steps
from anyformer.training.prepare import id_limit
from anyformer.training.sharing import shared_loss
from anyformer.training.watch import CausalityWatch


class UniversalModelAdapter(MicroBatched):
    """Trains any module whose call plan is known, in any ``pl.Trainer``.

    model: the user's module, used as it is. call_plan: how to call it, proven again here; inferred by running it where
    not given, with overrides: parts of the call that you state, as ``call:`` of anyformer.yaml; proven like the rest.
    vocab_size: number of token ids V; the width of the model's logits where not given.
    learning_rate, warmup_steps, weight_decay: peak rate, optimizer steps of linear warm-up, decay of matrices.
    optimizer, schedule, betas, min_lr_ratio: as in TrainSettings.
    total_steps: length of the schedule in optimizer steps; the trainer's plan where not given.
    objective: what it is trained on; "auto" takes that of the model's family. seed: of the masks of held-out text.
    Logs ``train_loss``, ``val_loss`` (nats per target) and, where tokens are written, ``val_perplexity``.
    Batches hold input_ids and attention_mask, int64 (B, T), and labels, −100 ignored: (B, T), unshifted, for causal and
    masked (where they are the ids themselves, tokens are hidden here); (B,) for classification; (B, S), unshifted,
    beside target_ids and target_mask (B, S), for seq2seq.
    Raises CallError where the model's future leaks into its past (also where that begins while it trains: it is proven
    again after 4, 8, 16 … batches and at each evaluation) or it does something else than was stated,
    SettingsError where V or the objective does not fit the model, TokenizerError (at the first batch) where masked
    modelling has no mask token.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float = 1e-4,
        vocab_size: int | None = None,
        warmup_steps: int = 0,
        weight_decay: float = 0.01,
        *,
        config: Any = None,
        tokenizer: Any = None,
        call_plan: CallPlan | None = None,
        label_smoothing: float = 0.0,
        optimizer: OptimizerName = "adamw",
        schedule: ScheduleName = "cosine",
        betas: tuple[float, float] = (0.9, 0.95),
        min_lr_ratio: float = 0.1,
        total_steps: int | None = None,
        objective: ObjectiveSetting = "auto",
        seed: int = 42,
        overrides: dict[str, Any] | None = None,
        _proven: bool = False,
    ) -> None:
        super().__init__()
        if call_plan is not None and overrides:
            raise SettingsError("call_plan and overrides are both given", fix="leave one of them out")
        if call_plan is not None and not _proven:
            require_proven(model, call_plan)
        self.model = model
        self.call_plan = call_plan or planned(model, overrides=overrides, objective=asked(objective))
        self.objective, self.findings = require_trainable(self.call_plan, objective)
        """What it is trained on, and why."""
        self.vocab_size = vocab_size or self.call_plan.vocab_size
        if self.vocab_size > self.call_plan.vocab_size and self.objective != "classification":
            raise SettingsError(
                f"vocab_size is {self.vocab_size:,}, but the model's logits cover {self.call_plan.vocab_size:,} ids",
                fix="use a tokenizer of at most that size, or build the model with a larger vocabulary",
            )
        self.config = config
        self.tokenizer = tokenizer
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.optimizer = optimizer
        self.schedule = schedule
        self.betas = betas
        self.min_lr_ratio = min_lr_ratio
        self.total_steps = total_steps
        self.seed = seed
        self._masking: Masking | None = None
        self._arriving: dict[str, Tensor] | None = None
        self.last_train_loss = math.nan
        """Mean training loss of the last log interval, nats per token."""
        self._loss_sum: Tensor | None = None
        self._losses = 0
        self._row_step = 0
        self.logs_rows = True
        """Whether rows of metrics go through ``self.log``, as in a plain trainer; a run writes them itself."""
        self._grad_norm: Tensor | None = None
        self._val_sum = 0.0
        self._val_count = 0
        self.proven = False
        """Whether causality was proven on a training batch already; done on the first one where not."""
        self._first_batch_seen = False
        self._told_documents = False
        self._watch = CausalityWatch()
        self.loss_path = LossPath()
        """How its loss is computed, and why so."""
        self.bad_steps = BadSteps()
        """What is done where a step goes wrong; a run puts its own here."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        target_ids: Tensor | None = None,
        target_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> dict[str, Tensor | None]:
        """Logits (B, T, V), (B, S, V) of an encoder-decoder, (B, C) of a classifier; and the loss, given labels.

        Labels are those of a batch; nothing is hidden here: of a masked model, input_ids hold the mask tokens already.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "target_ids": target_ids,
            "target_mask": target_mask,
            "segment_ids": segment_ids,
        }
        logits = batch_logits(self.model, self.call_plan, given)
        loss = None if labels is None else objective_loss(self.objective, logits, labels)
        return {"loss": loss, "logits": logits}

    def generate(
        self,
        input_ids: Tensor,
        max_length: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        eos_token_id: int | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Continue input_ids (B, T) to at most max_length tokens in all; returns ids (B, ≤ max_length).

        Of an encoder-decoder, input_ids are read and what is written is returned, from the tokenizer's start token on.
        Raises CallError for an encoder or a classifier.
        """
        generator = None
        if seed is not None:
            generator = torch.Generator(device=input_ids.device).manual_seed(seed)
        start = None
        if self.call_plan.family == "encoder_decoder" and self.tokenizer is not None:
            start, end = start_and_end(self.tokenizer, self.call_plan.target_vocab or self.call_plan.vocab_size)
            eos_token_id = end if eos_token_id is None else eos_token_id
        return generate(
            self.model,
            self.call_plan,
            input_ids,
            max_length=max_length,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            eos_token_id=eos_token_id,
            generator=generator,
            start_token_id=start,
        )

    def setup(self, stage: str) -> None:
        """Train in training mode; keep documents that share a block apart, where our data module packs them."""
        if stage == "fit" and not self.model.training:
            self.train()  # from_pretrained and an evaluation leave eval mode, in which Lightning would train it
        data = getattr(self.trainer, "datamodule", None)
        if self.proven or self._told_documents or not isinstance(data, AdaptiveTokenizerDataModule):
            return
        self._told_documents = True
        self.findings += check_fit(data.tokenizer, id_limit(self.call_plan))
        if data.document_end is not None and self.objective in ("causal", "masked"):
            end, longest = data.document_end, data.max_length
            self.call_plan, finding = separate_documents(self.model, self.call_plan, end, longest)
            self.findings.append(finding)
            if finding.verdict != "ok" and self.trainer.is_global_zero:
                PlainView().finding(finding)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean loss of one batch, with label smoothing; of several processes weighted so that gradients are exact."""
        if not self._first_batch_seen:
            self._look_at_first_batch(batch)
        self._watch.batch(self.model, self.call_plan, self.objective, batch, self.global_step)
        loss, batch = self.gathered_loss(batch, batch_idx)
        loss, mean = shared_loss(loss, self.objective, batch)
        step, free = self.global_step + 1, reading_is_free(mean)
        if self.bad_steps.loss(self.model, self.call_plan, batch, mean, step, free=free):
            detached = mean.detach().float()
            self._loss_sum = detached if self._loss_sum is None else self._loss_sum + detached
            self._losses += 1
        return loss

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Keep the batch on the CPU, where tokens are hidden: reading it back from a GPU would wait for it."""
        self._arriving = batch if self.objective == "masked" else None
        return batch

    def arrived(self, batch: Batch) -> tuple[Batch, Batch]:  # on the device, and as it came
        given, self._arriving = self._arriving or batch, None
        return batch, given

    def prepared(self, arrived: tuple[Batch, Batch]) -> Batch:  # with tokens hidden, of a masked model
        return self._hidden(*arrived, fixed=False)

    def part_loss(self, batch: Batch) -> Tensor:  # with label smoothing
        return self.loss_path.loss(self.model, self.call_plan, self.objective, batch, self.label_smoothing)

    def part_total(self, batch: Batch) -> tuple[Tensor, Tensor]:  # without it
        return self.loss_path.total(self.model, self.call_plan, self.objective, batch)

    def part_targets(self, batch: Batch) -> Tensor:
        return target_count(self.objective, batch["labels"], batch.get("next_ids"))

    def _hidden(self, batch: Batch, given: Batch, *, fixed: bool) -> Batch:
        """The batch as the objective reads it: of a masked model with hidden tokens, unless they are hidden already."""
        if self.objective != "masked":
            return batch
        if is_masked_already(given["input_ids"], given["labels"]):
            return batch
        if self._masking is None:
            self._masking, _ = choose_masking(self.tokenizer, self.call_plan, self.seed, self.model)
        hidden = (fixed_masked_batch if fixed else masked_batch)(given, self._masking)
        device = batch["input_ids"].device
        return {**batch, **{name: hidden[name].to(device, non_blocking=True) for name in ("input_ids", "labels")}}

    def _look_at_first_batch(self, batch: dict[str, Tensor]) -> None:
        """Refuse labels that are shifted already and a model that sees the future of such a batch."""
        require_labels(batch, self.objective)
        require_unshifted(batch, self.objective)
        if not self.proven:
            for finding in proofs_on_batch(self.model, self.call_plan, self.objective, batch):
                if finding.verdict == "warn":
                    warnings.warn(f"{finding.name}: {finding.measured} ({finding.reason})", stacklevel=2)
        self._first_batch_seen = True

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer says, and keep the norm that was measured on the way."""
        if gradient_clip_algorithm not in (None, "norm"):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        # the optimizer's own list: a walk through the module in every step costs a small model more than the norm
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradient_clip_val:
            self._grad_norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        else:
            self._grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        plugin = self.trainer.precision_plugin
        # an fp16 scaler skips steps itself, and goes on with a smaller scale
        scaled = isinstance(plugin, MixedPrecision) and plugin.scaler is not None
        step, norm = self.global_step + 1, self._grad_norm
        # an update that is not fused cannot skip itself; torch's Adafactor reads from the device in every step anyway
        fused = self.trainer.optimizers[0].defaults.get("fused")
        if self.bad_steps.reads or (not scaled and (reading_is_free(norm) or not fused)):
            self.bad_steps.gradient(self.model, norm, step, scaled=scaled)
        elif not scaled:
            self.bad_steps.on_device(optimizer, norm, step)

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the row of metrics of this step, where one is due and nobody else writes it."""
        row = self.take_row(batch)
        for name, value in row.items() if self.logs_rows else ():
            self.log(name, value)

    def take_row(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """The means since the last row, once per log interval: one read from the device, not one per step.

        Empty in between. batch: looked at where something went wrong.
        """
        step = self.global_step
        interval = log_interval(self.trainer)
        if self.trainer.fit_loop._should_accumulate() or not interval or (step % interval and step > 1):
            return {}
        if step == self._row_step or (self._loss_sum is None and not self.bad_steps.skipped):
            return {}
        self._row_step = step  # a run takes it before the hook does
        self.bad_steps.check(self.model, self.call_plan, batch)
        mean = math.nan if self._loss_sum is None else float(self._loss_sum) / self._losses
        self.last_train_loss = self.last_train_loss if math.isnan(mean) else mean
        if step % interval == 0:  # the first step is shown at once, and counted in its row later
            self._loss_sum, self._losses = None, 0
        row = {"train_loss": mean, "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"]}
        if self._grad_norm is not None:
            row["grad_norm"] = float(self._grad_norm)
        return row

    def on_train_end(self) -> None:
        """The last steps are proven, too, where no evaluation followed them."""
        self._watch.look(self.model, self.call_plan, self.global_step)

    def on_validation_epoch_start(self) -> None:
        """Start the sums of one evaluation."""
        self.bad_steps.check(self.model, self.call_plan, None)
        if self.trainer.state.fn == "fit":
            self._watch.look(self.model, self.call_plan, self.global_step)
        self._val_sum, self._val_count = 0.0, 0

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add one batch to the evaluation: summed over tokens, so that a short batch weighs what it should."""
        total, count = self.gathered_total(self._hidden(*self.arrived(batch), fixed=True))
        self._val_sum += total
        self._val_count += count

    def on_validation_epoch_end(self) -> None:
        """Log val_loss (mean nats per target) and val_perplexity = exp(val_loss) of a model that writes."""
        sums = torch.tensor([self._val_sum, float(self._val_count)], dtype=torch.float64, device=self.device)
        total, count = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        if not count:
            raise SettingsError("nothing held out is a target; the validation batches hold only ignored labels")
        loss = total / count
        if not math.isfinite(loss) and self.trainer.state.fn == "fit":
            # raised before the checkpoint of this step would be written
            raise loss_error(self.model, self.call_plan, None, loss, self.global_step, kind="held-out loss")
        self.log("val_loss", loss)
        if self.objective in ("causal", "seq2seq"):
            self.log("val_perplexity", math.exp(min(loss, 700.0)))  # exp overflows a float64 above 709

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sums since the last row of metrics; a resumed run writes the row that an unbroken one would."""
        self.bad_steps.check(self.model, self.call_plan, None)  # one that went wrong is not saved as if it had not
        total = None if self._loss_sum is None else float(self._loss_sum)
        checkpoint["train_loss"] = {"sum": total, "count": self._losses, "last": self.last_train_loss}
        checkpoint.update(self.loss_path.state_dict())
        checkpoint["bad_steps"] = self.bad_steps.state_dict()
        checkpoint["micro_batch"] = self.micro.rows

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the sums of ``on_save_checkpoint``."""
        self.loss_path.load_state_dict(checkpoint)
        kept = checkpoint.get("train_loss")
        if kept is not None:
            self._loss_sum = None if kept["sum"] is None else torch.tensor(kept["sum"], device=self.device)
            self._losses, self.last_train_loss = kept["count"], kept["last"]
        self.micro.rows = checkpoint.get("micro_batch", self.micro.rows)
        if "bad_steps" in checkpoint:
            self.bad_steps.load_state_dict(checkpoint["bad_steps"])

    def configure_optimizers(self) -> Any:
        """([the optimizer], [warm-up and schedule, stepped per optimizer step])."""
        # the fp16 scaler cannot clip gradients that a fused optimizer unscales inside its own kernel
        fused = self._trainer is None or self.trainer.precision != "16-mixed"
        optimizer = make_optimizer(
            self.model,
            self.optimizer,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            betas=self.betas,
            fused=fused,
        )
        schedule = RateSchedule(
            optimizer,
            self.schedule,
            warmup_steps=self.warmup_steps,
            total_steps=self.total_steps or (None if self._trainer is None else planned_steps(self.trainer)),
            min_lr_ratio=self.min_lr_ratio,
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def reading_is_free(tensor: Tensor) -> bool:
    """Whether a look at the value stalls nothing; on a GPU the look waits for the log interval."""
    return tensor.device.type == "cpu"


def log_interval(trainer: pl.Trainer) -> int:
    """Optimizer steps between rows of metrics; 0 where the trainer logs none."""
    return int(getattr(trainer, "log_every_n_steps", 0))
