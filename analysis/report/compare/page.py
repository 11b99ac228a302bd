"""The comparison as one HTML file: readable offline, on a telephone and in a dark room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from moe_probe import __version__
from moe_probe.analysis.comparison import Comparison
from moe_probe.analysis.report import markup
from moe_probe.analysis.report.compare import figures
from moe_probe.analysis.report.compare.sentences import findings, notes
from moe_probe.analysis.report.compare.svg import inline
from moe_probe.analysis.report.contents import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NUM_RANKED = 15
_STYLE = """
.plot svg { width: 100%; max-width: 40rem; height: auto; color: var(--text); display: block; }
figcaption { font-size: .875rem; }
"""
_LOADS = (
    "Relative load of every expert on a log scale, the same for all traces; colours end at 1/8 and "
    "8 fair shares. Yellow: never selected. Grey: no such expert, or nothing counted."
)
_DIFFERENCES = (
    "Relative load less that of the reference, the same scale for all. A difference is not yet a "
    "finding: tables/experts.csv has its interval and q-value."
)
_DIVERGENCE = (
    "Jensen-Shannon divergence of a layer's loads from the reference's. Dotted: what noise over "
    "documents alone gives where the true loads are equal."
)
_IMBALANCE = (
    "MaxVio, the busiest expert's relative load less 1. Shaded: twice the standard deviation over "
    "resampled documents."
)
_DISAGREEMENT = (
    "Tokens after the same text. Solid: the share whose set of experts differs. Dashed: the share "
    "of experts that differ. Dotted: experts of tokens that choose independently at the own rates."
)
_DEPTHS = (
    "The first layer in which a token's experts differ. Early layers differ by rounding, late ones "
    "by what earlier layers left."
)
_MARGINS = (
    "How often the experts of a token differ, by the margin of its router: the k-th largest logit "
    "less the next. Rounding changes tokens of small margin; a fault changes any."
)


def render(found: Comparison) -> str:
    """Return the page."""
    title = f"{len(found.labels)} traces compared with {one_line(found.labels[0])}"
    rule = found.gathered.settings.rule
    body = [
        markup.paragraph(f"Counting rule {rule}: {rule.description}. The reference comes first."),
        *(markup.paragraph(text, "warning") for text in notes(found)),
        *_findings(found),
        markup.section("Traces", _whole(found.table("traces"))),
        markup.section("Relative load", _figure(figures.loads, found, "loads", _LOADS)),
        *_differences(found),
        *_layers(found),
        *_agreement(found),
        *_accuracy(found),
        f"<footer>moe-probe {__version__}. All tables are in tables/.</footer>",
    ]
    return markup.document(title, *body, style=markup.STYLE + _STYLE)


def _findings(found: Comparison) -> Iterator[str]:
    for label, texts in findings(found).items():
        if texts:
            title = f"{one_line(label)} against {one_line(found.labels[0])}"
            yield markup.section(title, markup.listing(map(one_line, texts)))


def _differences(found: Comparison) -> Iterator[str]:
    table = found.table("experts")
    if not table["difference"].notna().any():
        return
    most = _largest(table.assign(size=table["difference"].abs()), "size")
    columns = ["trace", "layer", "expert", "reference_load", "relative_load", "difference"]
    columns += ["ci_low", "ci_high", "q_value", "idle_in"]
    yield markup.section(
        "Differences of relative load",
        _figure(figures.differences, found, "differences", _DIFFERENCES),
        markup.paragraph(f"The {_NUM_RANKED} largest of each trace:"),
        _whole(most[columns]),
        *_idle(table),
    )


def _idle(table: pd.DataFrame) -> Iterator[str]:
    names = {"reference": "the reference alone", "other": "this trace alone", "both": "both"}
    for (label, where), part in table[table["idle_in"] != ""].groupby(
        ["trace", "idle_in"], sort=False
    ):
        places = [
            f"{expert} of layer {layer}"
            for layer, expert in zip(part["layer"], part["expert"], strict=True)
        ]
        more = f" and {len(places) - _NUM_RANKED:,} more" if len(places) > _NUM_RANKED else ""
        listed = ", ".join(places[:_NUM_RANKED])
        text = f"{one_line(label)}: idle in {names[str(where)]}: experts {listed}{more}."
        yield markup.paragraph(text)


def _layers(found: Comparison) -> Iterator[str]:
    table = found.table("layers")
    content = [_figure(figures.imbalance, found, "imbalance", _IMBALANCE)]
    if len(table) and table["divergence_bits"].notna().any():
        content.append(_figure(figures.divergence, found, "divergence", _DIVERGENCE))
        content.append(_whole(table))
    else:
        content.append(_whole(found.table("indices")))
    yield markup.section("Layers", *content)
    subjects = found.table("subjects")
    if len(subjects):
        columns = ["divergence_bits", "divergence_noise_bits", "spearman"]
        means = subjects.groupby(["trace", "subject"], sort=False)[columns].mean().reset_index()
        text = (
            f"The {_NUM_RANKED} of each trace that are furthest apart, means over layers; "
            "tables/subjects.csv has every layer."
        )
        most = _largest(means, "divergence_bits")
        yield markup.section("Subjects", markup.paragraph(text), _whole(most))


def _largest(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows of each trace with the largest values, traces in their order."""
    by_trace = (
        part.nlargest(_NUM_RANKED, column) for _, part in table.groupby("trace", sort=False)
    )
    return pd.concat(by_trace)


def _agreement(found: Comparison) -> Iterator[str]:
    table = found.table("agreement")
    if table.empty:
        return
    content = [
        _figure(figures.disagreement, found, "disagreement", _DISAGREEMENT),
        _figure(figures.depths, found, "depths", _DEPTHS),
        _whole(table),
    ]
    if len(found.table("margins")):
        content.append(_figure(figures.margins, found, "margins", _MARGINS))
        content.append(_whole(found.table("margins")))
    slots = found.table("lost_slots")
    if len(slots):
        sums = slots.groupby(["trace", "slot"], sort=False)["lost"].sum().reset_index()
        text = "Selections of the reference that the other run lacks, by rank, all layers together:"
        content += [markup.paragraph(text), _whole(sums)]
    yield markup.section("Agreement, token by token", *content)


def _accuracy(found: Comparison) -> Iterator[str]:
    table = found.table("accuracy")
    whole = table[table["subject"] == ""].drop(columns="subject")
    if len(whole):
        text = "Intervals are of the difference, paired where both runs answered a document."
        yield markup.section("Accuracy", markup.paragraph(text), _whole(whole))


def _figure(
    draw: Callable[[Comparison], Figure], found: Comparison, name: str, caption: str
) -> str:
    rule = found.gathered.settings.rule
    return inline(draw(found), name, f"{caption} Counting rule {rule}.")


def _whole(table: pd.DataFrame) -> str:
    header = [str(name).replace("_", " ") for name in table.columns]
    return markup.table(header, (map(_plain, row) for row in table.itertuples(index=False)))


def _plain(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return one_line(value) if isinstance(value, str) else value
