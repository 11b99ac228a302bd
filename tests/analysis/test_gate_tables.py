"""Tables of gate weights and of the router's confidence as assembled, against lists of tokens."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from moe_probe.analysis import analyse
from moe_probe.analysis.metrics.confidence import margin_null
from tests.analysis.accumulators.test_weights import LAYERS, make_trace, naive_values
from tests.analysis.streams import make_stream


def test_against_lists_of_tokens(tmp_path: Path) -> None:
    source, tokens = make_trace(tmp_path / "trace", 0)
    found = analyse(source.trace, rule="unique", shuffles=1, replicates=2, permutations=2)
    layers = found.layers.set_index("layer")
    confidence = {
        (row["layer"], row["quantity"]): row for row in found.table("confidence").to_dict("records")
    }
    margins = found.table("margins")
    for spec in LAYERS:
        mine = tokens[spec.layer]
        mass = np.mean([math.fsum(token.weights) for token in mine])
        assert layers.at[spec.layer, "mean_mass"] == pytest.approx(mass)
        weights: dict[int, list[float]] = {}
        for token in mine:
            for expert, weight in zip(token.experts, token.weights, strict=True):
                weights.setdefault(expert, []).append(weight)
        pairs = [(np.mean(some), len(some)) for some in weights.values()]
        correlation = np.corrcoef(np.array(pairs).T)[0, 1]
        assert layers.at[spec.layer, "weight_frequency_correlation"] == pytest.approx(correlation)
        values = [naive_values(token, spec) for token in mine]
        for quantity in ("logsumexp", "margin", "entropy", "top_share", "effective_k"):
            known = np.array([value[quantity] for value in values if quantity in value])
            row = confidence[spec.layer, quantity]
            wanted = [known.mean(), (known**2).mean()] if len(known) else [math.nan] * 2
            means = [row["mean"], row["mean_square"]]
            assert means == pytest.approx(wanted, rel=1e-5, nan_ok=True)
            null = margin_null(spec.num_experts, spec.top_k) if quantity == "margin" else math.nan
            assert row["gaussian_null"] == pytest.approx(null, nan_ok=True)
        curve = margins[margins["layer"] == spec.layer]
        assert len(curve) == (21 if spec.scalars else 0)
        margin = np.array([value["margin"] for value in values]) if spec.scalars else np.empty(0)
        for epsilon, share in zip(curve["epsilon"], curve["share"], strict=True):
            assert share == pytest.approx(np.mean(margin < epsilon))


def test_without_weights_there_is_nothing(tmp_path: Path) -> None:
    found = analyse(make_stream(tmp_path / "trace", 0)[0], shuffles=1, replicates=2, permutations=2)
    names = ["mean_mass", "weight_frequency_correlation"]
    assert found.layers[names].isna().all(axis=None)
    assert found.table("margins").empty
