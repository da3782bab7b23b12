"""What the results say, in the page's words: each stage against the base, and against
itself without far context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alia_ctx.evaluation.verdicts import Verdict, claims
from alia_ctx.report.facts import RunFacts


def verdicts(facts: RunFacts) -> list[Verdict]:
    """All that can be said, the end of training first, what others measured last; the page
    and the report as text have these.
    """
    own = [*_trained(facts), *claims(facts.lines, facts.chain)]
    shown = [document for document in facts.beside if not document.differs]
    return own + [verdict for document in shown for verdict in document.verdicts]


def summary(facts: RunFacts) -> str:
    """One sentence over all verdicts."""
    said = verdicts(facts)
    failed = [v.claim for v in said if v.holds is False]
    undecided = [v.claim for v in said if v.holds is None]
    lacking = _lacking(facts, said)
    unfinished = [stage.name for stage in facts.stages if not stage.finished]
    if failed:
        return f"Does not hold: {'; '.join(failed)}."
    if unfinished:
        return (
            f"Not finished: {', '.join(unfinished)}. Nothing below contradicts it yet."
        )
    if lacking:
        return f"Trained; whether it works is not known without: {', '.join(lacking)}."
    if undecided:
        return (
            "Nothing that was measured contradicts it, and not all of it is known. Could "
            f"not be decided: {'; '.join(undecided)}."
        )
    return "All that was measured says that the longer context works."


def _lacking(facts: RunFacts, said: Sequence[Verdict]) -> list[str]:
    """Evaluators without which it is not known whether the last stage works: those that
    it has no result of, or none that a claim on it could be made of.
    """
    last = facts.stages[-1].name if facts.stages else facts.base
    lacking = []
    for name in ("blocks", "passkey", "positions"):
        measured = any(result.model == last for result in facts.of(name))
        claimed = any(v.evaluator == name and v.model == last for v in said)
        # Of the base itself nothing is claimed.
        if not measured or (last != facts.base and not claimed):
            lacking.append(name)
    return lacking


def _trained(facts: RunFacts) -> Iterator[Verdict]:
    for stage in facts.stages:
        skipped = int(stage.ledger["skipped_updates"]) if stage.ledger else 0
        done = f"{stage.saved:,} of {stage.updates:,} updates{stage.ahead}"
        detail = f"{done}, {skipped} skipped"
        holds = True if stage.finished else None
        claim = f"{stage.name} is trained to its end"
        yield Verdict(claim, holds, detail, stage.name)
