"""Numbers beside points, and what they stand for in the legend.

Shape suffixes: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_OFFSETS = [(right, up) for up in (2, -8, 12, -18) for right in (3, -11, 17, -25)]
"""Where the number of a point may stand, in points from it, by preference."""


def numbered(axes: Any, x: Sequence[float], y: Sequence[float], names: Sequence[str]) -> None:
    """Number some points, and say in the legend, right of the axes, what they are.

    The limits of the axes have to be as they will stay.
    """
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    at: dict[tuple[float, float], list[str]] = {}
    for number, (place, name) in enumerate(zip(zip(x, y, strict=True), names, strict=True), 1):
        at.setdefault(place, []).append(str(number))
        handles.append(Line2D([], [], linestyle="none"))
        labels.append(f"{number}  {name}")
    taken: list[np.ndarray] = []
    for place, numbers in at.items():
        point = axes.transData.transform(place) * 72 / axes.figure.dpi
        free = [o for o in _OFFSETS if all(_is_apart(point + o, other) for other in taken)]
        offset = (free or _OFFSETS)[0]
        taken.append(point + offset)
        options = {"xytext": offset, "textcoords": "offset points", "zorder": 4}
        axes.annotate(", ".join(numbers), place, size=7, **options)
    axes.figure.legend(handles, labels, loc="outside right upper")


def _is_apart(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two numbers of at most two digits do not overlap."""
    return bool((np.abs(first - second) > (12, 8)).any())
