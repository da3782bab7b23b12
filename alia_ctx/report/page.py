"""The page of a run, section by section."""

from __future__ import annotations

from datetime import UTC, datetime

import alia_ctx
from alia_ctx.report import html, results, training
from alia_ctx.report.beside import beside
from alia_ctx.report.facts import RunFacts
from alia_ctx.report.reality import reality
from alia_ctx.report.verdicts import summary, verdicts

_SECTIONS = (
    ("verdict", "Verdict"),
    ("ledger", "Ledger"),
    ("loss", "Training loss"),
    ("positions", "By position"),
    ("far", "Far context"),
    ("passkey", "Passkeys"),
    ("ruler", "RULER"),
    ("leak", "Leaks"),
    ("beside", "Beside"),
    ("speed", "Throughput"),
    ("faults", "Faults"),
    ("data", "Data"),
    ("reality", "Plan and reality"),
)


def run_page(facts: RunFacts, *, refresh: int | None = None) -> str:
    """The whole page as HTML; `refresh` seconds after which a browser reads it again.

    DataError where a result is not of the form that its evaluator writes.
    """
    body = [
        f"<h1>{html.text(facts.name)}</h1>",
        made_when(facts, refresh),
        "<nav>"
        + "".join(f'<a href="#{name}">{title}</a>' for name, title in _SECTIONS)
        + "</nav>",
        verdict(facts),
        training.ledger(facts),
        training.loss(facts),
        results.positions(facts),
        results.far_context(facts),
        results.passkeys(facts),
        results.retrieval(facts),
        results.leak(facts),
        beside(facts),
        training.speed(facts),
        training.faults(facts),
        training.data(facts),
        reality(facts),
    ]
    return html.document(f"{facts.name}: report", body, refresh=refresh)


def made_when(facts: RunFacts, refresh: int | None = None) -> str:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    live = f" It is written again every {refresh} s." if refresh else ""
    made = (
        f"Made by alia-ctx {alia_ctx.__version__} on {now} from {facts.output}.{live}"
    )
    how = f"Make it again: {html.code(facts.how('report CONFIG'))}."
    return f'<p class="small">{html.text(made)} {how}</p>'


def verdict(facts: RunFacts) -> str:
    """What the results say, the doubtful and the missing named."""
    style = {True: "good", False: "bad", None: "open"}
    listed = "".join(
        f'<li><span class="tag {style[v.holds]}">{v.answer}</span> '
        f"<div>{html.text(v.claim)}. "
        f'<span class="small">{html.text(_typeset(v.detail))}</span></div></li>'
        for v in verdicts(facts)
    )
    notes = [html.paragraph(note, "small") for note in facts.notes]
    problems = [html.paragraph(line, "missing") for line in _problems(facts)]
    opening = f"<p><strong>{html.text(summary(facts))}</strong></p>"
    listing = f'<ul class="verdicts">{listed}</ul>'
    return html.section("verdict", "Verdict", opening, listing, *notes, *problems)


def _typeset(detail: str) -> str:
    return detail.replace(" -> ", " → ").replace("+-", "±")


def _problems(facts: RunFacts) -> list[str]:
    stages = [f"{s.name}: {problem}" for s in facts.stages for problem in s.problems]
    return [*facts.problems, *stages, *stale_results(facts)]


def stale_results(facts: RunFacts) -> list[str]:
    """Results that are there and not shown, each with the reason, as sentences."""
    lines = []
    for result in facts.stale:
        what = f"{result.evaluator} of {result.model} at {result.context:,} tokens"
        why = (
            "it is not of the model that is there now"
            if result.differs
            else "it was measured with other settings than the configuration has"
            if result.outdated
            else "it was measured with other settings than those beside it"
        )
        why_not = result.differs or result.outdated or result.unlike
        reasons = "; ".join([*why_not][:3])
        lines.append(
            f"{what} is not shown, {why}: {reasons}. "
            f"{facts.how('evaluate CONFIG')} measures it anew."
        )
    return lines + [
        f"{document.title} is not shown, {document.why_not}. {document.how} measures it "
        "anew."
        for document in facts.beside
        if document.differs
    ]
