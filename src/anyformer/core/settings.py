"""Every setting of every verb. The fields are the flags, the keys of ``settings.yaml`` and the keywords in Python.

``None`` means "derived from the model, the data or the device"; what was derived is recorded as a finding of the run.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from anyformer.core.durations import seconds_of
from anyformer.core.errors import SettingsError

Precision = Literal["auto", "32", "16", "bf16"]
OptimizerName = Literal["adamw", "sgd", "adafactor"]
ScheduleName = Literal["cosine", "linear", "wsd", "constant"]
Strategy = Literal["auto", "ddp", "ddp_find_unused_parameters_true"]
ObjectiveSetting = Literal["auto", "causal", "masked", "seq2seq", "classification"]
CompileSetting = Literal["never", "auto", "always"]
BatchSize = int | Literal["auto"]
DEFAULT_BATCH = 16
BENCHMARKS = ("wikitext2", "sst2", "cola", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
"""WikiText-2 (Merity et al. 2016) and the tasks of GLUE (Wang et al. 2018)."""


def _positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is not None and value != "auto" and value <= 0:
            raise SettingsError(f"{name} is {value}; it must be greater than 0")


def _is_folder_name(name: str) -> bool:
    """One plain component of a path, short and printable."""
    return 0 < len(name) <= 120 and name[0] != "." and name.isprintable() and not set(name) & set("/\\")


def _typed(owner: object) -> None:
    """Each field has the type it is declared with, and numbers are finite: Python callers pass anything."""
    for name, declared in get_type_hints(type(owner)).items():
        value = getattr(owner, name)
        choices = get_args(declared) if get_origin(declared) is Literal else ()
        if choices:
            if value not in choices:
                raise SettingsError(f"{name} is {value!r}; it must be one of {', '.join(map(str, choices))}")
            continue
        kinds = tuple(get_args(declared)) or (declared,)
        named = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        if isinstance(value, str) and value in named:
            continue
        allowed = tuple(kind for kind in kinds if get_origin(kind) is not Literal)
        if isinstance(value, os.PathLike) and str in allowed:
            object.__setattr__(owner, name, os.fspath(value))  # Python callers have paths
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = isinstance(value, allowed) and not (isinstance(value, bool) and bool not in allowed)
        if not fits and not (float in allowed and number):
            words = " or ".join(["None" if kind is type(None) else kind.__name__ for kind in allowed] + named)
            raise SettingsError(f"{name} is {value!r}; it must be {words}")
        if number and not math.isfinite(value):
            raise SettingsError(f"{name} is {value}; it must be a finite number")


def _within(owner: object, name: str, low: float, high: float) -> None:
    value = getattr(owner, name)
    if not low <= value < high:
        raise SettingsError(f"{name} is {value}; it must be at least {low:g} and below {high:g}")


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one training run."""

    data: str = "python-stdlib"
    """Text to train on: a file (.txt, .md, .py, .jsonl, .json, .csv, .tsv, .parquet, .arrow; also .gz, .zst), a folder,
    a pattern ("data/*.txt"), hf:NAME:CONFIG:SPLIT of the Hugging Face hub, or python-stdlib."""
    val_data: str | None = None
    """Held-out text from a file or folder of its own, instead of a part of data."""
    text_column: str | None = None
    """Column that holds the text in a table, or of two that have one label A+B; found by name where not given."""
    objective: ObjectiveSetting = "auto"
    """causal, masked (fill in hidden tokens), seq2seq, classification; auto takes what the model was measured to be."""
    label_column: str | None = None
    """Column that holds the classes, for classification; found by name where not given."""
    source_column: str | None = None
    """Column that holds the texts to read, for seq2seq; found by name where not given."""
    target_column: str | None = None
    """Column that holds the texts to write, for seq2seq; found by name where not given."""
    target_data: str | None = None
    """For seq2seq from two files of as many lines: data holds the texts to read, this one the texts to write."""
    val_split: float = 0.1
    """Share of the documents held out for validation."""
    stream: bool = False
    """Read the data as it comes, without a token cache: for what is larger than the disk. Needs max_steps."""
    shuffle_buffer: int = 2048
    """Training sequences of a stream that are gathered and shuffled together; resuming reads so many again at most."""
    tokenizer: str = "auto"
    """auto (a known one of the model's size, else trained), bpe, char, hf:OWNER/NAME, or a folder or tokenizer.json."""
    vocab_size: int | None = None
    """Size of the tokenizer to train; as many entries as the model has where not given."""
    max_length: int | None = None
    """Tokens in one training sequence; the model's positions, at most 512, where not given."""
    batch_size: BatchSize = DEFAULT_BATCH
    """Sequences in one forward pass; several processes divide them among themselves. auto: 16, in as few passes as
    memory allows, which is found out by trial. Where a GPU runs out of memory, the passes are halved and the step stays
    the same."""
    accumulate_grad_batches: int = 1
    """Forward passes whose gradients make one optimizer step (gradient accumulation)."""
    activation_checkpointing: bool = False
    """Compute repeated blocks again in the backward pass instead of keeping what lies between: less memory, more time.
    Only where it gives the same loss and gradients."""
    compile: CompileSetting = "never"
    """torch.compile on the repeated blocks: auto keeps it where it is measured faster on the first batch, always also
    where it is not; either only where it gives the same loss and gradients. It takes a minute or so to find out."""
    max_epochs: int | None = None
    """Passes over the training data; 3 where neither this nor max_steps is given."""
    max_steps: int | None = None
    """Optimizer steps; whichever of max_epochs and max_steps is reached first ends the run."""
    optimizer: OptimizerName = "adamw"
    """adamw; sgd (with momentum beta1); adafactor, whose state takes as good as no memory."""
    schedule: ScheduleName = "cosine"
    """How the learning rate falls after the warm-up: cosine or linear over the whole run, wsd (constant, and down in
    the last fifth of the run), or constant."""
    learning_rate: float | None = None
    """Peak learning rate. Where not given: of adamw from the number of parameters (Kaplan et al. 2020, eq. D.1), of sgd
    0.1 (He et al. 2016), of adafactor 0.01 × the size of a parameter (Shazeer & Stern 2018)."""
    min_lr_ratio: float = 0.1
    """cosine, linear and wsd end at learning_rate × this."""
    warmup_steps: int | None = None
    """Optimizer steps of linear warm-up; 5 % of the run, at most 2,000, where not given."""
    weight_decay: float | None = None
    """Weight decay, on matrices only. Where not given: of adamw 0.1 (Brown et al. 2020), of sgd 0.0001 (He et al.
    2016), of adafactor none."""
    beta1: float = 0.9
    """Decay rate of the mean gradient of adamw; momentum of sgd."""
    beta2: float = 0.95
    """adamw's decay rate of the mean squared gradient (0.95: Brown et al. 2020, appendix B)."""
    gradient_clip_val: float = 1.0
    """Largest norm of the whole gradient; 0 turns clipping off."""
    label_smoothing: float = 0.0
    """Share of the target probability spread over the vocabulary, in training only."""
    bad_steps: Literal["stop", "skip"] = "stop"
    """What to do with a step whose loss or gradient is not finite: stop the run, or skip its update and go on; its
    batch is written to bad_batches/ in the run. 10 in a row stop the run."""
    spike_sigma: float | None = None
    """A step is bad, too, whose loss or gradient norm lies this many standard deviations above the mean of the last 128
    (OLMo 2: 6); off where not given."""
    early_stopping_patience: int | None = None
    """Evaluations without a better held-out loss before the run ends; off where not given."""
    save_top_k: int = 3
    """Best checkpoints to keep, beside the two newest."""
    save_every: str = "10m"
    """A checkpoint whenever this time has passed since the last (10m, 1h30m, 45s), and at each epoch's end, beside
    those at evaluations; "never" saves at evaluations only."""
    max_time: str | None = None
    """End in order before this time is up (11h30m, 90m, 45s, 11:30:00; a number needs a unit): the step is finished and
    saved, and --resume goes on with as much time again. Counted from when the model is loaded; the schedule is not
    shortened."""
    eval_every: int | None = None
    """Optimizer steps between evaluations; a tenth of the run, at most one epoch, where not given."""
    log_every: int | None = None
    """Optimizer steps between rows of metrics; 10, fewer in a short run, where not given."""
    tensorboard: bool = False
    """Track the run with TensorBoard, too, beside metrics.csv: in metrics/tensorboard of the run."""
    wandb: str | None = None
    """Track the run with Weights & Biases, too: online, or offline (in metrics/wandb of the run, to be uploaded with
    wandb sync)."""
    mlflow: bool = False
    """Track the run with MLflow, too: in metrics/mlflow.db of the run (SQLite), or where MLFLOW_TRACKING_URI says."""
    precision: Precision = "auto"
    """32, 16 or bf16; auto measures what is fastest on this device and keeps 32 unless another wins."""
    use_gpu: bool = True
    """Use a GPU where there is one."""
    devices: int = 1
    """GPUs of each machine to train on, or, without GPUs, processes; each takes its part of every batch."""
    num_nodes: int = 1
    """Machines that train together; the same command runs on each (torchrun, SLURM)."""
    strategy: Strategy = "auto"
    """How several devices train one model: ddp (auto takes it), each with a copy of the model; the longer name for a
    model that leaves out some of its parameters in some batches only."""
    num_workers: int = 0
    """Processes that read batches; 0 reads in the training process (memory-mapped tokens need no more)."""
    seed: int = 42
    """Seed of the weights' initialisation, the order of the data, dropout and samples."""
    deterministic: bool = False
    """Use only operations that give the same bits each time, also on a GPU, where that costs speed. On a CPU two runs
    with the same settings and threads are equal anyway."""
    prompt: str | None = None
    """Start of the samples; the first words of the held-out text where not given."""
    weights: str | None = None
    """Start from these weights: a .safetensors file or a state dict."""
    name: str | None = None
    """Name of the run; model and data where not given. An existing name gets -2, a resumed run keeps its own."""
    output_dir: str = "runs"
    """Folder that holds the runs; a resumed run stays where it is."""
    resume: str | None = None
    """Continue this run (runs/NAME) from its newest checkpoint; auto: the newest run of this name, here or in the
    backup, or a new one where there is none."""
    backup: str | None = None
    """Copy each checkpoint there in the background: a folder (a mounted drive) or a URL (s3://, gs://, hf://)."""
    skip_checks: str | None = None
    """Begin without tiers 0 and 1 of the checks, which take a second or so for a small model; the words say why, and
    are kept with the run."""

    def __post_init__(self) -> None:
        if isinstance(self.precision, int):
            object.__setattr__(self, "precision", str(self.precision))  # 16 and 32, as Lightning takes them
        _typed(self)
        _positive(
            self,
            *("vocab_size", "max_length", "batch_size", "accumulate_grad_batches", "max_epochs", "max_steps"),
            *("devices", "num_nodes"),
            *(
                "learning_rate",
                "spike_sigma",
                "early_stopping_patience",
                "save_top_k",
                "eval_every",
                "log_every",
                "shuffle_buffer",
            ),
        )
        for name in ("val_split", "label_smoothing", "beta1", "beta2"):
            _within(self, name, 0.0, 1.0)
        if not 0.0 <= self.min_lr_ratio <= 1.0:
            raise SettingsError(f"min_lr_ratio is {self.min_lr_ratio}; it must be between 0 and 1")
        _within(self, "seed", 0, 2**32)  # what numpy takes
        for name in ("warmup_steps", "weight_decay", "gradient_clip_val", "num_workers"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise SettingsError(f"{name} is {value}; it must not be negative")
        if self.val_split == 0.0 and self.val_data is None:
            raise SettingsError(
                "val_split is 0 and no val_data is given: there would be no held-out text to judge the model by",
                fix="give --val_split 0.1 or --val_data FILE",
            )
        if self.max_time is not None:
            seconds_of(self.max_time, "max_time")
        if self.save_every != "never":
            seconds_of(self.save_every, "save_every")
        if self.max_length == 1:
            raise SettingsError("max_length is 1; a sequence needs at least 2 tokens to predict one from another")
        if self.wandb not in (None, "online", "offline"):
            raise SettingsError(f"wandb is {self.wandb!r}; it must be online or offline")
        if self.backup is not None and not self.backup.strip():
            raise SettingsError("backup is empty; it must be a folder or a URL", fix="--backup FOLDER")
        if self.name is not None and not _is_folder_name(self.name):
            raise SettingsError(f"name {self.name!r} is not a plain folder name", fix="--output_dir sets the folder")

    @property
    def sequences(self) -> int:
        """Sequences in a batch of the data, however many of them go through the model at once."""
        return DEFAULT_BATCH if self.batch_size == "auto" else self.batch_size

    def to_dict(self) -> dict[str, Any]:
        """Every field with its value, as settings.yaml holds it."""
        return asdict(self)

    def changed(self) -> dict[str, Any]:
        """Only the fields that differ from the defaults."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}


@dataclass(frozen=True)
class DemoSettings:
    """Settings of the demo: a small GPT on the Python standard library's sources."""

    name: str = "demo"
    """Name of the run; an existing name gets -2."""
    output_dir: str = "runs"
    """Folder that holds the runs."""
    max_steps: int | None = None
    """Optimizer steps; sized to about three minutes on two cores where not given."""
    seed: int = 42
    """Seed of the weights' initialisation, the order of the data and the samples."""

    def __post_init__(self) -> None:
        _typed(self)
        _positive(self, "max_steps")


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of an evaluation of a finished run."""

    data: str | None = None
    """Text to evaluate on, all of it; the run's own held-out text where not given."""
    target_data: str | None = None
    """For seq2seq from two files: data holds the texts to read, this one the texts to write; the file beside it, named
    as in training, where not given."""
    text_column: str | None = None
    """Column that holds the text; found by name where not given."""
    batch_size: int = 16
    """Sequences in one forward pass."""
    use_gpu: bool = True
    """Use a GPU where there is one."""

    def __post_init__(self) -> None:
        _typed(self)
        _positive(self, "batch_size")


@dataclass(frozen=True)
class GenerateSettings:
    """Settings of text generation."""

    prompt: str = ""
    """Text to continue; empty starts from the end-of-text token."""
    max_tokens: int = 200
    """Tokens to generate."""
    temperature: float = 0.8
    """Divides the logits before sampling; 0 takes the likeliest token each time."""
    top_k: int | None = None
    """Sample among the k likeliest tokens only."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together hold this probability."""
    num_samples: int = 1
    """How many continuations to write."""
    seed: int = 42
    """Seed of the sampling."""
    use_gpu: bool = True
    """Use a GPU where there is one."""

    def __post_init__(self) -> None:
        _typed(self)
        _positive(self, "max_tokens", "top_k", "num_samples")
        if self.temperature < 0:
            raise SettingsError(f"temperature is {self.temperature}; it must not be negative")
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"top_p is {self.top_p}; it must be above 0 and at most 1")


EXPORTS = ("onnx", "torchscript", "torch_export")


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export: files that other programs run, each proven equal to the model or not written."""

    to: str = "onnx"
    """Formats, with commas between them: onnx, torchscript, torch_export (.pt2)."""
    output_dir: str | None = None
    """Folder for the files; RUN/export of a run, exports/NAME of a model where not given."""
    opset: int | None = None
    """Of ONNX: version of the operators; as torch writes it where not given."""
    overwrite: bool = False
    """Replace files of the same name."""
    weights: str | None = None
    """Of a model that is no run: its weights, a .safetensors file or a state dict."""

    def __post_init__(self) -> None:
        _typed(self)
        _positive(self, "opset")
        if unknown := [name for name in self.formats if name not in EXPORTS]:
            raise SettingsError(f"there is no format {unknown[0]!r}", fix=f"formats are {', '.join(EXPORTS)}")
        if not self.formats:
            raise SettingsError("no format is named", fix=f"--to {','.join(EXPORTS)}")

    @property
    def formats(self) -> tuple[str, ...]:
        """Each once, in the order given."""
        return tuple(dict.fromkeys(name.strip() for name in self.to.split(",") if name.strip()))


@dataclass(frozen=True)
class ReproduceSettings:
    """Settings of a run's replay."""

    steps: int | None = None
    """Replay the first steps only; all that the run made where not given."""
    keep: bool = False
    """Keep the replay's folder where it is equal, too; one that differs is kept anyway."""
    output_dir: str | None = None
    """Folder that the replay is written to; where the run lies where not given."""

    def __post_init__(self) -> None:
        _typed(self)
        _positive(self, "steps")


@dataclass(frozen=True)
class InspectSettings:
    """Settings of a look at how a model is called."""

    weights: str | None = None
    """Look at the model with these weights: a .safetensors file or a state dict."""

    def __post_init__(self) -> None:
        _typed(self)


@dataclass(frozen=True)
class CheckSettings:
    """Settings of the checks of a model, before it is trained."""

    weights: str | None = None
    """Check the model with these weights: a .safetensors file or a state dict."""
    tier: int = 1
    """The last tier to run. 0: what the module holds. 1: what a forward pass must and must not depend on. 2: what goes
    on inside, and what a copy learns. 3: what it makes of real text, in runs of a copy: minutes."""
    html: str | None = None
    """Write what was found to this file, too, as a page."""
    data: str | None = None
    """Tier 3: text to fine-tune on, as anyformer train takes it; python-stdlib where not given."""
    target_data: str | None = None
    """Tier 3: of an encoder-decoder, the texts to write; data holds those to read."""
    max_steps: int = 200
    """Tier 3: optimizer steps of each run."""
    tasks: str = "wikitext2,sst2"
    """Tier 3: benchmarks, wikitext2, sst2 and cola, from the Hugging Face hub, or NAME=FILE each."""

    def __post_init__(self) -> None:
        _typed(self)
        _positive(self, "max_steps")
        if self.tier not in (0, 1, 2, 3):
            raise SettingsError(f"tier is {self.tier}; there are tiers 0, 1, 2 and 3", fix="--tier 2")
        if unknown := [name for name in self.places if name not in BENCHMARKS]:
            raise SettingsError(f"there is no benchmark {unknown[0]!r}", fix=f"tasks are {', '.join(BENCHMARKS)}")

    @property
    def places(self) -> dict[str, str | None]:
        """Benchmark → its file, or None for the hub."""
        named = [task.strip().partition("=") for task in self.tasks.split(",") if task.strip()]
        return {name.strip(): place.strip() or None for name, _, place in named}


@dataclass(frozen=True)
class RepairSettings:
    """Settings of a repair: a corrected model file is shown as a diff, and written only where asked for."""

    weights: str | None = None
    """Prove the correction with these weights: a .safetensors file or a state dict."""
    write: str | None = None
    """Write the corrected file to this new file."""
    in_place: bool = False
    """Write the corrected file over the model's own, which is kept beside it as .bak."""

    def __post_init__(self) -> None:
        _typed(self)
        if self.write is not None and self.in_place:
            raise SettingsError(
                "write and in_place are both given", fix="give one of them: --write FILE, or --in_place true"
            )
