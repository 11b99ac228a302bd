"""What comes with the package: a small model, a sample of questions, and a trace of both."""

from __future__ import annotations

from pathlib import Path

SAMPLE_TRACE = Path(__file__).parent / "sample_trace"
"""What `moe-probe demo` records: tiny-moe on mmlu_sample, 57 subjects, 48,799 distinct contexts."""
