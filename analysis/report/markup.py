"""Static HTML: a document with sections, tables and lists, readable offline and on paper.

Every text goes through `escape`, because names of models, tasks and subjects come from a trace.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

import pandas as pd

from moe_probe.analysis.quality import Status

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --page: #fff; --line: #d0d7de;
  --soft: #f2f4f7; --bad: #b3261e; --good: #1a6b34; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ed; --page: #14171a; --line: #3d444d; --soft: #20252b;
    --bad: #ff9b8f; --good: #7ed69a; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 72rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .6rem; text-align: left;
  overflow-wrap: normal; }
th { background: var(--soft); } .number { text-align: right; }
.warning { border-left: .3rem solid var(--bad); padding: .3rem .8rem; background: var(--soft); }
.fail { color: var(--bad); font-weight: 600; } .pass { color: var(--good); }
figure { margin: 1rem 0; } img { max-width: 100%; background: #fff; padding: .5rem; }
footer { margin-top: 3rem; font-size: .875rem; }
"""


def document(title: str, *content: str, style: str = STYLE) -> str:
    """Return a whole page; `title` is its title and its first heading."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(content) + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *content: str) -> str:
    """Return HTML under a heading."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(content) + "\n</section>"


def paragraph(text: str, mark: str = "") -> str:
    """Return one paragraph of text; `mark` is its class: "warning" or none."""
    kind = f' class="{mark}"' if mark else ""
    return f"<p{kind}>{escape(text)}</p>"


def listing(items: Iterable[str]) -> str:
    """Return texts as a list."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def description(facts: dict[str, str]) -> str:
    """Return names with their values."""
    pairs = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return "<dl>" + "".join(pairs) + "</dl>"


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table; numbers have four digits and null is a dash."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, str):
        mark = f' class="{escape(value)}"' if isinstance(value, Status) else ""
        return f"<td{mark}>{escape(value)}</td>"
    if pd.isna(value):
        return '<td class="number">–</td>'
    text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
    return f'<td class="number">{text}</td>'
