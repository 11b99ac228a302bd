"""Quality checks: whether a trace holds what the model did, before anything is said of it."""

from moe_probe.analysis.quality.outcome import Check, Status
from moe_probe.analysis.quality.suite import check_trace, failures

__all__ = ["Check", "Status", "check_trace", "failures"]
