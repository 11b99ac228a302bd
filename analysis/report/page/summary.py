"""The first screen: can this be trusted, the three answers, and what was run."""

from __future__ import annotations

from dataclasses import astuple, fields
from typing import Any

from moe_probe.analysis.quality import Check, Status
from moe_probe.analysis.report.contents import Contents, one_line
from moe_probe.analysis.report.markup import description, listing, paragraph, section, table

_LONGEST = 400
_QUESTIONS = (
    "Are experts loaded unevenly?",
    "Which experts are used least?",
    "Do experts idle for long?",
)


def summary(contents: Contents) -> str:
    """Return it as HTML; a failing check stands above all and withholds the answers."""
    parts = [paragraph(text, "warning") for text in contents.warnings()]
    if contents.failed:
        parts.append(
            listing(
                f"{check.check} {check.name}: {check.value}, expected {check.expected}"
                for check in contents.failed
            )
        )
    findings = contents.findings()
    if findings:
        answers = "".join(
            f"<h3>{question}</h3>{paragraph(answer)}"
            for question, answer in zip(_QUESTIONS, findings, strict=True)
        )
        parts.append(section("Findings", f'<div class="findings">{answers}</div>'))
    parts.append(section("What was run", description(run_facts(contents))))
    parts.append(section("Quality", paragraph(completeness(contents)), _checks(contents)))
    return "\n".join(parts)


def shown(value: Any) -> str:
    """Return a fact on one line that fits a screen; report.json has the whole of it."""
    text = one_line(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def run_facts(contents: Contents) -> dict[str, str]:
    """Name what was run and how it was counted."""
    facts = {name.replace("_", " "): shown(value) for name, value in contents.run.items()}
    return facts | {
        "sequences": f"{contents.num_sequences:,}",
        "tokens counted": f"{contents.tokens:,}",
        "counting rule": f"{contents.rule}: {contents.rule.description}",
        "trace": shown(contents.trace),
    }


def completeness(contents: Contents) -> str:
    """Say in one sentence whether the trace is whole and how its checks ended."""
    number = {status: sum(check.status is status for check in contents.checks) for status in Status}
    complete = next((check for check in contents.checks if check.check == "Q0"), None)
    state = complete and (complete.value or f"not checked: {complete.reason}")
    counted = ", ".join(f"{count} {status}" for status, count in number.items() if count)
    return f"Completeness: {state or 'not checked'}. Checks: {counted}."


def _checks(contents: Contents) -> str:
    header = [field.name for field in fields(Check)]
    rows = table(header, map(astuple, contents.checks))
    is_open = " open" if contents.failed else ""
    return f"<details{is_open}><summary>All checks</summary>{rows}</details>"
