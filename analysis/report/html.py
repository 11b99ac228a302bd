"""The report as one HTML file: readable offline, on paper, in a dark room and by a screen reader.

Every text goes through `escape`, because names of models, tasks and subjects come from a trace.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from html import escape
from typing import Any

import pandas as pd

from moe_probe import __version__
from moe_probe.analysis.quality import Status
from moe_probe.analysis.report.contents import Contents, one_line
from moe_probe.analysis.tables.files import quality_table
from moe_probe.analysis.tables.layers import INDICES

_STYLE = """
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

_UNITS = (
    "MaxVio is the busiest expert's relative load minus 1; CV and Gini are 0 for an even load; "
    "entropy and KL are in nats; total variation is the share of selections that would have to "
    "move. Columns marked “chance” give what exchangeable top-k routing of as many tokens "
    "would show; documents are not exchangeable tokens, so real noise is larger."
)


def render(contents: Contents, *, heatmap_png: bytes, caption: str) -> str:
    """Return the page."""
    title = f"Expert use of {one_line(contents.run.get('model', 'a model'))}"
    body = [
        f"<h1>{escape(title)}</h1>",
        _description(_run_facts(contents)),
        _soundness(contents),
        _headline(contents),
        _section("Relative load", _figure(heatmap_png, caption)),
        _section("Layers", f"<p>{escape(_UNITS)}</p>", _layers(contents.layers)),
        _section("Most used experts", _ranking(contents.most_used())),
        _section("Least used experts", _idle_tier(contents), _ranking(contents.least_used())),
        _section("Quality checks", _quality(contents)),
        f"<footer>moe-probe {escape(__version__)}, counting rule {escape(contents.rule)}.</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _run_facts(contents: Contents) -> dict[str, str]:
    facts = {name.replace("_", " "): one_line(value) for name, value in contents.run.items()}
    return facts | {
        "sequences": f"{contents.num_sequences:,}",
        "tokens counted": f"{contents.tokens:,}",
        "counting rule": f"{contents.rule}: {contents.rule.description}",
        "trace": one_line(contents.trace),
    }


def _soundness(contents: Contents) -> str:
    """Say first whether the numbers below can be believed."""
    paragraphs = [f'<p class="warning">{escape(text)}</p>' for text in contents.warnings()]
    if contents.failed:
        items = (
            f"{check.check} {check.name}: {check.value}, expected {check.expected}"
            for check in contents.failed
        )
        paragraphs.append(_list(items))
    complete = next((check for check in contents.checks if check.check == "Q0"), None)
    if complete:
        state = complete.value or f"not checked: {complete.reason}"
        paragraphs.append(f"<p>Completeness: {escape(state)}.</p>")
    return _section("Can this be trusted?", *paragraphs)


def _headline(contents: Contents) -> str:
    findings = contents.findings()
    return _section("Findings", _list(findings)) if findings else ""


def _layers(table: pd.DataFrame) -> str:
    names = {name: name.replace("_", " ") for name in table.columns}
    names |= {f"{name}_null": "chance" for name in INDICES}
    return _table([names[name] for name in table.columns], table.itertuples(index=False))


def _ranking(table: pd.DataFrame) -> str:
    header = [name.replace("_", " ") for name in table.columns]
    return _table(header, table.itertuples(index=False))


def _idle_tier(contents: Contents) -> str:
    number = int((contents.experts["count"] == 0).sum())
    if not number or not contents.tokens:
        return ""
    return (
        f"<p>{number:,} experts were selected by no counted token. They are idle on this corpus, "
        "all equally, and not ranked; tables/experts.csv lists them with count 0.</p>"
    )


def _quality(contents: Contents) -> str:
    table = quality_table(contents.checks)
    return _table(list(table.columns), table.itertuples(index=False))


def _figure(png: bytes, caption: str) -> str:
    source = f"data:image/png;base64,{b64encode(png).decode('ascii')}"
    # No figcaption: the image carries its caption.
    text = f"Heat map of layers by experts. {caption}"
    return f'<figure><img src="{source}" alt="{escape(text)}"></figure>'


def _section(title: str, *content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(content) + "\n</section>"


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _description(facts: dict[str, str]) -> str:
    pairs = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return "<dl>" + "".join(pairs) + "</dl>"


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
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
