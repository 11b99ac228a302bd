"""From rows that a model ran to sequences in a trace: identity, sharing, sampling, completeness.

Knows no engine and no evaluation harness: both sides hand it a `Row` and what was decided for it.
"""
