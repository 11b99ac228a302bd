"""Balance between expert-parallel devices, in the definitions of the systems that report it.

Shape suffixes: none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_probe.analysis.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    PALE,
    VERMILION,
    Absent,
    captioned,
    log_scale,
    needs_tokens,
    new_figure,
    styled,
)
from moe_probe.analysis.metrics.devices import device_null

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moe_probe.analysis.results import Analysis

_LINES = {
    "sglang_utilisation": ("SGLang utilisation (mean)", {"color": BLACK, "marker": "o"}),
    "vllm_log": ("vLLM log (harmonic)", {"color": BLUE, "marker": "s", "linestyle": "--"}),
    "vllm_p50": ("vLLM p50", {"color": GREEN, "marker": "^", "linestyle": "-."}),
    "vllm_min": ("vLLM min (worst layer)", {"color": VERMILION, "marker": "v", "linestyle": ":"}),
}


@styled
def devices(analysis: Analysis) -> Figure:
    """Draw mean over largest device load against the number of devices, and what chance gives."""
    needs_tokens(analysis)
    table = analysis.table("devices")
    if not len(table):
        sizes = sorted(analysis.layers["num_experts"].unique())
        raise Absent(f"experts do not split evenly over devices: {', '.join(map(str, sizes))}")
    figure = new_figure(6.5, 3.4)
    axes = figure.add_subplot()
    number = table["devices"].to_numpy()
    ends = (table["vllm_min"], table["vllm_p90"])
    axes.fill_between(number, *ends, color=PALE, linewidth=0, label="vLLM min to p90 of layers")
    for name, (label, look) in _LINES.items():
        axes.plot(number, table[name], label=label, **look)
    chance = [chance_balance(analysis, devices) for devices in number.tolist()]
    axes.plot(number, chance, color=GREY, linestyle="--", marker="_", label="by chance")
    log_scale(axes, "x", number)
    axes.set_xticks(number, [str(devices) for devices in number])
    axes.set(xlabel="devices G (log scale)", ylabel="balancedness, mean load / largest load")
    axes.set_ylim(0, 1.03)
    axes.legend(loc="lower left")
    shown = (
        "Balance between devices that hold contiguous groups of experts; 1 is even. The loads are "
        "of the whole trace: systems that average over steps report less."
    )
    return captioned(figure, shown, analysis, "uniform choice of k experts by T_eff tokens")


def chance_balance(analysis: Analysis, devices: int) -> float:
    """Return mean over largest device load under N0 at T_eff, the mean over layers."""
    layers = analysis.layers
    effective = layers["tokens_effective"].fillna(layers["tokens"])
    rows = zip(layers["num_experts"], layers["top_k"], effective, strict=True)
    found = [1 / (1 + device_null(n, k, devices, max(round(t), 1)).max_vio) for n, k, t in rows]
    return float(np.mean(found))
