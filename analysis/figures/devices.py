"""Balance between expert-parallel devices, in the definitions of the systems that report it.

Shape suffixes: none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moe_probe.analysis.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    PALE,
    VERMILION,
    Absent,
    captioned,
    clamp,
    effective_name,
    log_scale,
    needs_tokens,
    new_figure,
    short,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moe_probe.analysis.results import Analysis

SHOWN_DEVICES = 8
"""The second panel is of the smallest number of devices from here on."""
_LINES = {
    "sglang_utilisation": ("SGLang utilisation (mean)", {"color": BLACK, "marker": "o"}),
    "vllm_log": ("vLLM log (harmonic)", {"color": BLUE, "marker": "s", "linestyle": "--"}),
    "vllm_p50": ("vLLM p50", {"color": GREEN, "marker": "^", "linestyle": "-."}),
    "vllm_min": ("vLLM min (worst layer)", {"color": VERMILION, "marker": "v", "linestyle": ":"}),
}


@styled
def devices(analysis: Analysis) -> Figure:
    """Draw mean over largest device load against the number of devices, and what chance gives.

    Beside it how even each subject's loads are where experts are placed for the loads of others.
    """
    needs_tokens(analysis)
    table = analysis.table("devices")
    if not len(table):
        sizes = sorted(analysis.layers["num_experts"].unique())
        raise Absent(f"experts do not split evenly over devices: {', '.join(map(str, sizes))}")
    transfer = _transfer(analysis)
    figure = new_figure(6.5 if transfer is None else 11, 3.4 if transfer is None else 4.6)
    panels = figure.subplots(1, 1 if transfer is None else 2, squeeze=False)[0]
    axes = panels[0]
    number = table["devices"].to_numpy()
    ends = (table["vllm_min"], table["vllm_p90"])
    axes.fill_between(number, *ends, color=PALE, linewidth=0, label="vLLM min to p90 of layers")
    for name, (label, look) in _LINES.items():
        axes.plot(number, table[name], label=label, **look)
    chance = {"color": GREY, "linestyle": "--", "marker": "_", "label": "by chance (mean)"}
    axes.plot(number, table["sglang_utilisation_null"], **chance)
    log_scale(axes, "x", number)
    axes.set_xticks(number, [str(devices) for devices in number])
    axes.set(xlabel="devices G (log scale)", ylabel="balancedness, mean load / largest load")
    axes.set_ylim(0, 1.03)
    axes.legend(loc="lower left")
    shown = (
        "Balance between devices that hold contiguous groups of experts; 1 is even. The loads are "
        "of the whole trace: systems that average over steps report less."
    )
    if transfer is not None:
        shown += _draw_transfer(panels[1], transfer)
    null = f"uniform choice of k experts by {effective_name(analysis)} tokens"
    return captioned(figure, shown, analysis, null)


def _transfer(analysis: Analysis) -> pd.DataFrame | None:
    """Return the rows of `placement` of one number of devices; None if there is one subject."""
    table = analysis.table("placement")
    sizes = sorted(set(table["devices"]))
    shown = table[table["devices"] == next((d for d in sizes if d >= SHOWN_DEVICES), sizes[-1])]
    return shown if (shown["fit"] == "subject").any() else None


def _draw_transfer(axes: Any, table: pd.DataFrame) -> str:
    """Draw how even a subject's loads are under placements made for others; return what it says."""
    pairs = table[table["fit"] == "subject"]
    names = list(dict.fromkeys(pairs["subject"]))
    matrix = pairs.pivot(index="fit_subject", columns="subject", values="balancedness")
    bases = {
        fit: table[table["fit"] == fit].set_index("subject")["balancedness"]
        for fit in ("contiguous", "other subjects")
    }
    rows = [
        *(base.reindex(names) for base in bases.values()),
        *(matrix.loc[n, names] for n in names),
    ]
    image = axes.imshow(
        np.array(rows, np.float64), cmap="cividis", vmax=1, aspect="auto", interpolation="none"
    )
    axes.axhline(1.5, color="white", linewidth=1.5)
    labels = [*bases, *map(short, names)]
    axes.set_yticks(range(len(labels)), labels, fontsize=clamp(260 / len(labels), 3, 7))
    axes.yaxis.set_tick_params(length=0)
    axes.set_xticks([])
    axes.set(xlabel="loads of the subject, in the same order", ylabel="placed for the loads of")
    devices = int(table["devices"].iloc[0])
    axes.set_title(f"balancedness on {devices} devices, greedy placement")
    axes.figure.colorbar(image, ax=axes, pad=0.01, aspect=30)
    is_own = pairs["subject"] == pairs["fit_subject"]
    own, foreign = (pairs.loc[chosen, "balancedness"].mean() for chosen in (is_own, ~is_own))
    means = {fit: base.mean() for fit, base in bases.items()}
    blank = " White: no token of the subject counts." if matrix.isna().any(axis=None) else ""
    return (
        f" Right: mean over subjects {means['contiguous']:.2f} contiguous, "
        f"{means['other subjects']:.2f} placed for all other subjects, {foreign:.2f} for "
        f"another one, {own:.2f} for itself.{blank}"
    )
