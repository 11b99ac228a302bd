"""Figures inside a page: SVG whose lines and letters have the page's colour, light or dark."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

from moe_probe.analysis.figures.style import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A colour that nothing else has; the page's own takes its place.
_INK = "#010203"
_INKED = dict.fromkeys(
    ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
)


@contextmanager
def _ink() -> Iterator[None]:
    import matplotlib

    # Letters stay letters, so that they can be found and read aloud.
    with matplotlib.rc_context({**_INKED, "axes.facecolor": "none", "svg.fonttype": "none"}):
        yield


def inked(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function draw in the common style, in a colour that `inline` replaces."""

    @wraps(draw)
    def inside(*args: Any, **options: Any) -> Any:
        with _ink():
            return draw(*args, **options)

    return styled(inside)


def inline(figure: Figure, name: str, caption: str) -> str:
    """Return a figure as HTML: the same for the same data, and without any address.

    Args:
        figure: Drawn by a function that is `inked`.
        name: Of letters and digits; no other figure of the page may have it.
        caption: Text below it, which also names it for a screen reader.
    """
    text = str(_svg(figure))
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # HTML knows these names, and needs no address of them.
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", text)
    text = text.replace(_INK, "currentColor")
    label = escape(caption)
    return (
        f'<figure class="plot" role="img" aria-label="{label}">{text}'
        f'<figcaption aria-hidden="true">{label}</figcaption></figure>'
    )


@inked
def _svg(figure: Figure) -> str:
    file = StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return file.getvalue()
