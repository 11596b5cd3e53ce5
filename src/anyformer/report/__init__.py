"""What people look at: the run's page, and that of the checks."""

from anyformer.report.checked import write_checks
from anyformer.report.page import write_report

__all__ = ["write_checks", "write_report"]
