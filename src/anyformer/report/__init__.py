"""What people look at: the run's page."""

from anyformer.report.page import write_report

__all__ = ["write_report"]
