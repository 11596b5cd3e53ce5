"""Is this model right? Checks of any module from outside, before it is trained."""

from anyformer.checks.results import CheckReport, CheckResult
from anyformer.checks.runner import run_checks
from anyformer.checks.subject import Limits

__all__ = ["CheckReport", "CheckResult", "Limits", "run_checks"]
