"""What all figures share: type, colours, size and caption.

Figures use matplotlib's object interface: pyplot takes longer to import and keeps global state. A
user's matplotlibrc changes nothing, so the same data gives the same bytes.

Shape suffixes: L layers, M experts of the widest layer.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd

from moe_probe.analysis.metrics.idle_passes import WHY_LEFT_OUT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moe_probe.analysis.results import Analysis

_P = ParamSpec("_P")
_T = TypeVar("_T")
DPI = 200
# Okabe and Ito's colours, told apart by every kind of colour vision.
BLACK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
BLUE, VERMILION, PURPLE, GREY = "#0072b2", "#d55e00", "#cc79a7", "#767676"
PALE = "#d9d9d9"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
_ON_AND_OFF = ((5, 2), (3, 1, 1, 1), (8, 2), (1, 1), (8, 2, 1, 2), (3, 1, 1, 1, 1, 1))
DASHES: tuple[Any, ...] = ("-", *((0, dash) for dash in _ON_AND_OFF))
MARKERS = "osD^vPX"
"""Everything that has a colour of `COLOURS` has a dash or a marker of its own as well."""

_STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    # Nothing stands above axes; else every drawing would look for it.
    "axes.titley": 1.0,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    # At this resolution letters look the same without, and are drawn sooner.
    "text.hinting": "none",
    # Names of models and subjects are no formulas, whatever they contain.
    "text.parse_math": False,
    # Names of elements depend on what is drawn alone.
    "svg.hashsalt": "moe-probe",
}
_CAPTION_SIZE = 7
_FEW_DECADES, _NO_DECADE = 50, 4
# Fewer than fit of that size, so that no line is cut.
_LETTERS_PER_INCH = 19
_LINE_INCHES = 0.135


class Absent(Exception):
    """A figure has nothing to show; the message says what is missing."""


@contextmanager
def _styled() -> Iterator[None]:
    import matplotlib

    # A backend is nobody's business here, and looking at it would choose one.
    defaults = matplotlib.rcParamsDefault
    plain = {name: defaults[name] for name in defaults if "backend" not in name}
    with matplotlib.rc_context({**plain, **_STYLE}), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def styled(draw: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make a function draw in the common style."""

    @wraps(draw)
    def inside(*args: _P.args, **options: _P.kwargs) -> _T:
        with _styled():
            return draw(*args, **options)

    return inside


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure, in inches; its caption comes below and adds to the height."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def captioned(figure: Figure, shown: str, analysis: Analysis, null: str) -> Figure:
    """Put the caption below a finished figure and fix its layout.

    Args:
        figure: From `new_figure`.
        shown: What is shown, in whole sentences.
        analysis: Gives counting rule, token order, T and T_eff.
        null: What chance is in this figure.
    """
    from matplotlib.axis import Axis
    from matplotlib.spines import Spine

    counted = analysis.counted
    text = f"{shown} {counted[0].upper()}{counted[1:]}. By chance: {null}."
    text = text.replace(" %", "\N{NO-BREAK SPACE}%")
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(text, int((width - 0.2) * _LETTERS_PER_INCH))
    room = len(lines) * _LINE_INCHES + 0.1
    total = height + room
    figure.set_size_inches(width, total)
    figure.text(
        *(0.1 / width, 0.06 / total),
        "\n".join(lines),
        fontsize=_CAPTION_SIZE,
        linespacing=_LINE_INCHES * 72 / _CAPTION_SIZE / 1.165,
        va="bottom",
        gid="caption",
    )
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, room / total, 1, height / total))
    # Room is needed around axes; measuring what stands inside takes as long again.
    inside = [part for axes in figure.axes for part in axes.get_children()]
    inside = [part for part in inside if not isinstance(part, Axis | Spine)]
    for part in inside:
        part.set_in_layout(False)
    # Colour bars are narrower than their place, so what they need depends on it.
    measured = [axes for axes in figure.axes if axes.get_box_aspect() is None]
    for axes in measured:
        _measure_once(axes)
    # Once, not for every file again.
    engine.execute(figure)
    figure.set_layout_engine("none")
    for axes in measured:
        del axes.get_tightbbox
    for part in inside:
        part.set_in_layout(True)
    for axes in figure.axes:
        # The solver's last digits depend on where objects lie in memory.
        axes.set_position(np.round(axes.get_position(original=True).bounds, 6))
        axes.set_in_layout(True)
    return figure


def _measure_once(axes: Any) -> None:
    """Have axes remember how much room they need around them: the layout asks twice."""
    from matplotlib.transforms import Bbox

    measure = axes.get_tightbbox
    room: list[np.ndarray | None] = []

    def get_tightbbox(*where: Any, **options: Any) -> Any:
        if not room:
            box = measure(*where, **options)
            room.append(None if box is None else box.extents - axes.bbox.extents)
        return None if room[0] is None else Bbox.from_extents(axes.bbox.extents + room[0])

    axes.get_tightbbox = get_tightbbox


def caption(figure: Figure) -> str:
    """Return a figure's caption as one line."""
    (text,) = (text for text in figure.texts if text.get_gid() == "caption")
    return str(text.get_text()).replace("\n", " ")


def grid(table: pd.DataFrame, column: str) -> np.ndarray:
    """Return a column of a table of experts: float64 [L, M], NaN where there is no such expert."""
    layers, row = np.unique(table["layer"].to_numpy(), return_inverse=True)
    expert = table["expert"].to_numpy()
    values_LM = np.full((len(layers), int(expert.max()) + 1), np.nan)
    values_LM[row, expert] = table[column].to_numpy(np.float64, na_value=np.nan)
    return values_LM


def needs_tokens(analysis: Analysis) -> None:
    """Raise Absent where no token counts."""
    if not (analysis.layers["assignments"] > 0).any():
        rule = analysis.sums.settings.rule
        raise Absent(f"no token counts under the rule {rule}, {rule.description}")


def needs_token_order(analysis: Analysis) -> None:
    """Raise Absent where idle runs are not counted in tokens."""
    if analysis.sums.settings.in_passes:
        raise Absent(WHY_LEFT_OUT)


def needs_shuffles(analysis: Analysis) -> None:
    """Raise Absent where no shuffled orders of the documents were asked for."""
    if not analysis.sums.settings.shuffles:
        raise Absent("documents were not shuffled")


def effective_name(analysis: Analysis) -> str:
    """Name the number of tokens at which chance is taken: T where T_eff is not known."""
    return "T_eff" if analysis.origin["tokens_effective"] else "T"


def layer_axis(axes: Any) -> None:
    """Label an axis of the model's own layer indices."""
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.set_xlabel("layer")


def log_scale(axes: Any, which: str, values: np.ndarray) -> None:
    """Make the x or y axis logarithmic if anything on it is positive, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    some = np.asarray(values, np.float64)
    some = some[some > 0]
    if len(some):
        axes.set(**{f"{which}scale": "log"})
        axis = getattr(axes, f"{which}axis")
        ratio = some.max() / some.min()
        decades = LogLocator(subs=(1, 2, 5) if ratio < _FEW_DECADES else (1,))
        axis.set_major_locator(MaxNLocator(6) if ratio < _NO_DECADE else decades)
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def short(name: str, letters: int = 40) -> str:
    """Return a name from a trace on one line, cut to so many letters."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in str(name))
    return plain if len(plain) <= letters else plain[: letters - 1] + "…"


def clamp(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))
