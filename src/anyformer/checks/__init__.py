"""Is this model right? Checks of any module from outside, before it is trained."""

from anyformer.checks.results import CheckReport, CheckResult
from anyformer.checks.runner import run_checks
from anyformer.checks.subject import Limits, Trials
from anyformer.checks.suite import (
    run_all_tests,
    run_all_tier1_tests,
    run_all_tier2_tests,
    test_attention_patterns,
    test_attribution_analysis,
    test_benchmark_comparison,
    test_fine_tuning,
    test_gradient_flow,
    test_hyperparameter_search,
    test_inference_speed,
    test_memory_footprint,
    test_output_stability,
    test_parameter_initialization,
    test_robustness,
    test_shape_robustness,
)

__all__ = [
    "CheckReport",
    "CheckResult",
    "Limits",
    "Trials",
    "run_all_tests",
    "run_all_tier1_tests",
    "run_all_tier2_tests",
    "run_checks",
    "test_attention_patterns",
    "test_attribution_analysis",
    "test_benchmark_comparison",
    "test_fine_tuning",
    "test_gradient_flow",
    "test_hyperparameter_search",
    "test_inference_speed",
    "test_memory_footprint",
    "test_output_stability",
    "test_parameter_initialization",
    "test_robustness",
    "test_shape_robustness",
]
