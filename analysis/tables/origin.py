"""What a table says of itself wherever it goes: which tokens were counted, and in which order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from moe_probe import __version__
from moe_probe.analysis.reading.orders import Order
from moe_probe.analysis.reading.rules import Rule

if TYPE_CHECKING:
    import pandas as pd

KEY = "moe_probe"
"""Of the facts in `DataFrame.attrs` and in the metadata of a Parquet file."""
FORMAT_VERSION = 1
"""Of the facts; it grows when those who read them have to change."""
COLUMNS = {"rule": "counting_rule", "order": "token_order"}
"""Facts that stand in the rows of files, too, and in which column."""
Values = float | Sequence[float | None] | None


def origin(
    trace: str | Sequence[str],
    rule: Rule,
    order: Order | str | None = None,
    *,
    tokens: Values = None,
    tokens_effective: Values = None,
) -> dict[str, Any]:
    """Return what a table says of itself, as JSON has it.

    Args:
        trace: Name of the trace, not where it lies; of several a list, and so what follows of each.
        rule: Which tokens count.
        order: Of the tokens; None where no number depends on it.
        tokens: T; None if not known.
        tokens_effective: T_eff; None if not known.
    """
    return {
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "trace": trace,
        "rule": str(rule),
        "order": None if order is None else str(order),
        "tokens": tokens,
        "tokens_effective": tokens_effective,
    }


def label(table: pd.DataFrame, facts: Mapping[str, Any]) -> pd.DataFrame:
    """Write the facts of `origin` into the attrs of a table, and return it."""
    table.attrs[KEY] = dict(facts)
    return table


def metadata(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a Parquet file, from which pandas restores attrs, too."""
    return {KEY: json.dumps(facts), "PANDAS_ATTRS": json.dumps({KEY: facts})}
