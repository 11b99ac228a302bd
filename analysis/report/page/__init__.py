"""The report as one HTML file: figures that answer, readable offline, and words without scripts."""

from __future__ import annotations

from base64 import b64encode
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template

from moe_probe import __version__
from moe_probe.analysis.report.contents import Contents
from moe_probe.analysis.report.page.assets import bokeh, file, script
from moe_probe.analysis.report.page.data import payload_of
from moe_probe.analysis.report.page.summary import shown, summary

__all__ = ["render"]
_WIDTH = 1000


def render(contents: Contents, heatmap: bytes | None, *, tokenizer: Path | None = None) -> str:
    """Return the page.

    Args:
        contents: What the report says.
        heatmap: The map of relative loads as PNG, for readers without scripts; None if there is
            none.
        tokenizer: A tokenizer.json, or its folder, for the text of tokens; else they are ids.

    Raises:
        UsageError: `tokenizer` cannot be read.
    """
    title = f"Expert use of {shown(contents.run.get('model', 'a model'))}"
    return Template(file("page.html")).substitute(
        title=escape(title),
        style=file("style.css"),
        summary=summary(contents),
        picture=_picture(heatmap, contents.analysis.caption) if heatmap else "",
        version=escape(__version__),
        data=payload_of(contents, tokenizer).encode(),
        bokeh=bokeh(),
        script=script(),
    )


def _picture(png: bytes, caption: str) -> str:
    source = f"data:image/png;base64,{b64encode(_small(png)).decode('ascii')}"
    text = escape(f"Map of the relative load of layers by experts: {caption}.")
    return f'<figure><img src="{source}" alt="{text}"></figure>'


def _small(png: bytes) -> bytes:
    """Return a picture in few colours and no wider than a page."""
    # Comes with matplotlib, which has drawn the picture.
    from PIL import Image

    with Image.open(BytesIO(png)) as picture:
        whole = picture.convert("RGB")
    whole.thumbnail((_WIDTH, 4 * _WIDTH), Image.Resampling.BOX)
    buffer = BytesIO()
    whole.quantize(64).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
