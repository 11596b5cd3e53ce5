"""The Lightning module around a user's model: one forward, one loss, one optimizer.

Legend: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn

from anyformer.core.errors import CallError, DataError, SettingsError
from anyformer.evaluation.generation import generate
from anyformer.models.batchproof import prove_on_batch
from anyformer.models.callplan import CallPlan, call_logits, infer_call_plan
from anyformer.models.objectives import causal_lm_loss, causal_lm_total
from anyformer.training.nonfinite import gradient_error, loss_error
from anyformer.training.optim import adamw, warmup_cosine_schedule


class UniversalModelAdapter(pl.LightningModule):
    """Trains any module whose call plan is known, in any ``pl.Trainer``.

    model: the user's module, used as it is. call_plan: how to call it; inferred by running it where not given.
    vocab_size: number of token ids V; the width of the model's logits where not given.
    learning_rate, warmup_steps, weight_decay: AdamW's peak rate, optimizer steps of linear warm-up, decay of matrices.
    total_steps: length of the cosine in optimizer steps; the trainer's plan where not given.
    Logs ``train_loss``, ``val_loss`` (nats per token) and ``val_perplexity``. Batches hold input_ids, labels
    (unshifted, −100 ignored) and attention_mask, int64 (B, T).
    Raises CallError where the model's future leaks into its past, SettingsError where V does not fit the model.
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
        betas: tuple[float, float] = (0.9, 0.95),
        min_lr_ratio: float = 0.1,
        total_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.call_plan = call_plan or infer_call_plan(model)
        require_trainable(self.call_plan)
        self.vocab_size = vocab_size or self.call_plan.vocab_size
        if self.vocab_size > self.call_plan.vocab_size:
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
        self.betas = betas
        self.min_lr_ratio = min_lr_ratio
        self.total_steps = total_steps
        self.last_train_loss = math.nan
        """Mean training loss of the last log interval, nats per token."""
        self._loss_sum: Tensor | None = None
        self._losses = 0
        self._grad_norm: Tensor | None = None
        self._first_bad: Tensor | None = None
        self._val_sum = 0.0
        self._val_count = 0
        self.proven = False
        """Whether causality was proven on a training batch already; done on the first one where not."""
        self._first_batch_seen = False

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor | None]:
        """Logits (B, T, V), and the mean next-token loss where labels (B, T, unshifted) are given."""
        logits = call_logits(self.model, self.call_plan, input_ids, attention_mask)
        loss = None if labels is None else causal_lm_loss(logits, labels)
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
        """Continue input_ids (B, T) to at most max_length tokens in all; returns ids (B, ≤ max_length)."""
        generator = None
        if seed is not None:
            generator = torch.Generator(device=input_ids.device).manual_seed(seed)
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
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean next-token loss of one batch, with label smoothing."""
        input_ids, labels = batch["input_ids"], batch["labels"]
        if not self._first_batch_seen:
            self._look_at_first_batch(input_ids, labels)
        logits = call_logits(self.model, self.call_plan, input_ids, batch.get("attention_mask"))
        loss = causal_lm_loss(logits, labels, batch.get("next_ids"), label_smoothing=self.label_smoothing)
        if reading_is_free(loss) and not math.isfinite(loss.item()):
            raise loss_error(self.model, self.call_plan, input_ids, loss.item(), self.global_step + 1)
        detached = loss.detach().float()
        self._loss_sum = detached if self._loss_sum is None else self._loss_sum + detached
        self._losses += 1
        return loss

    def _look_at_first_batch(self, input_ids: Tensor, labels: Tensor) -> None:
        """Refuse labels that are shifted already and a model that sees the future of such a batch."""
        require_unshifted(input_ids, labels)
        if not self.proven:
            for finding in prove_on_batch(self.model, self.call_plan, input_ids):
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
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        if gradient_clip_val:
            self._grad_norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        else:
            self._grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if reading_is_free(self._grad_norm):
            if not math.isfinite(self._grad_norm.item()):
                raise gradient_error(self.model, self.global_step + 1)
        elif (
            not isinstance(self.trainer.precision_plugin, MixedPrecision)
            or self.trainer.precision_plugin.scaler is None
        ):
            # an fp16 scaler skips such steps itself, and goes on with a smaller scale
            self._skip_on_device(optimizer, self._grad_norm)

    def _skip_on_device(self, optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
        """Let the fused update skip itself where the gradient is not finite, and remember the first such step."""
        bad = ~torch.isfinite(norm)
        fused: Any = getattr(optimizer, "optimizer", optimizer)  # Lightning wraps it
        fused.found_inf = bad.float()
        first = torch.full_like(norm, math.inf) if self._first_bad is None else self._first_bad
        self._first_bad = torch.where(bad & first.isinf(), float(self.global_step + 1), first)

    def _check_steps(self, input_ids: Tensor | None) -> None:
        """Where steps are not checked one by one: raise for the first that went wrong since the last look."""
        if self._first_bad is None or not math.isfinite(step := self._first_bad.item()):
            return
        raise loss_error(self.model, self.call_plan, input_ids, math.nan, int(step))

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the row of metrics of this step, where one is due."""
        for name, value in self.take_row(batch["input_ids"]).items():
            self.log(name, value)

    def take_row(self, input_ids: Tensor) -> dict[str, float]:
        """The means since the last row, once per log interval: one read from the device, not one per step.

        Empty in between. input_ids: the batch (B, T), looked at where something went wrong.
        """
        step = self.global_step
        interval = log_interval(self.trainer)
        if self.trainer.fit_loop._should_accumulate() or not interval or (step % interval and step > 1):
            return {}
        if self._loss_sum is None:
            return {}
        self._check_steps(input_ids)
        self.last_train_loss = float(self._loss_sum) / self._losses
        self._loss_sum, self._losses = None, 0
        row = {"train_loss": self.last_train_loss, "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"]}
        if self._grad_norm is not None:
            row["grad_norm"] = float(self._grad_norm)
        return {**row, "step": float(step)}  # rows count finished optimizer steps

    def on_validation_epoch_start(self) -> None:
        """Start the sums of one evaluation."""
        self._check_steps(None)
        self._val_sum, self._val_count = 0.0, 0

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Add one batch to the evaluation: summed over tokens, so that a short batch weighs what it should."""
        logits = call_logits(self.model, self.call_plan, batch["input_ids"], batch.get("attention_mask"))
        total, count = causal_lm_total(logits, batch["labels"], batch.get("next_ids"))
        self._val_sum += float(total)
        self._val_count += int(count)

    def on_validation_epoch_end(self) -> None:
        """Log val_loss (mean nats per token) and val_perplexity = exp(val_loss)."""
        sums = torch.tensor([self._val_sum, float(self._val_count)], dtype=torch.float64, device=self.device)
        total, count = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        if not count:
            raise SettingsError("no held-out token is a target; the validation batches hold only ignored labels")
        loss = total / count
        if not math.isfinite(loss) and self.trainer.state.fn == "fit":
            # raised before the checkpoint of this step would be written
            raise loss_error(self.model, self.call_plan, None, loss, self.global_step, kind="held-out loss")
        self.log("val_loss", loss)
        self.log("val_perplexity", math.exp(min(loss, 700.0)))  # exp overflows a float64 above 709
        self.log("step", float(self.global_step))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the sums since the last row of metrics; a resumed run writes the row that an unbroken one would."""
        total = None if self._loss_sum is None else float(self._loss_sum)
        checkpoint["train_loss"] = {"sum": total, "count": self._losses, "last": self.last_train_loss}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the sums of ``on_save_checkpoint``."""
        kept = checkpoint.get("train_loss")
        if kept is not None:
            self._loss_sum = None if kept["sum"] is None else torch.tensor(kept["sum"], device=self.device)
            self._losses, self.last_train_loss = kept["count"], kept["last"]

    def configure_optimizers(self) -> Any:
        """([AdamW], [the warm-up + cosine schedule, stepped per optimizer step])."""
        # the fp16 scaler cannot clip gradients that a fused optimizer unscales inside its own kernel
        fused = self._trainer is None or self.trainer.precision != "16-mixed"
        optimizer = adamw(
            self.model,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            betas=self.betas,
            fused=fused,
        )
        schedule = warmup_cosine_schedule(
            optimizer,
            warmup_steps=self.warmup_steps,
            total_steps=self.total_steps or self._planned_steps(),
            min_lr_ratio=self.min_lr_ratio,
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def _planned_steps(self) -> int | None:
        """Optimizer steps that the attached trainer will take; None where it does not know."""
        if self._trainer is None:
            return None
        trainer = self.trainer
        datamodule: Any = getattr(trainer, "datamodule", None)
        if datamodule is not None:
            # asking the trainer would build its loader before a resumed position is restored (Lightning #20550)
            batches = len(datamodule.train_dataloader())
            per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
            epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else None
            bounds = [per_epoch * epochs if epochs else None, trainer.max_steps if trainer.max_steps > 0 else None]
            return min((bound for bound in bounds if bound is not None), default=None)
        steps = trainer.estimated_stepping_batches
        return int(steps) if math.isfinite(steps) else None


def reading_is_free(tensor: Tensor) -> bool:
    """Whether a look at the value stalls nothing; on a GPU the look waits for the log interval."""
    return tensor.device.type == "cpu"


def require_unshifted(input_ids: Tensor, labels: Tensor) -> None:
    """DataError where the labels are the ids moved left already: shifted again, the target would lie two ahead."""
    T = input_ids.shape[1]
    moved = T > 2 and torch.equal(labels[:, : T - 1], input_ids[:, 1:]) and not torch.equal(labels, input_ids)
    if moved:
        raise DataError(
            "the labels are already shifted: labels[t] is the token after input_ids[t]",
            "they are shifted here, once; shifted twice, the model would learn the token two ahead",
            "give labels = input_ids (−100 where a token is no target)",
        )


def log_interval(trainer: pl.Trainer) -> int:
    """Optimizer steps between rows of metrics; 0 where the trainer logs none."""
    return int(getattr(trainer, "log_every_n_steps", 0))


def require_trainable(plan: CallPlan) -> None:
    """CallError where next-token training would be on a wrong objective: the future leaks, or a finding blocks."""
    if not plan.causal:
        leak = next((finding for finding in plan.findings if finding.name == "causality"), None)
        raise CallError(
            "the model sees the future: trained on the next token it would only learn to copy it",
            leak.measured if leak else "changing a later token changes the logits before it",
            "give its attention a causal mask (is_causal=True in scaled_dot_product_attention)\n"
            "an encoder is meant to look both ways; training one (masked language modelling) is not built yet",
        )
    for finding in plan.findings:
        if finding.verdict == "fail":
            raise CallError(f"{finding.name}: {finding.measured}", f"expected: {finding.expected}", finding.reason)
