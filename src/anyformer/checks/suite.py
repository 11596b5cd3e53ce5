"""The checks as functions for notebooks: each prints what it found and returns it.

Named like tests by the API reference; pytest collects none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from anyformer.checks.results import CheckReport, CheckResult
from anyformer.checks.runner import run_checks
from anyformer.checks.subject import Trials
from anyformer.checks.text import check_lines
from anyformer.core.errors import SettingsError
from anyformer.core.settings import CheckSettings

_WIDTH = 100
_VOCABULARY = ("vocab_size", "n_vocab", "vocabulary_size")
_LENGTH = ("max_position_embeddings", "n_positions", "max_seq_len", "block_size", "context_length", "n_ctx")


def _shown(
    model: Any,
    config: Any,
    *,
    tiers: Sequence[int] = (),
    only: Sequence[str] | None = None,
    longer: Trials | None = None,
) -> CheckReport:
    report = run_checks(model, tiers=tiers, only=only, longer=longer)
    if config is not None:
        report = report.with_result(_agrees(report, config))
    print("\n".join(check_lines(report, "MODEL", _WIDTH)))
    return report


def _agrees(report: CheckReport, config: Any) -> CheckResult:
    """Whether the module is as large as its configuration says."""
    values = config if isinstance(config, dict) else getattr(config, "__dict__", None)
    if not isinstance(values, dict):
        raise SettingsError(f"config is {config!r:.60}; it must be a dict or an object with attributes")
    vocabulary = next((values[key] for key in _VOCABULARY if isinstance(values.get(key), int)), None)
    length = next((values[key] for key in _LENGTH if isinstance(values.get(key), int)), None)
    if report.plan is None or (vocabulary is None and length is None):
        return CheckResult("config", 0, "n/a", "it names neither a vocabulary nor a length")
    wrong = []
    if vocabulary is not None and vocabulary != report.plan.vocab_size:
        wrong.append(f"vocabulary {vocabulary:,}, the module has {report.plan.vocab_size:,} logits")
    most = report.plan.max_positions
    if length is not None and most is not None and length != most:
        wrong.append(f"{length:,} positions, the module takes {most:,}")
    if wrong:
        cause = "the configuration is of another model, or the module does not read it"
        return CheckResult("config", 0, "warn", "; ".join(wrong), "the module's own sizes", cause)
    return CheckResult("config", 0, "ok", "vocabulary and length are the module's")


def run_all_tier1_tests(model: Any, config: Any = None) -> CheckReport:
    """Tiers 0 and 1: what a module holds, and what a forward pass must and must not depend on. Seconds.

    model: an nn.Module, a LoadedModel or a UniversalModelAdapter. config: its configuration, object or dict, whose
    vocabulary and length are compared with the module's. Prints the table; the returned report has it as ``results``.
    """
    return _shown(model, config, tiers=(0, 1))


def run_all_tier2_tests(model: Any, config: Any = None) -> CheckReport:
    """Tier 2: what goes on inside, and what a copy learns in some hundred steps. Up to three minutes."""
    return _shown(model, config, tiers=(2,))


def run_all_tests(model: Any, config: Any = None) -> CheckReport:
    """All tiers, one after the other; the third trains copies on real text, which takes minutes."""
    return _shown(model, config, tiers=(0, 1, 2, 3))


def test_shape_robustness(model: Any, config: Any = None) -> CheckReport:
    """Lengths from 1 to the most, first and last ids, rows alone and in a batch."""
    return _shown(model, config, only=("lengths", "ids", "rows", "row order", "vocabulary"))


def test_gradient_flow(model: Any, config: Any = None) -> CheckReport:
    """Each trainable weight and each position gets a gradient, and none comes from the future."""
    return _shown(model, config, only=("gradients", "future gradient", "checkpointing"))


def test_output_stability(model: Any, config: Any = None) -> CheckReport:
    """Finite, the same for the same text, and in other number formats."""
    return _shown(model, config, only=("finite", "repeat", "state", "output", "float64", "bfloat16"))


def test_parameter_initialization(model: Any, config: Any = None) -> CheckReport:
    """Fresh weights: registered, neither constant nor too large; a loss of ln V to begin with."""
    return _shown(model, config, only=("registered", "tied weights", "initial weights", "loss at the start"))


def test_memory_footprint(model: Any, config: Any = None) -> CheckReport:
    """Memory of training, and what a forward keeps against batch and length."""
    return _shown(model, config, only=("budget", "memory"))


def test_inference_speed(model: Any, config: Any = None) -> CheckReport:
    """Wall time of forward passes: medians."""
    return _shown(model, config, only=("speed",))


def test_attention_patterns(model: Any, config: Any = None) -> CheckReport:
    """Attention as it is computed: its softmax, its scale, what it may see, and that order counts."""
    return _shown(model, config, only=("future", "positions", "source", "padding", "attention", "attention scale"))


def test_attribution_analysis(model: Any, config: Any = None) -> CheckReport:
    """How much each token counts for a logit: integrated gradients, whose sum is checked."""
    return _shown(model, config, only=("attribution",))


def test_robustness(model: Any, config: Any = None) -> CheckReport:
    """What a little noise at the embedding does to the logits."""
    return _shown(model, config, only=("sensitivity",))


def test_fine_tuning(
    model: Any,
    config: Any = None,
    *,
    data: str | None = None,
    target_data: str | None = None,
    max_steps: int = 200,
) -> CheckReport:
    """A run of a copy on real text, with its curves. Minutes.

    data, target_data, max_steps: as ``train`` takes them; the Python standard library's sources where no data is given.
    """
    longer = Trials(data, target_data, max_steps)
    return _shown(model, config, only=("fine-tuning",), longer=longer)


def test_benchmark_comparison(
    model: Any,
    config: Any = None,
    *,
    tasks: Mapping[str, str | None] | Sequence[str] = ("wikitext2", "sst2"),
    max_steps: int = 200,
) -> CheckReport:
    """Perplexity (wikitext2) or accuracy (sst2, cola) after some steps, beside what a guess gets. Minutes.

    tasks: names, whose data comes from the Hugging Face hub, or name → file. Raises SettingsError for unknown ones.
    """
    named = dict(tasks) if isinstance(tasks, Mapping) else dict.fromkeys(tasks)
    written = ",".join(name if place is None else f"{name}={place}" for name, place in named.items())
    longer = Trials(steps=max_steps, tasks=CheckSettings(tasks=written, max_steps=max_steps).places)
    return _shown(model, config, only=("benchmark",), longer=longer)


def test_hyperparameter_search(model: Any, config: Any = None) -> CheckReport:
    """Says that there is no search yet: it will come with ``anyformer tune``."""
    plain = run_checks(model, tiers=())
    told = CheckResult("hyperparameter search", 3, "n/a", "not in this version: it will come with anyformer tune")
    report = replace(plain, results=(*plain.results, told))
    print("\n".join(check_lines(report, "MODEL", _WIDTH)))
    return report
