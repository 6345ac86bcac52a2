"""One HTML file, or the same in the terminal, that says what runs did, chose, cost and were made with."""

from greats_jax.experiments.report.building import build_report
from greats_jax.experiments.report.terminal import as_text
from greats_jax.experiments.report.writing import Written, write_report

__all__ = ["Written", "as_text", "build_report", "write_report"]
