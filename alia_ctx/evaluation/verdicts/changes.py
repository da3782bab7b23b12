"""What each model costs and brings against the base, in words with errors."""

from __future__ import annotations

from collections.abc import Sequence

from alia_ctx.evaluation.positions import paired_difference
from alia_ctx.evaluation.retrieval import RetrievalScores
from alia_ctx.evaluation.standard_errors import known_error, with_error
from alia_ctx.evaluation.verdicts.measured import (
    Measured,
    by_length,
    far_gains,
    longest,
)

# Standard errors below which a difference is called none.
_CLEAR = 2.0


def verdicts(
    lines: Sequence[Measured], native: int, *, has_base: bool = True
) -> list[str]:
    """A sentence for each thing that can be said of each model against the base, which is
    the model of the first line and holds `native` tokens by itself. Without a base there
    is nothing to compare with, and each model is said to be what it is.
    """
    first = lines[0].model if has_base else None
    base = [line for line in lines if line.model == first]
    sentences = (
        [] if has_base else ["the base is not at hand: nothing is compared with it"]
    )
    for name in dict.fromkeys(line.model for line in lines[len(base) :]):
        own = [line for line in lines if line.model == name]
        sentences += _losses(base, own, native)
        sentences += _far_context(own)
        sentences += _retrieval(base, own, native)
    if len(base) == len(lines):
        sentences += _beyond_own(base, native)
        sentences += _far_context(base)
        sentences += _retrieval([], base, native)
    return sentences


def _at(lines: Sequence[Measured], context: int) -> Measured | None:
    return next((line for line in lines if line.context == context), None)


def _own(lines: Sequence[Measured], native: int, least: int) -> Measured | None:
    """The base at its own context; where the text is shorter than that, at all of it."""
    whole = [x for x in lines if least <= x.context < native and x.positions]
    return _at(lines, native) or max(whole, key=lambda x: x.context, default=None)


def _losses(
    base: Sequence[Measured], model: Sequence[Measured], native: int
) -> list[str]:
    """Loss within the base's own context, and past it."""
    line = longest(model, "positions")
    if line is None or not base:
        return []
    own = _own(base, native, line.context)
    if own is None:
        return [
            f"{line.name}: the base was not shown its own {native:,} tokens, so nothing is "
            f"said of what it costs; measure at {native:,} too"
        ]
    before, after = own.positions, line.positions
    if before is None or after is None:
        return []
    if own.text != line.text:
        return [
            f"{line.name}: its tokenizer is not {own.name}'s, so that nats a token are "
            "not compared"
        ]
    if before.edges != after.edges or native not in before.edges:
        return []
    sentences = []
    near = paired_difference(before, after, 0, native)
    if near.documents:
        change = _change(near.difference, near.standard_error, "costs", "brings")
        sentences.append(
            f"{line.name}: within the base's {native:,} tokens it {change} "
            f"({near.first:.4f} -> {near.second:.4f}, {near.documents} documents)"
        )
    last = before.edges[-1]
    if last <= native:
        return sentences
    for other in base:
        bands = other.positions
        far = None if bands is None else paired_difference(bands, after, native, last)
        if far is None or not far.documents:
            continue
        shown = f"shown {other.context:,} tokens"
        change = _change(far.difference, far.standard_error, "costs", "brings")
        sentences.append(
            f"{line.name}: past {native:,} tokens it {change} against {other.model} "
            f"{shown} ({far.first:.4f} -> {far.second:.4f})"
        )
    return sentences


def _beyond_own(base: Sequence[Measured], native: int) -> list[str]:
    """Of a model alone: what more than its own context does to it."""
    own = _at(base, native)
    before = own.positions if own else None
    sentences = []
    for line in base:
        after = line.positions
        if before is None or after is None or line.context <= native:
            continue
        if before.edges != after.edges or native not in before.edges:
            continue
        far = paired_difference(before, after, native, before.edges[-1])
        if far.documents:
            change = _change(far.difference, far.standard_error, "loses", "gains")
            sentences.append(
                f"{line.model}: shown {line.context:,} tokens in place of its {native:,} "
                f"it {change} past them ({far.first:.4f} -> {far.second:.4f})"
            )
    return sentences


def _change(difference: float, error: float, worse: str, better: str) -> str:
    """`costs 0.0120 +- 0.0030 nats a token`; where the error is as large, that it shows none."""
    known = known_error(error)
    if difference == 0:
        return "shows no difference at all"
    if known is None:
        word = worse if difference > 0 else better
        return (
            f"{word} {abs(difference):.4f} nats a token (one document, or all alike: no "
            "error known)"
        )
    if abs(difference) <= _CLEAR * known:
        return f"shows no difference ({difference:+.4f} +- {error:.4f} nats a token)"
    word = worse if difference > 0 else better
    return f"{word} {abs(difference):.4f} +- {error:.4f} nats a token"


def _far_context(model: Sequence[Measured]) -> list[str]:
    """What the context past the base's brings to the model itself."""
    line = longest(model, "blocks")
    if line is None:
        return []
    gains = far_gains(line)
    parts = []
    for gain in gains:
        where = f"at positions {gain.first:,}-{gain.last - 1:,}"
        if gain.times is None:
            said = with_error(f"{gain.gain:+.4f} nats a token {where}", gain.error)
            parts.append(said)
        else:
            parts.append(
                f"{gain.gain:+.4f} +- {gain.error:.4f} nats a token {where} "
                f"({gain.times:+.1f} standard errors)"
            )
    if not parts:
        return []
    return [
        f"{line.name}: far context brings it {', '.join(parts)}, shown "
        f"{line.context:,} tokens, against the same text in blocks of "
        f"{gains[0].block:,}"
    ]


def _retrieval(
    base: Sequence[Measured], own: Sequence[Measured], native: int
) -> list[str]:
    """Share of samples answered whole, at each length, beside the base's."""
    sentences = []
    for evaluator, what in (
        ("retrieval", "retrieval"),
        ("passkey", "the passkey grid"),
    ):
        before = _scores(base, evaluator)
        for length, line, scores in by_length(own, evaluator):
            score = scores.score(length=length)
            low, high = score.interval
            control = " (the base's own length)" if length == native else ""
            text = (
                f"{line.model}: {what} at {length:,} tokens{control}: {score.share:.0%} "
                f"of {score.samples} ({low:.0%}-{high:.0%})"
            )
            if length in before:
                other = before[length].score(length=length)
                text += f"; the base {other.share:.0%} of {other.samples}"
            sentences.append(text)
    return sentences


def _scores(lines: Sequence[Measured], evaluator: str) -> dict[int, RetrievalScores]:
    return {n: scores for n, _, scores in reversed(by_length(lines, evaluator))}
