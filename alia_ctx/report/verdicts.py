"""What the results say, in words: each stage against the base, and against itself without
far context.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from alia_ctx.errors import DataError
from alia_ctx.evaluation.positions import PositionBands, paired_difference
from alia_ctx.evaluation.report import CLEAR, TOLERANCE
from alia_ctx.evaluation.retrieval.scores import RetrievalScores, Score
from alia_ctx.report.facts import Result, RunFacts

BRINGS = 5.0  # standard errors from which far context is said to bring something
ANSWERS, FAILS = 0.8, 0.2  # shares of right answers


@dataclass(frozen=True)
class Verdict:
    """A sentence about the run; `holds` is None where it could not be decided."""

    claim: str
    holds: bool | None
    detail: str

    @property
    def answer(self) -> str:
        return {True: "yes", False: "no", None: "not known"}[self.holds]


def verdicts(facts: RunFacts) -> list[Verdict]:
    """All that can be said, the end of training first."""
    return [
        *_trained(facts),
        *_positions(facts),
        *_blocks(facts),
        *_passkey(facts),
        *_leak(facts),
    ]


def summary(facts: RunFacts) -> str:
    """One sentence over all verdicts."""
    found = verdicts(facts)
    failed = [v.claim for v in found if v.holds is False]
    asked = {"positions", "blocks", "passkey"}
    lacking = [name for name in sorted(asked) if not facts.of(name)]
    unfinished = [stage.name for stage in facts.stages if not stage.finished]
    if failed:
        return f"Does not hold: {'; '.join(failed)}."
    if unfinished:
        return (
            f"Not finished: {', '.join(unfinished)}. Nothing below contradicts it yet."
        )
    if lacking:
        return f"Trained; whether it works is not known without: {', '.join(lacking)}."
    return "All that was measured says that the longer context works."


def _trained(facts: RunFacts) -> Iterator[Verdict]:
    for stage in facts.stages:
        skipped = int(stage.ledger["skipped_updates"]) if stage.ledger else 0
        detail = f"{stage.done:,} of {stage.updates:,} updates, {skipped} skipped"
        holds = True if stage.finished else None
        yield Verdict(f"{stage.name} is trained to its end", holds, detail)


def own_bands(facts: RunFacts) -> dict[str, PositionBands]:
    """Losses by position of each model at its own context, the base first; where the text
    was too short for that, at the longest that was measured within it.
    """
    chosen: dict[str, Result] = {}
    for result in facts.of("positions"):  # short contexts before long ones
        own = facts.own_context(result.model)
        if not own or result.context <= own:
            chosen[result.model] = result
    return {model: result.bands for model, result in chosen.items()}


def _positions(facts: RunFacts) -> Iterator[Verdict]:
    bands = own_bands(facts)
    if facts.base not in bands:
        return
    base, native = bands[facts.base], facts.own_context(facts.base)
    for model, other in bands.items():
        if model == facts.base or other.edges != base.edges:
            continue
        reach = max(native, facts.own_context(model) or base.edges[-1])
        for start, stop in pairwise(base.edges):
            if stop <= reach:  # a model is not judged where it was never trained
                far = start >= native
                yield _against_base(facts.base, base, model, other, start, stop, far)


def _against_base(
    name: str,
    base: PositionBands,
    model: str,
    other: PositionBands,
    start: int,
    stop: int,
    far: bool,
) -> Verdict:
    place = f"at positions {start:,} to {stop - 1:,}"
    claim = (
        f"{model} is clearly better than {name} {place}"
        if far
        else f"{model} loses at most {TOLERANCE:.0%} to {name} {place}"
    )
    paired = paired_difference(base, other, start, stop)
    if paired.documents < 2:
        return Verdict(claim, None, f"{paired.documents} documents have both")
    change, error = paired.difference, paired.standard_error
    holds = -change > CLEAR * error if far else change <= TOLERANCE * paired.first
    return Verdict(
        claim,
        bool(holds),
        f"{paired.first:.4f} → {paired.second:.4f} nats a token, {change:+.4f} ± "
        f"{error:.4f} (standard error, {paired.documents} documents)",
    )


def _blocks(facts: RunFacts) -> Iterator[Verdict]:
    """Within what each stage was trained at: the base is shown more only for the tables."""
    contexts = {s.name: s.context for s in facts.stages if s.name != facts.base}
    for result in facts.of("blocks"):
        bands = [b for b in result.content["bands"] if b["standard_error"] is not None]
        for band in bands:
            reach = contexts.get(result.model, 0)
            if not result.content["block"] <= band["first"] < reach:
                continue
            gain, error = band["gain"], band["standard_error"]
            times = gain / error if error else math.inf
            yield Verdict(
                f"far context brings {result.model} a gain of {BRINGS:g} standard errors "
                f"at positions {band['first']:,} to {band['last'] - 1:,}",
                bool(times >= BRINGS),
                f"{gain:+.4f} ± {error:.4f} nats a token over {band['documents']} "
                f"documents: {times:.1f} standard errors, against the same text in "
                f"blocks of {result.content['block']:,} tokens",
            )


def _passkey(facts: RunFacts) -> Iterator[Verdict]:
    longest = max((stage.context for stage in facts.stages), default=0)
    last = facts.stages[-1].name if facts.stages else ""
    results = facts.of("passkey")
    native = facts.own_context(facts.base)
    control, told = _control(facts, native), False
    for result in results:
        for length in result.scores.lengths:
            score = result.scores.score(length=length)
            found = f"{score.right} of {score.samples} right{_interval(score)}"
            times = f" (x{length / native:g})" if native else ""
            at = f"{length:,} tokens{times}"
            if result.model == last and length <= longest:
                claim = f"{last} finds the passkey in {at}"
                yield Verdict(claim, score.share >= ANSWERS, found)
            elif result.model == facts.base and length == native:
                # The control: what fails here too is not a matter of length. Each
                # context's grid has it.
                if told:
                    continue
                told = True
                claim = f"{facts.base} finds the passkey in its own {length:,} tokens"
                yield Verdict(claim, score.share >= ANSWERS, found)
            elif result.model == facts.base and length > native:
                yield _base_fails(facts.base, result.scores, length, native, control)


def _base_fails(
    base: str, scores: RetrievalScores, length: int, native: int, control: float | None
) -> Verdict:
    """Of passkeys that lie farther back than the base's own context: nearer ones are
    within what it was trained at, however long the row is.
    """
    far = scores.score_farther(native, length)
    times = f" (x{length / native:g})" if native else ""
    claim = (
        f"{base} fails to find a passkey that is {native:,} tokens back or more, in "
        f"{length:,} tokens{times}"
    )
    found = f"{far.right} of {far.samples} right{_interval(far)}"
    if not far.samples:
        return Verdict(claim, None, "none was hidden there")
    if control is not None and control >= ANSWERS:
        return Verdict(claim, far.share <= FAILS, found)
    # Who fails within the own context as well shows nothing by it.
    why = "was not measured" if control is None else f"is {control:.0%} right"
    return Verdict(claim, None, f"{found}; its own context {why}")


def _control(facts: RunFacts, native: int) -> float | None:
    """Share of passkeys that the base finds within its own context."""
    for result in facts.of("passkey"):
        if result.model == facts.base and native in result.scores.lengths:
            return result.scores.score(length=native).share
    return None


def _interval(score: Score) -> str:
    low, high = score.interval
    return f" (95% interval {low:.0%} to {high:.0%})" if score.samples else ""


def _leak(facts: RunFacts) -> Iterator[Verdict]:
    for result in facts.of("leak"):
        try:
            moved, positions = int(result.content["moved"]), result.content["positions"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not a leak probe: {error!r}") from error
        yield Verdict(
            f"no document of {result.model} sees another one in rows of "
            f"{result.context:,} tokens",
            moved == 0,
            f"{moved:,} of {positions:,} positions of other documents moved",
        )
