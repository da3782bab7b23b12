"""What was measured beside the run's own comparison: tables and claims that others made."""

from __future__ import annotations

from alia_ctx.report import html
from alia_ctx.report.facts import Beside, RunFacts


def beside(facts: RunFacts) -> str:
    """A part for each document; of one whose checkpoint is another than the one that is
    there, only its name and why.
    """
    if not facts.beside:
        note = "Nothing was measured beside the comparison of this run."
        return html.section("beside", "Beside the comparison", html.paragraph(note))
    return html.section("beside", "Beside the comparison", *map(_part, facts.beside))


def _part(document: Beside) -> str:
    heading = f"<h3>{html.text(document.title)}</h3>"
    if document.differs:
        return heading + html.paragraph(f"Not shown, {document.why_not}.", "missing")
    said = [
        html.paragraph(f"{verdict.claim}: {verdict.answer}. {verdict.detail}", "small")
        for verdict in document.verdicts
    ]
    said += [html.paragraph(note, "small") for note in document.notes]
    tables = [
        html.table(table.headings, table.rows, caption=table.caption, how=document.how)
        for table in document.tables
    ]
    return "".join([heading, *said, *tables])
