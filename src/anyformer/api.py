"""The verbs. Each is one page: it calls the layers in order and returns what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import pytorch_lightning as pl
from torch import nn

from anyformer.checks import CheckReport, run_checks
from anyformer.checks.preflight import preflight
from anyformer.checks.subject import Trials
from anyformer.core.errors import SettingsError
from anyformer.core.findings import Finding
from anyformer.core.names import default_run_name
from anyformer.core.protocols import View
from anyformer.core.ranks import follows
from anyformer.core.settings import (
    BatchSize,
    CheckSettings,
    CompileSetting,
    DemoSettings,
    EvaluateSettings,
    ExportSettings,
    GenerateSettings,
    ObjectiveSetting,
    OptimizerName,
    Precision,
    RepairSettings,
    ReproduceSettings,
    ScheduleName,
    Strategy,
    TrainSettings,
)
from anyformer.core.view import PlainView, QuietView
from anyformer.data.streamblocks import SHUFFLE_BUFFER
from anyformer.export.out import Exports, export_to
from anyformer.models.callplan import CallPlan
from anyformer.models.network.gistmodel import all_source
from anyformer.models.planned import naming, planned
from anyformer.models.repair import Repair, repair_model, save_repair
from anyformer.models.source import LoadedModel, load_model
from anyformer.models.trust import TrustRequest
from anyformer.report import write_checks, write_report
from anyformer.runs.directory import RunDirectory
from anyformer.runs.rebuild import load_run
from anyformer.training.coordinator import TrainResult, run_training
from anyformer.training.effective import choose_device
from anyformer.training.evaluate import Evaluation, evaluate_run
from anyformer.training.follow import follow
from anyformer.training.prepare import resolve_dataset
from anyformer.training.reference import TrainingCoordinator
from anyformer.training.reproduce import Reproduction, reproduce_run
from anyformer.training.resume import chosen_settings, model_of, require_same_model, run_of
from anyformer.training.speak import continuations
from anyformer.training.team import gathered

DEMO_MODEL = {"vocab_size": 768, "block_size": 128, "n_layer": 4, "n_head": 4, "n_embd": 128}
"""Small enough for two cores to train in three minutes past the bigram entropy of its held-out text."""
DEMO_STEPS = 2400
DEMO_LEARNING_RATE = 3e-3
DEMO_BATCH = 8


def train(
    model: str | Path | nn.Module | None = None,
    data: str | Path | Any = None,
    *,
    settings: TrainSettings | None = None,
    config: dict[str, Any] | None = None,
    val_data: str | None = None,
    text_column: str | None = None,
    objective: ObjectiveSetting | None = None,
    label_column: str | None = None,
    source_column: str | None = None,
    target_column: str | None = None,
    target_data: str | None = None,
    val_split: float | None = None,
    stream: bool | None = None,
    shuffle_buffer: int | None = None,
    tokenizer: Any = None,
    vocab_size: int | None = None,
    max_length: int | None = None,
    batch_size: BatchSize | None = None,
    accumulate_grad_batches: int | None = None,
    activation_checkpointing: bool | None = None,
    compile: CompileSetting | None = None,
    max_epochs: int | None = None,
    max_steps: int | None = None,
    optimizer: OptimizerName | None = None,
    schedule: ScheduleName | None = None,
    learning_rate: float | None = None,
    min_lr_ratio: float | None = None,
    warmup_steps: int | None = None,
    weight_decay: float | None = None,
    beta1: float | None = None,
    beta2: float | None = None,
    gradient_clip_val: float | None = None,
    label_smoothing: float | None = None,
    bad_steps: Literal["stop", "skip"] | None = None,
    spike_sigma: float | None = None,
    early_stopping_patience: int | None = None,
    save_top_k: int | None = None,
    save_every: str | None = None,
    max_time: str | None = None,
    eval_every: int | None = None,
    log_every: int | None = None,
    tensorboard: bool | None = None,
    wandb: str | None = None,
    mlflow: bool | None = None,
    precision: Precision | None = None,
    use_gpu: bool | None = None,
    num_workers: int | None = None,
    seed: int | None = None,
    deterministic: bool | None = None,
    devices: int | None = None,
    num_nodes: int | None = None,
    strategy: Strategy | None = None,
    prompt: str | None = None,
    weights: str | None = None,
    name: str | None = None,
    output_dir: str | None = None,
    resume: str | None = None,
    backup: str | None = None,
    skip_checks: str | None = None,
    overrides: dict[str, Any] | None = None,
    trust: bool = False,
    approve: Callable[[TrustRequest], bool] | None = None,
    view: View | None = None,
    command: str = "",
) -> TrainResult:
    """Train a model on text: load → plan → data → fit → evaluate → report.

    model: what ``anyformer train`` takes as MODEL, or an nn.Module; may be left out with ``resume``.
    data: a path, "python-stdlib" (the default), a list of texts or a Dataset; for classification and seq2seq a table,
    a list of dicts or of pairs, or a Dataset. An IterableDataset, or a function that returns an iterator of texts, is
    read as a stream.
    tokenizer: "auto", "bpe", "char", "hf:OWNER/NAME", a path, or an object. config: values for the constructor.
    overrides: parts of the call that you state, as ``call:`` of an anyformer.yaml beside the file; then proven.
    trust, approve: as in ``load_model``, for a gist; no settings, so that no file can turn them on.
    settings: all settings at once (with ``resume``, those of the run where not given); every other keyword is a field
    of TrainSettings and wins over it. devices > 1 starts this script again for each further device; those end here.
    Raises an AnyformerError that says what happened and what to do.
    """
    given = {key: value for key, value in locals().items() if key in _SETTINGS and value is not None}
    source, dataset = resolve_dataset(data, None, None) if data is not None else (None, None)
    given.pop("data", None)
    if source is not None:
        given["data"] = source
    tokenizer_object = given.pop("tokenizer") if tokenizer is not None and not isinstance(tokenizer, str) else None
    shown = view or (QuietView() if follows(settings) else PlainView())
    chosen, by_auto = chosen_settings(model, settings, given, shown)
    if model is None and chosen.resume is None:
        raise SettingsError("train needs a model", fix="anyformer.train('model.py', data='corpus.txt')")
    module = model if isinstance(model, nn.Module) else None
    with gathered(chosen, command, shown) as (team, chosen):
        if not team.leads:
            return follow(team, module=module, dataset=dataset)
        loaded, chosen = _loaded(model, chosen, config, trust, approve, view)
        result = run_training(
            loaded.stating(overrides),
            chosen,
            dataset=dataset,
            tokenizer=tokenizer_object,
            view=shown,
            command=command,
            finished_ok=by_auto,  # the same command again is no mistake
            team=team,
            checked=partial(preflight, model=_named(model), skip=chosen.skip_checks),
        )
        page, findings = _page(result.run_path, shown)
    return replace(result, report_path=page, findings=[*result.findings, *findings])


def _loaded(
    model: str | Path | nn.Module | None,
    chosen: TrainSettings,
    config: dict[str, Any] | None,
    trust: bool,
    approve: Callable[[TrustRequest], bool] | None,
    view: View | None,
) -> tuple[LoadedModel, TrainSettings]:
    """The model of a new run, or that of the run which goes on; and the settings with the run's name."""
    if chosen.resume is not None:
        run = run_of(chosen.resume)
        if model is not None:
            again = load_model(model, config=config, trust=trust, approve=approve, view=view, fallback=_asked(chosen))
            require_same_model(run, again)
        return model_of(run, model if isinstance(model, nn.Module) else None), chosen
    loaded = load_model(
        cast(Any, model),
        config=config,
        weights=chosen.weights,
        seed=chosen.seed,
        trust=trust,
        approve=approve,
        view=view,
        fallback=_asked(chosen),
    )
    if chosen.name is None and isinstance(model, (str, Path)):
        chosen = replace(chosen, name=default_run_name(str(model), chosen.data))
    return loaded, chosen


__all__ = [
    "Evaluation",
    "Reproduction",
    "TrainResult",
    "demo",
    "evaluate",
    "generate",
    "generate_text",
    "inspect",
    "load_model",
    "report",
    "reproduce",
    "show_source",
    "train",
    "train_model",
]
_SETTINGS = frozenset(TrainSettings.__dataclass_fields__)


def train_model(
    model: str | Path | nn.Module,
    dataset: Any = None,
    vocab_size: int | None = None,
    max_epochs: int | None = 3,
    batch_size: int = 16,
    learning_rate: float = 1e-4,
    *,
    dataset_path: str | Path | None = None,
    config_name: str | None = None,
    max_length: int | None = None,
    max_steps: int | None = None,
    val_split: float = 0.1,
    accumulate_grad_batches: int = 1,
    early_stopping_patience: int | None = None,
    save_top_k: int = 3,
    tokenizer: Any = None,
    datamodule: pl.LightningDataModule | None = None,
    resume_from_checkpoint: str | Path | None = None,
    seed: int = 42,
    warmup_steps: int = 0,
    weight_decay: float = 0.01,
    label_smoothing: float = 0.0,
    num_workers: int = 0,
    text_column: str | None = None,
    objective: ObjectiveSetting = "auto",
    label_column: str | None = None,
    source_column: str | None = None,
    target_column: str | None = None,
    target_data: str | None = None,
    stream: bool = False,
    shuffle_buffer: int = SHUFFLE_BUFFER,
    weights: str | Path | None = None,
    name: str | None = None,
    output_dir: str | Path = "./training_output",
    use_gpu: bool = True,
    precision: Precision = "auto",
    gradient_clip_val: float = 1.0,
) -> dict[str, Any]:
    """``TrainingCoordinator(…).train(…)`` in one call, and the run's report.

    Returns best_model_path, final_metrics, trainer, model, tokenizer, run_path, report_path.
    dataset: a Dataset, a list of texts, a path, "python-stdlib" (the default) or a name on the hub with config_name.
    vocab_size: size of the tokenizer; from the model where not given. The rest is as in TrainingCoordinator.
    Raises an AnyformerError, each also a ValueError, FileNotFoundError, TypeError or RuntimeError.
    """
    coordinator = TrainingCoordinator(output_dir, use_gpu, precision, gradient_clip_val)
    results = coordinator.train(
        model,
        dataset,
        dataset_path,
        config_name,
        vocab_size,
        batch_size,
        max_length,
        learning_rate,
        max_epochs,
        val_split,
        accumulate_grad_batches,
        early_stopping_patience,
        save_top_k,
        tokenizer,
        datamodule,
        resume_from_checkpoint,
        seed,
        max_steps=max_steps,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        num_workers=num_workers,
        text_column=text_column,
        objective=objective,
        label_column=label_column,
        source_column=source_column,
        target_column=target_column,
        target_data=target_data,
        stream=stream,
        shuffle_buffer=shuffle_buffer,
        weights=weights,
        name=name,
    )
    page, _ = _page(Path(results["run_path"]), PlainView())
    return {**results, "report_path": str(page) if page else None}


def demo(settings: DemoSettings | None = None, *, view: View | None = None, command: str = "") -> TrainResult:
    """Train ``example:gpt`` on the Python standard library's sources: about three minutes on two cores."""
    chosen = settings or DemoSettings()
    return train(
        "example:gpt",
        config=DEMO_MODEL,
        settings=TrainSettings(
            max_steps=chosen.max_steps or DEMO_STEPS,
            learning_rate=DEMO_LEARNING_RATE,
            batch_size=DEMO_BATCH,
            name=chosen.name,
            output_dir=chosen.output_dir,
            seed=chosen.seed,
        ),
        view=view,
        command=command,
    )


def inspect(
    model: str | Path | nn.Module,
    *,
    config: dict[str, Any] | None = None,
    weights: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    trust: bool = False,
    approve: Callable[[TrustRequest], bool] | None = None,
    view: View | None = None,
) -> tuple[LoadedModel, CallPlan]:
    """Load a model and find the one way to call it, proven on the module. Raises SourceError … CallError.

    overrides: parts of the call that you state, as ``call:`` of an anyformer.yaml beside the file.
    config, weights, trust, approve: as in ``load_model``.
    """
    (view or QuietView()).status("loading the model and calling it")
    loaded = load_model(model, config=config, weights=weights, trust=trust, approve=approve, view=view)
    loaded = loaded.stating(overrides)
    with naming(loaded):
        return loaded, planned(loaded.module, overrides=loaded.overrides)


def check(
    model: str | Path | nn.Module,
    *,
    config: dict[str, Any] | None = None,
    weights: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    tier: int | None = None,
    settings: CheckSettings | None = None,
    trust: bool = False,
    approve: Callable[[TrustRequest], bool] | None = None,
    view: View | None = None,
) -> CheckReport:
    """Whether a model is right, measured from outside on tiny batches; it is left as it was.

    What the model does wrong is a result, not an error. Raises SourceError … ConstructError where it cannot be built.
    overrides: as in ``inspect``. tier: the last one to run; it wins over that of ``settings``, and so do weights.
    config, weights, trust, approve: as in ``load_model``.
    """
    chosen, view = settings or CheckSettings(), view or QuietView()
    chosen = chosen if tier is None else replace(chosen, tier=tier)
    given = weights if weights is not None else chosen.weights
    view.status("loading the model")
    loaded = load_model(model, config=config, weights=given, trust=trust, approve=approve, view=view)
    loaded = loaded.stating(overrides)
    longer = Trials(chosen.data, chosen.target_data, chosen.max_steps, chosen.places)
    report = run_checks(loaded, tiers=range(chosen.tier + 1), trained=given is not None, longer=longer, view=view)
    if chosen.html:
        write_checks(report, _named(model), chosen.html)
    return report


def _named(model: str | Path | nn.Module | None) -> str:
    """As a command line takes it."""
    return shlex.quote(str(model)) if isinstance(model, (str, Path)) else "MODEL"


def show_source(model: str | Path, *, view: View | None = None) -> list[str]:
    """Every line of a gist's source and what stands out in it; runs nothing. Raises SourceError for what is no gist."""
    return all_source(str(model), view or QuietView())


def repair(
    model: str | Path | nn.Module,
    *,
    config: dict[str, Any] | None = None,
    weights: str | Path | None = None,
    settings: RepairSettings | None = None,
    trust: bool = False,
    approve: Callable[[TrustRequest], bool] | None = None,
    view: View | None = None,
) -> Repair:
    """Propose a corrected file for a model that cannot be called or sees later tokens; proven before it is shown.

    Nothing is written unless settings ask for it, and nothing of a gist runs that was not shown.
    config, weights (they win over those of ``settings``), trust, approve: as in ``load_model``.
    Raises SourceError … CallError where it cannot be loaded or repaired, SettingsError where it cannot be written so.
    """
    chosen = settings or RepairSettings()
    (view or QuietView()).status("loading the model and looking for what is wrong")
    weights = chosen.weights if weights is None else weights
    loaded = load_model(model, config=config, weights=weights, trust=trust, approve=approve, view=view)
    found = repair_model(loaded, config=config)
    if found.needed and (chosen.write is not None or chosen.in_place):
        own = loaded.provenance.kind in ("file", "folder")
        save_repair(found, None if chosen.write is None else Path(chosen.write), own=own)
    return found


def _asked(settings: TrainSettings) -> dict[str, Any] | None:
    """Sizes that the settings give a constructor which asks for them and finds them nowhere else."""
    return None if settings.vocab_size is None else {"vocab_size": settings.vocab_size}


def _page(run: Path, view: View) -> tuple[Path | None, list[Finding]]:
    """The run's report; what was trained is never lost because the page could not be drawn."""
    try:
        return write_report(run), []
    except Exception as error:  # noqa: BLE001  (whatever it is, the run is finished and stored)
        reason = f"{type(error).__name__}: {error}; the run itself is complete: anyformer report {run}"
        finding = Finding("report", "warn", "not written", reason=reason)
        view.finding(finding)
        return None, [finding]


def evaluate(
    run: str | Path,
    data: Any = None,
    *,
    settings: EvaluateSettings | None = None,
    model: nn.Module | None = None,
    view: View | None = None,
) -> Evaluation:
    """Held-out loss of a run's best weights, and what its objective is judged by, beside baselines on the same data.

    data: a path, a list of texts (or of examples) or a Dataset, all of it; what the run held out where neither it
    nor ``settings.data`` is given. model: the module, for a run that began with a Python object.
    """
    view = view or QuietView()
    chosen = settings or EvaluateSettings()
    view.status("loading the run")
    loaded = load_run(run, module=model)
    name, figures, findings = evaluate_run(
        loaded,
        data if data is not None else chosen.data,
        chosen.text_column,
        target_data=chosen.target_data,
        batch_size=chosen.batch_size,
        device=choose_device(chosen.use_gpu),
        view=view,
    )
    return Evaluation.of(Path(run), loaded, name, figures, findings)


def generate_text(
    run: str | Path,
    *,
    settings: GenerateSettings | None = None,
    model: nn.Module | None = None,
    on_text: Callable[[str], None] | None = None,
    view: View | None = None,
) -> list[str]:
    """The prompt and its continuation by a run's best weights, once per sample.

    on_text: called with the prompt, then with each piece of text as soon as it is certain; samples are a blank line
    apart. model: the module, for a run that began with a Python object.
    Of an encoder-decoder the prompt is what it reads, and the text what it writes.
    Raises TokenizerError for a prompt that the run's tokenizer cannot write, CallError for an encoder or a classifier.
    """
    (view or QuietView()).status("loading the run")
    chosen = settings or GenerateSettings()
    loaded = load_run(run, module=model)
    return continuations(loaded, chosen, choose_device(chosen.use_gpu), on_text or (lambda text: None))


def generate(
    run: str | Path, prompt: str = "", *, max_tokens: int = 200, temperature: float = 0.8, seed: int = 42
) -> str:
    """A prompt and its continuation by a run's best weights."""
    settings = GenerateSettings(prompt=prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)
    return generate_text(run, settings=settings)[0]


def export(
    model: str | Path | nn.Module,
    *,
    settings: ExportSettings | None = None,
    config: dict[str, Any] | None = None,
    trust: bool = False,
    approve: Callable[[TrustRequest], bool] | None = None,
    view: View | None = None,
) -> Exports:
    """Files that other programs run, of a run's best weights or of a model as it is: each proven equal, or not written.

    model: a run's folder, or a model as ``load_model`` takes it, with config, trust and approve. What a format cannot
    hold is a finding that says why. Raises SourceError … CallError where it cannot be loaded, ExportError where files
    of the same name are there.
    """
    chosen, view = settings or ExportSettings(), view or QuietView()
    view.status("loading the model")
    if isinstance(model, (str, Path)) and (Path(model) / "run.json").is_file():
        run = load_run(model)
        module, plan, folder = run.module, run.plan, run.path / "export"
    else:
        loaded = load_model(model, config=config, weights=chosen.weights, trust=trust, approve=approve, view=view)
        with naming(loaded):
            module, plan = loaded.module, planned(loaded.module, overrides=loaded.overrides)
        folder = Path("exports") / loaded.provenance.class_name
    folder = folder if chosen.output_dir is None else Path(chosen.output_dir)
    return export_to(module, plan, chosen.formats, folder, opset=chosen.opset, overwrite=chosen.overwrite, view=view)


def reproduce(
    run: str | Path,
    *,
    steps: int | None = None,
    settings: ReproduceSettings | None = None,
    model: nn.Module | None = None,
    data: Any = None,
    trust: bool = False,
    approve: Callable[[TrustRequest], bool] | None = None,
    view: View | None = None,
) -> Reproduction:
    """Train a run anew from its manifest (its first ``steps``, or all it made) and compare curve and weights.

    model, data: the objects that the run was given, where it was begun in Python; the model with its first weights.
    Raises an AnyformerError where it cannot be trained again: source or data gone or changed, settings changed on the
    way, a gist's code that nobody approved here.
    """
    chosen = settings or ReproduceSettings()
    chosen = chosen if steps is None else replace(chosen, steps=steps)
    return reproduce_run(run, chosen, model=model, data=data, trust=trust, approve=approve, view=view or QuietView())


def report(run: str | Path) -> Path:
    """Write a run's report.html anew and return its path. Raises SourceError where there is no such run."""
    return write_report(RunDirectory.open(run).path)
